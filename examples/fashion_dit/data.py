"""Fashion-MNIST, read from the four IDX files that the dataset is published as.

The Debian package `dataset-fashion-mnist` installs them (MIT licence, Zalando Research).
"""

import gzip
from pathlib import Path

import numpy as np
import torch

DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")
IMAGE_SIZE = 28
CLASSES = (
    "T-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
NULL_CLASS = len(CLASSES)  # the label that stands for "no class", for classifier-free guidance


def _read_idx(path: Path, header_bytes: int) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: install the Debian package dataset-fashion-mnist, "
            "or pass --data FOLDER with the four IDX files of Fashion-MNIST"
        )
    with gzip.open(path, "rb") as file:
        return np.frombuffer(file.read(), dtype=np.uint8, offset=header_bytes)


def load_fashion_mnist(
    split: str, folder: Path = DEFAULT_FOLDER
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loads one split, `train` (60,000 images) or `t10k` (10,000).

    Returns:
        images: float32 [n, 1, 28, 28] in [-1, 1]; labels: int64 [n] in 0..9.
    """
    pixels = _read_idx(folder / f"{split}-images-idx3-ubyte.gz", 16)
    labels = _read_idx(folder / f"{split}-labels-idx1-ubyte.gz", 8)
    images = torch.from_numpy(pixels.astype(np.float32)).view(-1, 1, IMAGE_SIZE, IMAGE_SIZE)
    return images / 127.5 - 1, torch.from_numpy(labels.astype(np.int64))
