"""`foca-dit reproduce`: the paper's tables, run again by whoever holds the weights."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foca_dit.evaluation.paper_tables import PaperRow, PaperTable


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser."""
    parser = commands.add_parser(
        "reproduce",
        help="the paper's tables with its own protocols, published figures beside measured ones",
        description="Generates the samples of a table of the FoCa paper with every method that "
        "this project has, scores them with the libraries that the field uses, and prints the "
        "published figures beside. Needs the model's weights and a GPU. Samples and scores are "
        "kept: the same command goes on where it was interrupted. docs/reproduce.md explains it.",
    )
    parser.add_argument("table", choices=("table1", "table2", "table3", "table4"))
    parser.add_argument("--model", help="folder or Hub id of the pipeline (default: the paper's)")
    parser.add_argument(
        "--out", type=Path, default=Path("reproduce"), help="folder of samples and JSON"
    )
    parser.add_argument(
        "--prompts", type=Path, help="table 1: DrawBench; table 2: VBench_full_info.json"
    )
    parser.add_argument("--images", type=Path, help="table 4: folder of high-resolution images")
    parser.add_argument("--real", type=Path, help="table 3: folder of real images, for FID")
    parser.add_argument(
        "--upsampler", type=Path, metavar="FILE.py", help="table 4: has a function load(device)"
    )
    parser.add_argument("--rows", nargs="+", metavar="WORD", help="only methods with such a word")
    parser.add_argument("--limit", type=int, help="prompts, images or samples; default: all")
    parser.add_argument("--samples", type=int, default=1, help="per prompt (VBench asks for 5)")
    parser.add_argument("--batch", type=int, default=1, help="table 3: samples per call")
    parser.add_argument("--seed", type=int, default=0, help="of the first sample")
    parser.add_argument("--device", help="default: cuda if there is one")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--clip", help="of the CLIP score (openai/clip-vit-large-patch14)")
    for name in ("height", "width", "num-frames"):
        parser.add_argument(f"--{name}", type=int, help="default: the table's")
    parser.add_argument("--list", action="store_true", help="print the published rows, and stop")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generates, scores, prints."""
    from foca_dit.evaluation import paper_job, paper_run, tables
    from foca_dit.evaluation.paper_metrics import CLIP
    from foca_dit.evaluation.paper_tables import SOURCE, TABLES

    table = TABLES[int(args.table[-1])]
    rows = _chosen(table, args.rows)
    if args.list:
        _print_list(rows)
        return 0
    import torch
    from tqdm import tqdm

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    job = paper_job.Job(
        table=table,
        folder=args.out,
        prompts=paper_job.read_prompts(args.prompts) if args.prompts else (),
        images=paper_job.read_images(args.images) if args.images else (),
        samples=args.samples,
        limit=args.limit,
        batch=args.batch,
        seed=args.seed,
        device=device,
        clip=args.clip or CLIP,
        real=args.real,
        vbench_info=args.prompts if table.number == 2 else None,
        model=args.model or "",
        dtype=args.dtype if table.pipeline else "",
        upsampler=args.upsampler,
        arguments={
            name: value
            for name in ("height", "width", "num_frames")
            if (value := getattr(args, name)) is not None
        },
    )
    args.out.mkdir(parents=True, exist_ok=True)
    pipeline = _load(args, table, device)
    runnable = [row for row in rows if row.run is not None]
    with tqdm(total=len(runnable) * len(job.items), unit="sample") as bar:
        results = paper_run.run(job, pipeline, runnable, bar.write, bar.update)
    print(f"table {table.number}: {table.title}; published: {SOURCE}")
    print(tables.as_text(paper_run.lines(table, results)))
    print(f"written: {results.path}")
    return 0


def _chosen(table: PaperTable, words: Sequence[str] | None) -> list[PaperRow]:
    rows = [
        row
        for row in table.rows
        if not words or any(word.lower() in row.method.lower() for word in words)
    ]
    if not rows:
        listed = ", ".join(row.method for row in table.rows)
        raise ValueError(f"argument --rows: expected words out of: {listed}; got {words}")
    return rows


def _print_list(rows: Sequence[PaperRow]) -> None:
    from foca_dit.evaluation.paper_tables import COLUMNS

    for row in rows:
        figures = ", ".join(
            f"{COLUMNS[name][0]} {COLUMNS[name][1].format(value)}"
            for name, value in row.published.items()
        )
        how = "" if row.run is not None else " [published figures only]"
        print(f"{row.method}{how}: {figures or 'not in the paper'}")


def _load(args: argparse.Namespace, table: PaperTable, device: str) -> Any:
    """The pipeline, or for table 4 the user's upsampler."""
    if not table.pipeline:
        return _upsampler(args.upsampler, device)
    import diffusers
    import torch

    kind = getattr(diffusers, table.pipeline)
    dtype = getattr(torch, args.dtype)
    pipeline = kind.from_pretrained(args.model or table.model, dtype=dtype).to(device)
    if table.scheduler:
        scheduler = getattr(diffusers, table.scheduler)
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _upsampler(file: Path | None, device: str) -> Any:
    if file is None:
        raise ValueError(
            "argument --upsampler: expected a Python file with load(device), which returns an "
            "object with .transformer and .upsample(low, steps, generator): diffusers has no "
            "Inf-DiT (docs/reproduce.md)"
        )
    spec = importlib.util.spec_from_file_location("foca_dit_upsampler", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ValueError(f"argument --upsampler: expected a Python file, got {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(device)
