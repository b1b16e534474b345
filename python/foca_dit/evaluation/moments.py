"""FID over all seeds together: what each row's images leave behind for it.

An FID falls with the number of images, so the mean over seeds is not the FID of all their images.
That one needs the classifier features of all, or just their number, mean and covariance per seed,
which add up exactly. They stand in a safetensors file beside the rows, a single seed's too: a later
command can add others to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from foca_dit.evaluation.judge import Judge
from foca_dit.evaluation.metrics import Moments, frechet_distance, together
from foca_dit.files import read_tensors, write_whole

SETTING = ("shift", "steps", "images", "guidance_scale", "row", "budget")


class MomentsFile:
    """The moments of rows, by setting and seed.

    Args:
        path: a safetensors file, perhaps not there yet.
        fresh: forget what it has.

    Raises:
        ValueError: the file is cut off, or something else.
    """

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.path = path
        self.tensors: dict[str, torch.Tensor] = {}
        if path.exists() and not fresh:
            self.tensors = read_tensors(path)

    def add(self, row: Mapping[str, Any], moments: Moments) -> None:
        """Keeps one row's moments, on disk at once."""
        from safetensors.torch import save

        count, mean, cov = moments
        packed = torch.cat([torch.tensor([[count]]).double().expand(1, len(mean)), mean[None], cov])
        self.tensors[_name(row)] = packed.contiguous()
        write_whole(self.path, save(self.tensors))

    def of(self, row: Mapping[str, Any]) -> Moments | None:
        """One row's moments, None if they were not kept."""
        packed = self.tensors.get(_name(row))
        return None if packed is None else (int(packed[0, 0]), packed[1], packed[2:])


def _name(row: Mapping[str, Any]) -> str:
    return "|".join(str(row[key]) for key in (*SETTING, "seed"))


def pool(
    rows: Iterable[Mapping[str, Any]], file: MomentsFile, judge: Judge
) -> list[dict[str, Any]]:
    """The FID of the images of all seeds together, with those of the single seeds.

    Args:
        rows: of any settings.
        file: has the moments of those rows that enter.
        judge: has the real images' moments.

    Returns:
        One entry by setting and row with two seeds or more: the setting's keys, `seeds`,
        `classifier_fid` of `seeds x images` images, `classifier_fid_by_seed`.
    """
    groups: dict[tuple[Any, ...], dict[int, Moments]] = {}
    for row in rows:
        moments = file.of(row)
        if moments is not None:
            groups.setdefault(tuple(row[key] for key in SETTING), {})[row["seed"]] = moments

    def distance(moments: Moments) -> float:
        return frechet_distance(moments[1], moments[2], judge.mean, judge.cov)

    return [
        {
            **dict(zip(SETTING, key, strict=True)),
            "seeds": list(by_seed),
            "classifier_fid": distance(together(list(by_seed.values()))),
            "classifier_fid_by_seed": [distance(moments) for moments in by_seed.values()],
        }
        for key, by_seed in groups.items()
        if len(by_seed) > 1
    ]
