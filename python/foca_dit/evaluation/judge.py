"""The judge of the images: a classifier and what it says of the real ones.

The classifier is not part of the package. A folder brings it: `classifier.py` with a class
`Classifier` (`from_folder`, `features`, `head`), its weights, and the reference statistics, which
`reference_statistics.py` there makes from the test set.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foca_dit.evaluation.metrics import accuracy, frechet_distance, gaussian, inception_score

STATISTICS = "reference_statistics.safetensors"


@dataclass(frozen=True, eq=False)
class Judge:
    """A classifier with the Gaussian of its features on real images.

    Attributes:
        classifier: `features(images)` -> [n, D]; `head(features)` -> logits [n, classes].
        mean, cov: [D] and [D, D] of the real images' features.
    """

    classifier: Any
    mean: torch.Tensor
    cov: torch.Tensor

    @torch.inference_mode()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """[n, D] of images [n, C, H, W] in [-1, 1]."""
        parts = images.clamp(-1, 1).split(500)
        return torch.cat([self.classifier.features(part) for part in parts])

    @torch.inference_mode()
    def scores(self, features: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """Classifier-FID, classifier-IS and class accuracy of images with these features."""
        logits = self.classifier.head(features)
        return {
            "classifier_fid": frechet_distance(*gaussian(features), self.mean, self.cov),
            "classifier_is": inception_score(logits),
            "accuracy": accuracy(logits, labels),
        }


def load_judge(folder: Path) -> Judge:
    """The judge in a folder like examples/fashion_dit. Runs the Python code in it.

    Raises:
        FileNotFoundError: something is missing; the message says what.
    """
    code = folder / "classifier.py"
    weights = folder / "weights/classifier"
    for needed in (code, weights, weights / STATISTICS):
        if not needed.exists():
            raise FileNotFoundError(f"load_judge: expected {needed}: see docs/evaluation.md")
    from safetensors.torch import load_file

    spec = importlib.util.spec_from_file_location("foca_dit_judge", code)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))  # it imports what stands beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    reference = load_file(weights / STATISTICS)
    classifier = module.Classifier.from_folder(weights)
    return Judge(classifier, reference["mean"].double(), reference["cov"].double())
