"""Judges the video model: are its garments recognised, and do they move as the real clips do?

    python examples/fashion_dit/judge_video.py

samples clips, classes in turn, cuts the garment out of every frame and lets the classifier name it.
The same is done with clips made of test images: what the classifier makes of garments this small is
the mark to compare with. Motion is the path of the garment's centre of mass.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from classifier import Classifier
from data import CLASSES, DEFAULT_FOLDER, IMAGE_SIZE, load_fashion_mnist
from moving import moving_clips

from foca_dit.evaluation.trained import load_trained

HERE = Path(__file__).parent


def centres(clips: torch.Tensor) -> torch.Tensor:
    """Centres of mass [n, F, 2], x first, in pixels, of clips [n, 1, F, H, W]."""
    mass = (clips[:, 0] + 1).clamp_min(0)
    total = mass.sum((2, 3)).clamp_min(1e-6)
    x = (mass.sum(2) * torch.arange(mass.shape[3])).sum(2) / total
    y = (mass.sum(3) * torch.arange(mass.shape[2])).sum(2) / total
    return torch.stack([x, y], 2)


def cut_out(clips: torch.Tensor) -> torch.Tensor:
    """The garments at twice the size, around their centres of mass [n * F, 1, 28, 28]."""
    clips, size = clips.clamp(-1, 1), clips.shape[-1]
    offsets = (centres(clips).flatten(0, 1) - (size - 1) / 2) / (size / 2)
    zoom = IMAGE_SIZE / 2 / size
    theta = torch.zeros(len(offsets), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom
    theta[:, :, 2] = offsets
    grid = F.affine_grid(theta, [len(theta), 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    frames = clips.transpose(1, 2).flatten(0, 1) + 1
    return F.grid_sample(frames, grid, align_corners=False) - 1


@torch.inference_mode()
def judged(clips: torch.Tensor, labels: torch.Tensor, classifier: Classifier) -> dict[str, float]:
    """Share of frames that are recognised; speed, and its change from frame to frame, in pixels."""
    named = classifier(cut_out(clips)).argmax(1).view(len(clips), -1)
    velocity = centres(clips.clamp(-1, 1)).diff(dim=1)
    return {
        "recognised": round((named == labels[:, None]).float().mean().item(), 4),
        "speed": round(velocity.norm(dim=2).mean().item(), 3),
        "change_of_speed": round(velocity.diff(dim=1).norm(dim=2).median().item(), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=HERE / "weights-video")
    parser.add_argument("--classifier", type=Path, default=HERE / "weights/classifier")
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance-scale", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--draw", type=Path, help="write ten clips as a picture, a row each")
    args = parser.parse_args()
    classifier = Classifier.from_folder(args.classifier)
    setting = load_trained(args.model).setting(
        steps=args.steps, guidance_scale=args.guidance_scale, seed=args.seed, images=args.clips
    )
    clips = setting.draw().images
    images, labels = load_fashion_mnist("t10k", args.data)
    real = moving_clips(images[: args.clips], torch.Generator().manual_seed(args.seed))
    result = {
        "clips": args.clips,
        "steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "seed": args.seed,
        "generated": judged(clips, setting.labels, classifier),
        "real": judged(real, labels[: args.clips], classifier),
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    if args.draw:
        from PIL import Image

        rows = [torch.cat(list(clip[0].clamp(-1, 1)), 1) for clip in clips[: len(CLASSES)]]
        pixels = ((torch.cat(rows) + 1) * 127.5).byte().numpy()
        height, width = pixels.shape
        Image.fromarray(pixels).resize((4 * width, 4 * height), Image.NEAREST).save(args.draw)


if __name__ == "__main__":
    main()
