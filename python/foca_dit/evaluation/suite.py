"""Runs the rows one by one and keeps each as it comes, so that a run can be cut and resumed."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foca_dit.analysis.metrics import frame_psnr, mean_psnr, psnr, temporal_psnr
from foca_dit.evaluation.installed import INSTALLED
from foca_dit.evaluation.judge import Judge
from foca_dit.evaluation.masked import MASKED
from foca_dit.evaluation.metrics import SSIM_WINDOW, gaussian, ssim
from foca_dit.evaluation.moments import SETTING, MomentsFile, pool
from foca_dit.evaluation.online import ONLINE
from foca_dit.evaluation.own import ADAPTIVE, SOLVERS, UNIFORM
from foca_dit.evaluation.placed import PLACED
from foca_dit.evaluation.rival import Rival
from foca_dit.evaluation.setting import Absent, Outcome, Setting
from foca_dit.evaluation.trained import Trained
from foca_dit.files import read_json, write_whole

RIVALS: tuple[Rival, ...] = (
    *SOLVERS,
    *UNIFORM,
    *ADAPTIVE,
    *ONLINE,
    *MASKED,
    *PLACED,
    *INSTALLED,
)

FULL = "full run"
FORMAT = "foca-eval"
PACKAGES = ("torch", "diffusers", "cache-dit")

Row = dict[str, Any]


@dataclass(frozen=True)
class Selection:
    """What is to be measured.

    Attributes:
        budgets: full steps.
        images: per seed.
        seeds: of the noise.
        shifts: of the flow schedule; None: the sampler has none.
        steps: denoising steps of the full run.
        guidance_scale: classifier-free guidance; 1: none.
        reference_steps: steps of the run that `psnr_reference` compares with; None: no such run.
        rivals: the rows.
    """

    budgets: tuple[int, ...] = (18, 12, 9)
    images: int = 32
    seeds: tuple[int, ...] = (0,)
    shifts: tuple[float | None, ...] = (1.0,)
    steps: int = 50
    guidance_scale: float = 1.0
    reference_steps: int | None = None
    rivals: tuple[Rival, ...] = RIVALS

    def __post_init__(self) -> None:
        """Refuses what cannot work before anything is computed."""
        for name, values, least in (
            ("images", [self.images], 2),
            ("budgets", self.budgets, 1),
            ("steps", [self.steps], 3),
            ("reference_steps", [1 if (r := self.reference_steps) is None else r], 1),
        ):
            if not values or min(values) < least:
                raise ValueError(
                    f"eval: argument '{name}': expected at least {least}, got {values}"
                )
        if max(self.budgets) >= self.steps:
            raise ValueError(
                f"eval: argument 'budgets': expected fewer than {self.steps} steps, "
                f"got {max(self.budgets)}"
            )
        if not self.rivals:
            raise ValueError("eval: argument 'rivals': expected at least one row, got none")

    def rows(self) -> Iterator[tuple[Rival | None, Row]]:
        """All rows with what identifies them; the full run comes before the rivals it judges."""
        for shift in self.shifts:
            for seed in self.seeds:
                key = {
                    "shift": shift,
                    "seed": seed,
                    "steps": self.steps,
                    "images": self.images,
                    "guidance_scale": self.guidance_scale,
                    "reference_steps": self.reference_steps,
                }
                yield None, {**key, "row": FULL, "budget": self.steps}
                for rival in self.rivals:
                    for budget in self.budgets:
                        yield rival, {**key, "row": rival.name, "budget": budget}


def is_of(row: Row, key: Row) -> bool:
    """Whether a row is the one that a key of `Selection.rows` identifies."""
    return all(row.get(name) == value for name, value in key.items())


class Results:
    """The rows of a JSON file; written anew, whole, after each one.

    Args:
        path: the file.
        model: what identifies the model, so that rows of another one are refused.
        fresh: forget the rows that the file has.

    Raises:
        ValueError: the file is another kind of file, or about another model.
    """

    def __init__(self, path: Path, model: str, fresh: bool = False) -> None:
        self.path, self.model = path, model
        self.rows: list[Row] = []
        self.pooled: list[Row] = []
        self.moments = MomentsFile(path.with_suffix(".moments.safetensors"), fresh)
        if path.exists() and not fresh:
            data = read(path)
            if data["model"] != model:
                raise ValueError(
                    f"eval: {path} holds rows of another model ({data['model']}): name another "
                    "file, or forget them with --fresh"
                )
            self.rows, self.pooled = data["rows"], data.get("pooled", [])

    def known(self, key: Row) -> bool:
        """Whether a row is there."""
        return any(is_of(row, key) for row in self.rows)

    def add(self, row: Row) -> None:
        """Keeps a row."""
        self.rows.append(row)
        self._write()

    def pool(self, judge: Judge) -> None:
        """Keeps the FID over all seeds of every row that has several.

        What was worked out before stays where the moments are not at hand, or of fewer seeds.
        """
        best: dict[tuple[Any, ...], Row] = {}
        for row in (*self.pooled, *pool(self.rows, self.moments, judge)):
            key = tuple(row[name] for name in SETTING)
            if key not in best or len(row["seeds"]) >= len(best[key]["seeds"]):
                best[key] = row
        self.pooled = list(best.values())
        self._write()

    def _write(self) -> None:
        data = {"format": FORMAT, "model": self.model, "rows": self.rows, "pooled": self.pooled}
        write_whole(self.path, json.dumps(data, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """A file of results.

    Raises:
        ValueError: it is none.
    """
    data: Any = read_json(path)
    kinds = {"model": str, "rows": list}
    if (
        not isinstance(data, dict)
        or data.get("format") != FORMAT
        or not all(isinstance(data.get(key), kind) for key, kind in kinds.items())
    ):
        raise ValueError(f"eval: expected {path} to be a file of `foca-dit eval`")
    found: dict[str, Any] = data
    return found


def run(
    trained: Trained,
    selection: Selection,
    results: Results,
    judge: Judge | None = None,
    report: Callable[[str], Any] | None = None,
    tick: Callable[[], Any] | None = None,
) -> None:
    """Measures what the results do not hold yet.

    Args:
        trained: model and sampler.
        selection: what to measure.
        results: where rows go.
        judge: scores against the data; None: those columns stay empty.
        report: called with the name of every row before it runs.
        tick: called after every row, measured now or before.
    """
    memories: dict[float | None, dict[str, Any]] = {shift: {} for shift in selection.shifts}
    bench: tuple[Any, Setting, torch.Tensor, torch.Tensor | None] | None = None
    sources = environment()
    for rival, key in selection.rows():
        if not results.known(key):
            if report is not None:
                name = f"{key['row']}, {key['budget']} full steps"
                report(name if rival is not None else "full run")
            place = (key["shift"], key["seed"])
            if bench is None or bench[0] != place:
                setting = trained.setting(
                    key["shift"],
                    steps=selection.steps,
                    guidance_scale=selection.guidance_scale,
                    seed=key["seed"],
                    images=selection.images,
                    memory=memories[key["shift"]],
                )
                started = setting.draw()
                far = _reference(setting, selection.reference_steps, results.model)
                bench = (place, setting, started.images, far)
            _, setting, full, far = bench
            group = FULL if rival is None else rival.group
            row = {**key, "group": group, "environment": sources}
            try:
                outcome = started if rival is None else rival.run(setting, key["budget"])
            except Absent as reason:
                results.add({**row, "absent": str(reason)})
            else:
                row |= _row(outcome, full, far)
                if judge is not None:
                    features = judge.features(outcome.images)
                    row |= judge.scores(features, setting.labels)
                    # With one seed too: the next command may add others to it.
                    results.moments.add(key, (len(features), *gaussian(features)))
                results.add(row)
        if tick is not None:
            tick()
    if judge is not None:
        results.pool(judge)


def _row(outcome: Outcome, full: torch.Tensor, far: torch.Tensor | None) -> Row:
    images, cost, count = outcome.images, outcome.cost, len(outcome.images)
    row: Row = {
        "full_steps": cost.full_steps / outcome.batches,
        "attention_steps": cost.attention / max(cost.blocks, 1) / outcome.batches,
        "psnr": psnr(images, full),
        "psnr_each": mean_psnr(images, full),
        "gflops_per_image": cost.flops / count / 1e9,
        "seconds": cost.seconds,
        "nbytes": outcome.nbytes,
        "details": outcome.details,
    }
    if images.dim() == 5:  # clips
        row["frame_psnr"] = [_plain(value) for value in frame_psnr(images, full)]
        row["temporal_psnr"] = temporal_psnr(images, full)
    elif min(images.shape[2:]) >= SSIM_WINDOW:
        row["ssim"] = ssim(images, full)
    if far is not None:
        row["psnr_reference"] = psnr(images, far)
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    """JSON has no infinity: equal images have no PSNR."""
    return None if isinstance(value, float) and value == float("inf") else value


def _reference(setting: Setting, steps: int | None, model: str) -> torch.Tensor | None:
    """The same noise in many more steps; kept in the user's cache directory, for it is slow."""
    if steps is None:
        return None
    parts = (model, setting.shift, steps, setting.guidance_scale, setting.seed, setting.images)
    file = cache_folder() / ("eval-" + "-".join(str(part) for part in parts) + ".pt")
    if file.exists():
        kept: torch.Tensor = torch.load(file, weights_only=True)
        return kept
    images = setting.draw(steps=steps).images
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        torch.save(images.clone(), part)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return images


def cache_folder() -> Path:
    """Where slow reference runs are kept: $XDG_CACHE_HOME/foca-dit, or ~/.cache/foca-dit."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "foca-dit"


def fingerprint(model: torch.nn.Module) -> str:
    """Tells models apart: class, number of parameters, and the sum of all of them."""
    total = sum(float(p.detach().double().sum()) for p in model.parameters())
    count = sum(p.numel() for p in model.parameters())
    return f"{type(model).__name__}-{count}-{total:.6g}"


def environment() -> dict[str, Any]:
    """Where a row was measured."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        **versions,
    }


def choose(words: Sequence[str]) -> tuple[Rival, ...]:
    """The row of that very name, or else those whose names contain the word, whatever the case.

    Raises:
        ValueError: a word that is in no name; the message lists all names.
    """
    chosen: set[str] = set()
    for word in words:
        names = [rival.name for rival in RIVALS if word.lower() == rival.name.lower()]
        names = names or [rival.name for rival in RIVALS if word.lower() in rival.name.lower()]
        if not names:
            listed = "\n  ".join(rival.name for rival in RIVALS)
            raise ValueError(
                f"eval: argument --rows: expected words out of the names below, got {word!r}\n"
                f"  {listed}"
            )
        chosen.update(names)
    return tuple(rival for rival in RIVALS if rival.name in chosen)
