"""Judges the trained model: are its garments recognised as what they should be?

    python examples/fashion_dit/judge.py          # --model examples/fashion_dit/weights-noise

samples 500 garments, 50 of each class, and lets the classifier name them.
"""

import argparse
import json
from pathlib import Path

import torch
from classifier import Classifier
from data import CLASSES

from foca_dit.analysis.sampling import sample
from foca_dit.evaluation.trained import load

HERE = Path(__file__).parent


def judge(
    folder: Path,
    classifier: Classifier,
    images: int,
    steps: int,
    guidance_scale: float,
    seed: int,
) -> dict:
    """Samples `images` garments, classes in turn, and returns the share recognised, per class."""
    model, scheduler = load(folder)
    labels = torch.arange(images) % len(CLASSES)
    noise = torch.randn(images, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    hits = []
    for start in range(0, images, 100):
        part = slice(start, start + 100)
        garments = sample(model, scheduler, noise[part], labels[part], steps, guidance_scale)
        hits.append(classifier(garments.clamp(-1, 1)).argmax(1) == labels[part])
        print(f"{start + len(hits[-1])}/{images}", flush=True)
    hit = torch.cat(hits).float()
    by_class = {name: round(hit[labels == i].mean().item(), 3) for i, name in enumerate(CLASSES)}
    return {
        "images": images,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "recognised": round(hit.mean().item(), 4),
        "by_class": by_class,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=HERE / "weights")
    parser.add_argument("--classifier", type=Path, default=HERE / "weights/classifier")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance-scale", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    args = parser.parse_args()
    with torch.inference_mode():
        classifier = Classifier.from_folder(args.classifier)
        result = judge(
            args.model, classifier, args.images, args.steps, args.guidance_scale, args.seed
        )
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
