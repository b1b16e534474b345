"""Runs the rows of a paper's table: samples into folders, scores into JSON, both resumable."""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foca_dit.api import foca_cache
from foca_dit.config import FoCaCacheConfig
from foca_dit.estimate import plan_foca_cache
from foca_dit.evaluation.paper_job import Item, Job, file_name
from foca_dit.evaluation.paper_metrics import METRICS, Samples, columns_of, read_image
from foca_dit.evaluation.paper_tables import COLUMNS, PaperRow, PaperTable
from foca_dit.files import read_json, write_whole

FORMAT = "foca-reproduce"
TIMES = "seconds.csv"
SCALE = 4
"""Of the super-resolution: 512 to 2048 pixels."""

Report = Callable[[str], Any]


class PaperResults:
    """The rows of one table as JSON, written whole after each.

    Raises:
        ValueError: the file holds rows of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.rows: dict[str, dict[str, float]] = {}
        if path.exists():
            data = read_json(path)
            if not isinstance(data, dict) or data.get("format") != FORMAT:
                raise ValueError(f"reproduce: expected {path} to be a file of `foca-dit reproduce`")
            kept = data.get("settings")
            if not isinstance(kept, dict) or not _agree(kept, self.settings):
                raise ValueError(
                    f"reproduce: {path} holds rows of other settings ({kept}): name another --out"
                )
            self.settings = {k: kept[k] if v is None else v for k, v in self.settings.items()}
            self.rows = {row["method"]: row["measured"] for row in data["rows"]}

    def begin(self, table: PaperTable) -> None:
        """Writes the settings before anything is generated: samples alone do not tell theirs."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write(table)

    def add(self, table: PaperTable, method: str, measured: dict[str, float]) -> None:
        """Keeps a row."""
        self.rows[method] = measured
        self._write(table)

    def _write(self, table: PaperTable) -> None:
        rows = [
            {
                "method": row.method,
                "published": dict(row.published),
                "measured": self.rows[row.method],
            }
            for row in table.rows
            if row.method in self.rows
        ]
        data = {"format": FORMAT, "settings": self.settings, "rows": rows}
        write_whole(self.path, json.dumps(data, indent=1) + "\n")


def _agree(kept: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether settings are the same; real images may be named later, when samples are there."""
    return kept.keys() == asked.keys() and all(
        kept[key] == value or (key == "real" and None in (kept[key], value))
        for key, value in asked.items()
    )


def run(
    job: Job,
    pipeline: Any,
    rows: Sequence[PaperRow],
    report: Report = print,
    tick: Callable[[], Any] | None = None,
) -> PaperResults:
    """Generates and scores what is not there yet.

    Args:
        job: what and where.
        pipeline: a diffusers pipeline, or an upsampler (`docs/reproduce.md`).
        rows: of the job's table; those that cannot be run are passed over.
        report: takes sentences for the user.
        tick: called after every sample, generated now or before.
    """
    table = job.table
    results = PaperResults(job.folder / f"table{table.number}.json", job.settings())
    results.begin(table)
    samples = Samples(
        job.folder, (), device=job.device, clip=job.clip, real=job.real, vbench_info=job.vbench_info
    )
    usable = []
    for name in table.metrics:
        if (why := METRICS[name].missing(samples)) is not None:
            report(why)
        else:
            usable.append(name)
    for row in rows:
        if row.run is None:
            continue
        measured = dict(results.rows.get(row.method, {}))
        folder = job.folder / f"table{table.number}" / file_name(row.method)
        generate(job, pipeline, row, folder, tick)
        measured |= _latency(folder) | estimate(job, row)
        wanted = [name for name in usable if not set(METRICS[name].columns) <= set(measured)]
        if wanted:
            items = job.items
            of_row = replace(
                samples,
                folder=folder,
                files=tuple(folder / f"{item.name}{table.suffix}" for item in items),
                prompts=tuple(item.prompt for item in items),
                references=tuple(item.reference for item in items if item.reference),
            )
            for name in wanted:
                report(f"{row.method}: {', '.join(METRICS[name].columns)}")
                measured |= METRICS[name].compute(of_row)
        results.add(table, row.method, measured)
    return results


def generate(
    job: Job,
    pipeline: Any,
    row: PaperRow,
    folder: Path,
    tick: Callable[[], Any] | None = None,
) -> None:
    """Writes the samples of a row that are not in its folder yet."""
    assert row.run is not None
    items, suffix = job.items, job.table.suffix
    missing = [item for item in items if not (folder / f"{item.name}{suffix}").exists()]
    for _ in range(len(items) - len(missing)):
        if tick is not None:
            tick()
    if not missing:
        return
    if suffix == ".mp4" and not any(map(importlib.util.find_spec, ("imageio", "cv2"))):
        raise ValueError(
            f"reproduce: table {job.table.number} writes videos, and what writes them is missing: "
            "pip install imageio imageio-ffmpeg"
        )
    folder.mkdir(parents=True, exist_ok=True)
    times = folder.with_name(f"{folder.name}-{TIMES}")
    config = row.run.config
    with nullcontext() if config is None else foca_cache(pipeline, config):
        for batch in _batches(missing, job.batch if job.table.inputs == "classes" else 1):
            begun = time.perf_counter()
            drawn = _draw(job, pipeline, row, batch)
            seconds = (time.perf_counter() - begun) / len(batch)
            for item, sample in zip(batch, drawn, strict=True):
                write_sample(sample, folder / f"{item.name}{suffix}")
                with times.open("a") as log:
                    log.write(f"{item.index},{seconds:.4f}\n")
                if tick is not None:
                    tick()


def _draw(job: Job, pipeline: Any, row: PaperRow, batch: Sequence[Item]) -> Sequence[Any]:
    """The samples of one call: pictures, or lists of frames."""
    assert row.run is not None
    table, steps = job.table, row.run.steps or job.table.steps
    # On the CPU, so that the noise is the same on every device.
    generators = [torch.Generator().manual_seed(job.seed + item.index) for item in batch]
    if table.inputs == "images":
        reference = batch[0].reference
        assert reference is not None
        truth = read_image(reference)
        size = [n // SCALE for n in truth.shape[2:]]
        low = torch.nn.functional.interpolate(truth, size, mode="bicubic", antialias=True)
        high = pipeline.upsample(low.clamp(0, 1), steps, generators[0])
        return [_picture(high[0])]
    call = dict(batch[0].call)
    arguments = {**table.arguments, **job.arguments}
    if table.inputs == "classes":
        call = {"class_labels": [item.call["class_labels"] for item in batch]}
    generator = generators if table.inputs == "classes" else generators[0]
    output = pipeline(**call, **arguments, num_inference_steps=steps, generator=generator)
    drawn: Sequence[Any] = output.frames if hasattr(output, "frames") else output.images
    return drawn


def _picture(pixels: torch.Tensor) -> Any:
    from PIL import Image

    values = (pixels.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).numpy())


def write_sample(sample: Any, path: Path) -> None:
    """A picture as .png; a list of frames as .mp4 (by diffusers) or .gif. Whole, or not at all."""
    if path.suffix == ".mp4":
        from diffusers.utils import export_to_video

        part = path.with_name(f"part-{path.name}")
        try:
            export_to_video(list(sample), str(part), fps=24)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return
    content = io.BytesIO()
    if path.suffix == ".gif":
        frames = [_frame(frame) for frame in sample]
        frames[0].save(content, "GIF", save_all=True, append_images=frames[1:], duration=42)
    else:
        sample.save(content, "PNG")
    write_whole(path, content.getvalue())


def _frame(frame: Any) -> Any:
    from PIL import Image

    if not isinstance(frame, np.ndarray):
        return frame
    return Image.fromarray((frame.clip(0, 1) * 255).round().astype(np.uint8))


def estimate(job: Job, row: PaperRow) -> dict[str, float]:
    """FLOPs of one sample, from the published configuration on the meta device; none if unknown.

    Counted as two per multiplication and addition; papers differ in that, so that the ratio to the
    full run is the figure to compare.
    """
    table = job.table
    if not table.estimated_as:
        return {}
    assert row.run is not None
    arguments = {**table.arguments, **job.arguments}
    known = {"height": "height", "width": "width", "num_frames": "frames"}
    sizes = tuple((known[key], value) for key, value in arguments.items() if key in known)
    config = row.run.config
    granularity = None if config is None else config.resolve().granularity
    whole, skip = _flops(table.estimated_as, sizes, granularity)
    full = row.run.full_steps(table.steps)
    skipped = 0 if config is None else table.steps - full
    flops = full * whole + skipped * skip
    return {"tflops": flops / 1e12, "flops_ratio": table.steps * whole / flops}


@functools.cache
def _flops(
    model: str, sizes: tuple[tuple[str, int], ...], granularity: str | None
) -> tuple[float, float]:
    """Of a full and of a skipped step of a published model."""
    from foca_dit.adapters.published import PUBLISHED

    published = PUBLISHED[model]
    request = replace(published.request, **dict(sizes))
    config = FoCaCacheConfig(granularity=granularity)
    account = plan_foca_cache(published.build(), published.inputs(request), config).chosen
    return account.full_flops, account.skipped_flops


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _latency(folder: Path) -> dict[str, float]:
    """The median of the seconds per sample; the first ones are warm-up, which a median ignores."""
    times = folder.with_name(f"{folder.name}-{TIMES}")
    if not times.exists():  # samples that were brought from elsewhere
        return {}
    seconds = [float(line.split(",")[1]) for line in times.read_text().split()]
    return {"seconds": statistics.median(seconds)}


def lines(table: PaperTable, results: PaperResults) -> list[list[str]]:
    """The published and the measured figures, one above the other, for `tables.as_text`."""
    wanted = {"seconds", "tflops", "flops_ratio", *columns_of(table.metrics)}
    columns = [column for column in COLUMNS if column in wanted]
    rows = [["method", "", *(COLUMNS[column][0] for column in columns)]]
    for row in table.rows:
        for kind, values in (
            ("published", row.published),
            ("measured", results.rows.get(row.method, {})),
        ):
            if values:
                cells = [
                    COLUMNS[column][1].format(values[column]) if column in values else "-"
                    for column in columns
                ]
                rows.append([row.method, kind, *cells])
    return rows
