"""The metrics of the paper's tables, through the libraries that the field uses.

None of them is a dependency: each is imported when its column is wanted, and where it is missing
`Metric.missing` says what to install. Samples lie in a folder; so a column can be added later
without generating anything again.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

CLIP = "openai/clip-vit-large-patch14"
IMAGE_REWARD = "ImageReward-v1.0"


@dataclass(frozen=True)
class Samples:
    """What one row generated, and what it is compared with.

    Attributes:
        folder: where all files are.
        files: in order.
        prompts: of each file; empty where there are none.
        references: of each file, the true image; empty where there are none.
        device: to compute on.
        clip: model of the CLIP score, an id on the Hub or a folder.
        real: folder of real images, for FID.
        vbench_info: VBench's list of prompts and dimensions.
    """

    folder: Path
    files: tuple[Path, ...]
    prompts: tuple[str, ...] = ()
    references: tuple[Path, ...] = ()
    device: str = "cpu"
    clip: str = CLIP
    real: Path | None = None
    vbench_info: Path | None = None


@dataclass(frozen=True)
class Metric:
    """One or more columns from one library.

    Attributes:
        columns: that it fills.
        module: what is imported; "": nothing beyond this package.
        package: its name for pip.
        compute: from samples to the columns' values.
        needs: attribute of `Samples` that must not be None, and the option that gives it.
    """

    columns: tuple[str, ...]
    module: str
    package: str
    compute: Callable[[Samples], dict[str, float]]
    needs: tuple[str, str] | None = None

    def missing(self, samples: Samples) -> str | None:
        """One sentence on what is missing for it, or None."""
        what = " and ".join(self.columns)
        if self.module and importlib.util.find_spec(self.module) is None:
            return f"{what}: left out, for {self.module} is missing: pip install {self.package}"
        if self.needs is not None and getattr(samples, self.needs[0]) is None:
            return f"{what}: left out: name {self.needs[1]}"
        return None


def image_reward(samples: Samples) -> dict[str, float]:
    """Xu et al., ImageReward, arXiv:2304.05977: the mean over all prompts."""
    model = importlib.import_module("ImageReward").load(IMAGE_REWARD, device=samples.device)
    with torch.inference_mode():
        scores = [
            float(model.score(prompt, str(file)))
            for prompt, file in zip(samples.prompts, samples.files, strict=True)
        ]
    return {"image_reward": statistics.fmean(scores)}


@torch.inference_mode()
def clip_score(samples: Samples) -> dict[str, float]:
    """100 times the cosine of image and prompt, the mean over all prompts.

    Hessel et al., CLIPScore, arXiv:2104.08718, with the factor 100 and no clamping, as reported on
    DrawBench; the paper does not name its CLIP. Prompts are cut at CLIP's length.
    """
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

    model: Any = CLIPModel.from_pretrained(samples.clip)
    model.to(samples.device).eval()
    processor = CLIPProcessor.from_pretrained(samples.clip)
    scores = []
    for prompt, file in zip(samples.prompts, samples.files, strict=True):
        with Image.open(file) as image:
            inputs = processor(
                text=[prompt],
                images=[image.convert("RGB")],
                return_tensors="pt",
                padding=True,
                truncation=True,
            ).to(samples.device)
        output = model(**inputs)
        cosine = torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds)
        scores.append(100 * float(cosine))
    return {"clip_score": statistics.fmean(scores)}


def inception(samples: Samples) -> dict[str, float]:
    """FID to a folder of real images and Inception score, by torch-fidelity."""
    library = importlib.import_module("torch_fidelity")
    found = library.calculate_metrics(
        input1=str(samples.folder),
        input2=str(samples.real),
        fid=True,
        isc=True,
        cuda=samples.device.startswith("cuda"),
        verbose=False,
    )
    return {
        "fid": float(found["frechet_inception_distance"]),
        "is": float(found["inception_score_mean"]),
    }


def fidelity(samples: Samples) -> dict[str, float]:
    """PSNR and SSIM to the true images, over RGB in [0, 1], the mean over images."""
    from foca_dit.evaluation.metrics import ssim

    psnrs, ssims = [], []
    for file, reference in zip(samples.files, samples.references, strict=True):
        image, truth = read_image(file), read_image(reference)
        error = float((image - truth).square().mean())
        psnrs.append(-10 * np.log10(max(error, 1e-12)))
        ssims.append(ssim(image, truth, data_range=1.0))
    return {"psnr": statistics.fmean(psnrs), "ssim": statistics.fmean(ssims)}


def read_image(file: Path) -> torch.Tensor:
    """[1, 3, H, W] in [0, 1]."""
    from PIL import Image

    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


# VBench -----------------------------------------------------------------------------------------

# (lowest, highest, weight) of every dimension: scripts/constant.py of github.com/Vchitect/VBench.
VBENCH_QUALITY = {
    "subject_consistency": (0.1462, 1.0, 1.0),
    "background_consistency": (0.2615, 1.0, 1.0),
    "temporal_flickering": (0.6293, 1.0, 1.0),
    "motion_smoothness": (0.706, 0.9975, 1.0),
    "aesthetic_quality": (0.0, 1.0, 1.0),
    "imaging_quality": (0.0, 1.0, 1.0),
    "dynamic_degree": (0.0, 1.0, 0.5),
}
VBENCH_MEANING = {
    "object_class": (0.0, 1.0, 1.0),
    "multiple_objects": (0.0, 1.0, 1.0),
    "human_action": (0.0, 1.0, 1.0),
    "color": (0.0, 1.0, 1.0),
    "spatial_relationship": (0.0, 1.0, 1.0),
    "scene": (0.0, 0.8222, 1.0),
    "appearance_style": (0.0009, 0.2855, 1.0),
    "temporal_style": (0.0, 0.364, 1.0),
    "overall_consistency": (0.0, 0.364, 1.0),
}
VBENCH_QUALITY_WEIGHT = 4.0


def vbench_total(scores: Mapping[str, float]) -> float:
    """VBench's total score in percent, from the scores of its 16 dimensions."""

    def part(dimensions: Mapping[str, tuple[float, float, float]]) -> float:
        weights = [weight for _, _, weight in dimensions.values()]
        values = [
            weight * (scores[name] - low) / (high - low)
            for name, (low, high, weight) in dimensions.items()
        ]
        return sum(values) / sum(weights)

    quality, meaning = part(VBENCH_QUALITY), part(VBENCH_MEANING)
    return 100 * (VBENCH_QUALITY_WEIGHT * quality + meaning) / (VBENCH_QUALITY_WEIGHT + 1)


def vbench(samples: Samples) -> dict[str, float]:
    """The total score of Huang et al., VBench, arXiv:2311.17982, of `<prompt>-<i>.mp4` files."""
    library = importlib.import_module("vbench")
    # Beside the samples, not among them: VBench takes every file there for a video.
    results = samples.folder.with_name(samples.folder.name + "-vbench")
    judge = library.VBench(torch.device(samples.device), str(samples.vbench_info), str(results))
    judge.evaluate(
        videos_path=str(samples.folder),
        name="all",
        dimension_list=[*VBENCH_QUALITY, *VBENCH_MEANING],
    )
    found = json.loads((results / "all_eval_results.json").read_text())
    return {"vbench": vbench_total({name: float(value[0]) for name, value in found.items()})}


METRICS: dict[str, Metric] = {
    "image_reward": Metric(("image_reward",), "ImageReward", "image-reward", image_reward),
    "clip_score": Metric(("clip_score",), "transformers", "transformers", clip_score),
    "vbench": Metric(
        ("vbench",), "vbench", "vbench", vbench, ("vbench_info", "--prompts VBench_full_info.json")
    ),
    "inception": Metric(
        ("fid", "is"),
        "torch_fidelity",
        "torch-fidelity",
        inception,
        ("real", "--real, a folder of real images"),
    ),
    "fidelity": Metric(("psnr", "ssim"), "", "", fidelity),
}


def columns_of(names: Sequence[str]) -> list[str]:
    """The columns that these metrics fill."""
    return [column for name in names for column in METRICS[name].columns]
