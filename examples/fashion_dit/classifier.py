"""The judge of the generated garments: a small convolutional classifier of Fashion-MNIST.

    python examples/fashion_dit/classifier.py --out examples/fashion_dit/weights/classifier

trains it on the 60,000 training images and reports its accuracy on the 10,000 test images.
"""

import argparse
import json
from pathlib import Path

import torch
from data import CLASSES, DEFAULT_FOLDER, load_fashion_mnist
from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS = "classifier.safetensors"


def _stage(channels_in: int, channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]


class Classifier(nn.Module):
    """Images [n, 1, 28, 28] in [-1, 1] -> logits [n, 10]; `features` gives [n, 128]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*_stage(1, 32), *_stage(32, 64), *_stage(64, 128))
        self.head = nn.Linear(128, len(CLASSES))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images).mean(dim=(2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.dropout(self.features(images), 0.2, self.training))

    @classmethod
    def from_folder(cls, folder: Path) -> "Classifier":
        """Loads the shipped fp16 weights, as float32, in eval mode."""
        model = cls()
        weights = load_file(folder / WEIGHTS)
        model.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
        )
        return model.eval()


@torch.inference_mode()
def accuracy(model: Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images classified as their label."""
    guesses = torch.cat([model(batch).argmax(1) for batch in images.split(500)])
    return (guesses == labels).float().mean().item()


def train(epochs: int, folder: Path, seed: int) -> Classifier:
    torch.manual_seed(seed)
    images, labels = load_fashion_mnist("train", folder)
    model, batch = Classifier(), 256
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for epoch in range(epochs):
        for picked in torch.randperm(len(images)).split(batch)[: len(images) // batch]:
            # Shifts by up to two pixels: generated garments do not sit as exactly as real ones.
            dy, dx = torch.randint(-2, 3, (2,)).tolist()
            shifted = images[picked].roll((dy, dx), dims=(2, 3))
            loss = nn.functional.cross_entropy(model(shifted), labels[picked], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs}  loss {loss.item():.3f}", flush=True)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    trained = train(args.epochs, args.data, args.seed)
    weights = {k: v.half() if v.is_floating_point() else v for k, v in trained.state_dict().items()}
    save_file(weights, args.out / WEIGHTS)
    test = load_fashion_mnist("t10k", args.data)
    record = {
        "test_accuracy": round(accuracy(Classifier.from_folder(args.out), *test), 4),
        "epochs": args.epochs,
        "seed": args.seed,
        "torch": torch.__version__,
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(record)


if __name__ == "__main__":
    main()
