"""Trained models in folders, and the settings that this project's figures are measured in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foca_dit.analysis.sampling import sample
from foca_dit.evaluation.setting import Setting
from foca_dit.files import read_json

_MODELS = Path("examples/fashion_dit")
DEFAULT_MODEL = _MODELS / "weights"
"""The commands' model, from the repository's root."""

TOKENS = "class_tokens.safetensors"
SAMPLING = "sampling.json"


@dataclass(frozen=True, eq=False)
class Trained:
    """A class-conditional diffusion model and its sampler.

    Attributes:
        model: a transformer of diffusers, without a cache.
        scheduler: of diffusers; None: Euler steps of flow matching.
        shape: of one sample; None: what the model's configuration says.
        tokens: what a video model is given for a class; None: the class itself.
    """

    model: torch.nn.Module
    scheduler: Any = None
    shape: tuple[int, ...] | None = None
    tokens: torch.Tensor | None = None

    @property
    def shift(self) -> float | None:
        """Of the flow schedule; None: the model is no flow model."""
        if self.scheduler is None:
            return 1.0
        shift = getattr(self.scheduler.config, "shift", None)
        return None if shift is None else float(shift)

    def setting(self, shift: float | None = None, **given: Any) -> Setting:
        """A setting of this model.

        Args:
            shift: of the flow schedule; None: the scheduler's own.
            given: what else `Setting` takes: steps, guidance_scale, seed, images, ..

        Raises:
            ValueError: a shift for a model that has none.
        """
        scheduler = self.scheduler
        if shift is not None and shift != self.shift:
            scheduler = shifted(scheduler, shift)
        given["shift"] = next((s for s in (shift, self.shift) if s is not None), 1.0)
        return Setting(
            self.model, scheduler=scheduler, shape=self.shape, tokens=self.tokens, **given
        )


def shifted(scheduler: Any, shift: float | None) -> Any:
    """A flow scheduler with another shift; None: as it is.

    Raises:
        ValueError: a scheduler that has no shift, or a shift that is not positive.
    """
    if shift is None or scheduler is None:
        return scheduler
    if getattr(scheduler.config, "shift", None) is None:
        name = type(scheduler).__name__
        raise ValueError(f"argument shift: expected none for {name}, got {shift:g}")
    if not shift > 0:
        raise ValueError(f"argument shift: expected a positive number, got {shift:g}")
    return type(scheduler).from_config(scheduler.config, shift=shift)


def load_trained(folder: Path) -> Trained:
    """Reads `transformer/`, `scheduler/` and, where they are, class tokens and `sampling.json`.

    Returns:
        The model in float32, in eval mode.

    Raises:
        FileNotFoundError: the folder is no such folder.
    """
    for part in ("transformer", "scheduler"):
        if not (folder / part).is_dir():
            raise FileNotFoundError(
                f"argument model: expected a folder with transformer/ and scheduler/, got "
                f"{folder}: run it from a checkout of the repository, or name the folder"
            )
    import diffusers
    from safetensors.torch import load_file

    diffusers.utils.logging.set_verbosity_error()
    model = _class_of(folder / "transformer/config.json").from_pretrained(
        folder / "transformer", torch_dtype=torch.float32, local_files_only=True
    )
    file = folder / "scheduler/scheduler_config.json"
    scheduler = _class_of(file).from_pretrained(folder / "scheduler")
    tokens = load_file(folder / TOKENS)["tokens"] if (folder / TOKENS).exists() else None
    shape = None
    if (folder / SAMPLING).exists():
        shape = tuple(read_json(folder / SAMPLING)["shape"])
    return Trained(model.eval(), scheduler, shape, tokens)


def load(folder: Path) -> tuple[torch.nn.Module, Any]:
    """A class-conditional image model of a folder in float32, and its scheduler.

    Its convolutions are laid out channels last: on a CPU the patch embedding, which every skipped
    step computes too, then gives the same values faster.

    Raises:
        FileNotFoundError: the folder has no model.
        ValueError: its model is of another kind.
    """
    trained = load_trained(folder)
    config: Any = trained.model.config
    if not {"sample_size", "in_channels", "num_embeds_ada_norm"} <= set(config):
        raise ValueError(
            "argument model: expected a class-conditional image model such as "
            f"DiTTransformer2DModel, got {type(trained.model).__name__} in {folder}: from Python "
            "every supported model can be tuned (docs/tune.md, From Python)"
        )
    model = trained.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, trained.scheduler


def drawing(
    model: torch.nn.Module, scheduler: Any, samples: int, steps: int, guidance_scale: float
) -> Callable[[torch.nn.Module, int], torch.Tensor]:
    """A function from a model and a seed to a batch of samples, for a class-conditional model."""
    config: Any = model.config
    size, channels = int(config.sample_size), int(config.in_channels)
    classes = int(config.num_embeds_ada_norm)

    def draw(model: torch.nn.Module, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(samples, channels, size, size, generator=generator)
        # Other classes for other seeds, all of them in turn.
        labels = (torch.arange(samples) * 3 + seed) % classes
        return sample(model, scheduler, noise, labels, steps, guidance_scale)

    return draw


def _class_of(file: Path) -> Any:
    """The class of diffusers that a configuration is of.

    Raises:
        ValueError: it names none.
    """
    import diffusers

    name = read_json(file).get("_class_name")
    found = getattr(diffusers, str(name), None)
    if found is None:
        raise ValueError(f"{file}: expected the _class_name of a class of diffusers, got {name!r}")
    return found


@dataclass(frozen=True)
class Known:
    """A setting as data: another one is a line in `SETTINGS`.

    Attributes:
        folder: of the model, from the repository's root.
        shifts: of the flow schedule; None: the scheduler's own, or no flow model.
        guidance_scale: classifier-free guidance; 1: none.
    """

    folder: Path
    shifts: tuple[float | None, ...] = (None,)
    guidance_scale: float = 1.0


SETTINGS = {
    "flow": Known(DEFAULT_MODEL, shifts=(1.0, 3.0)),
    "noise": Known(_MODELS / "weights-noise", guidance_scale=1.5),
    "video": Known(_MODELS / "weights-video"),
}
"""Flow matching at two shifts; noise prediction with DDIM and guidance, as the paper has DiT-XL/2;
and flow matching on clips, shifted."""
