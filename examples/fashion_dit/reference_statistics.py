"""What the classifier says of the real test images: the reference of classifier-FID.

    python examples/fashion_dit/reference_statistics.py

writes mean and covariance of its features over the 10,000 test images, float32, 66 KB.
"""

import argparse
from pathlib import Path

import torch
from classifier import Classifier
from data import DEFAULT_FOLDER, load_fashion_mnist
from safetensors.torch import save_file

from foca_dit.evaluation.judge import STATISTICS
from foca_dit.evaluation.metrics import accuracy, gaussian, inception_score

WEIGHTS = Path(__file__).parent / "weights/classifier"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER)
    args = parser.parse_args()
    images, labels = load_fashion_mnist("t10k", args.data)
    classifier = Classifier.from_folder(args.weights)
    features = torch.cat([classifier.features(part) for part in images.split(500)])
    mean, cov = gaussian(features)
    save_file({"mean": mean.float(), "cov": cov.float()}, args.weights / STATISTICS)
    logits = classifier.head(features)
    print(
        f"{len(images)} images: classifier-IS {inception_score(logits):.3f}, "
        f"accuracy {accuracy(logits, labels):.4f}; written: {args.weights / STATISTICS}"
    )


if __name__ == "__main__":
    main()
