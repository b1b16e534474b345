"""What of a paper's table is to be run: each sample with its input and its file's name."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foca_dit.evaluation.paper_metrics import CLIP
from foca_dit.evaluation.paper_tables import PaperTable
from foca_dit.files import read_json

LONGEST_NAME = 180
IMAGES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Job:
    """What is to be run of a table, and where it goes.

    Attributes:
        table: the table.
        folder: of all output.
        prompts: for tables with prompts.
        images: true images, for tables with images.
        samples: per prompt or image.
        limit: of prompts, images or classes' samples; None: all.
        batch: samples per call, for tables with classes.
        seed: of the first sample.
        device, clip, real, vbench_info: as in `Samples`.
        model: the pipeline's folder or Hub id; "": the table's.
        dtype: of the pipeline; "": its own.
        upsampler: the Python file, for tables without a pipeline.
        arguments: of every call of the pipeline, over those of the table.
    """

    table: PaperTable
    folder: Path
    prompts: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    samples: int = 1
    limit: int | None = None
    batch: int = 1
    seed: int = 0
    device: str = "cpu"
    clip: str = CLIP
    real: Path | None = None
    vbench_info: Path | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    dtype: str = ""
    upsampler: Path | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot work before anything is generated."""
        for name, value in (
            ("samples", self.samples),
            ("limit", 1 if self.limit is None else self.limit),
            ("batch", self.batch),
        ):
            if value < 1:
                raise ValueError(f"reproduce: argument '{name}': expected at least 1, got {value}")
        need = {"prompts": self.prompts, "images": self.images}
        if self.table.inputs in need and not need[self.table.inputs]:
            raise ValueError(
                f"reproduce: table {self.table.number} needs {self.table.inputs}: name them with "
                f"--{self.table.inputs}"
            )

    @property
    def items(self) -> list[Item]:
        """All samples of a row, in order."""
        table = self.table
        if table.inputs == "classes":
            count = self.limit or table.count or 1000
            return [Item(i, f"{i:05d}", {"class_labels": i % 1000}) for i in range(count)]
        found: Sequence[Any] = self.prompts if table.inputs == "prompts" else self.images
        items = []
        for number, source in enumerate(found[: self.limit]):
            for again in range(self.samples):
                index = number * self.samples + again
                if table.inputs == "images":
                    items.append(Item(index, f"{index:05d}", {}, reference=source))
                else:
                    # VBench finds videos by `<prompt>-<i>`; elsewhere a number is shorter.
                    named = table.suffix != ".png"
                    name = f"{file_name(source)}-{again}" if named else f"{index:05d}"
                    items.append(Item(index, name, {"prompt": source}, prompt=source))
        return items

    def settings(self) -> dict[str, Any]:
        """What must agree for rows to be comparable, as JSON data; None: not given."""
        items = self.items
        drawn = [(i.name, i.prompt, i.reference.name if i.reference else "") for i in items]
        return {
            "table": self.table.number,
            "model": self.model or self.table.model,
            "dtype": self.dtype,
            "upsampler": None if self.upsampler is None else str(self.upsampler),
            "count": len(items),
            "inputs": hashlib.sha256(json.dumps(drawn).encode()).hexdigest()[:16],
            "seed": self.seed,
            "arguments": {**self.table.arguments, **self.arguments},
            "clip": self.clip,
            "real": None if self.real is None else str(self.real),
        }


@dataclass(frozen=True)
class Item:
    """One sample: its number, its file's name without the ending, and what makes it."""

    index: int
    name: str
    call: dict[str, Any]
    prompt: str = ""
    reference: Path | None = None


def read_prompts(file: Path) -> tuple[str, ...]:
    """Prompts of a text file (one a line), a CSV or TSV (column "Prompts"), or a JSON list.

    JSON may hold strings, or objects with "prompt" or "prompt_en" (VBench's own list).

    Raises:
        ValueError: there are none, or the JSON is no such list.
    """
    if file.suffix == ".json":
        entries = read_json(file)
        if not isinstance(entries, list):
            raise ValueError(
                f"reproduce: expected prompts in {file}: a JSON list, got {type(entries).__name__}"
            )
        found = [_prompt(file, entry) for entry in entries]
    elif file.suffix in (".csv", ".tsv"):
        text = io.StringIO(file.read_text())
        reader = csv.DictReader(text, delimiter="\t" if file.suffix == ".tsv" else ",")
        names = [n for n in reader.fieldnames or () if n.lower() in ("prompt", "prompts")]
        found = [row[names[0]] for row in reader] if names else []
    else:
        found = file.read_text().splitlines()
    prompts = tuple(prompt.strip() for prompt in found if prompt and prompt.strip())
    if not prompts:
        raise ValueError(
            f"reproduce: expected prompts in {file}: one a line, a column 'Prompts' in a .csv or "
            ".tsv, or a .json list"
        )
    return prompts


def _prompt(file: Path, entry: Any) -> str:
    """The prompt of an entry of a JSON list; "" where it has none."""
    if isinstance(entry, dict):
        entry = entry.get("prompt_en", entry.get("prompt", ""))
    if not isinstance(entry, str):
        raise ValueError(
            f"reproduce: expected prompts in {file}: strings, or objects with 'prompt' or "
            f"'prompt_en', got {entry!r}"
        )
    return entry


def read_images(folder: Path) -> tuple[Path, ...]:
    """The images of a folder, by name."""
    return tuple(sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGES))


def file_name(text: str) -> str:
    """A text as the name of a file or folder; a long one ends in a digest of what is cut off."""
    name = text.replace("/", "_")
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
