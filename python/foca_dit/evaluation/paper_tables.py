"""The tables of the FoCa paper as data: what was published, and how a row is run again.

Published figures are from Zheng et al., Forecast then Calibrate, arXiv:2508.16211, tables 1 to 4.
Our copy of table 1 has lost its column of CLIP scores but for one figure. Rows whose `run` is None
cache in another way (they choose tokens, train a mask, or have a threshold that depends on their
own code): they stand beside ours with their published figures alone.

The paper names intervals and no warm-ups. Those here are the ones whose number of full steps gives
the published FLOPs; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from foca_dit import schemes
from foca_dit.config import FoCaCacheConfig
from foca_dit.schedules import Adaptive, Interval, Schedule

SOURCE = "arXiv:2508.16211"

COLUMNS: dict[str, tuple[str, str]] = {
    "seconds": ("latency s", "{:.2f}"),
    "tflops": ("TFLOPs", "{:.2f}"),
    "flops_ratio": ("FLOPs speedup", "{:.2f}x"),
    "image_reward": ("ImageReward", "{:.4f}"),
    "clip_score": ("CLIP score", "{:.3f}"),
    "vbench": ("VBench %", "{:.2f}"),
    "fid": ("FID", "{:.2f}"),
    "is": ("IS", "{:.2f}"),
    "psnr": ("PSNR dB", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
}
"""What a row may hold, in the order of the table: title and format."""


@dataclass(frozen=True)
class Run:
    """How a row is generated.

    Attributes:
        steps: denoising steps; None: those of the table.
        scheme: the forecaster; None: no cache.
        schedule: the full steps.
        adaptive: full steps of the preset `default`, in the place of scheme and schedule.
    """

    steps: int | None = None
    scheme: schemes.Scheme | None = None
    schedule: Schedule | None = None
    adaptive: int | None = None

    @property
    def config(self) -> FoCaCacheConfig | None:
        """What to apply to the model, or None."""
        if self.adaptive is not None:
            return FoCaCacheConfig(schedule=Adaptive(budget=self.adaptive))
        if self.scheme is None:
            return None
        return FoCaCacheConfig(
            scheme=self.scheme, schedule=self.schedule, granularity="module", time="step"
        )

    def full_steps(self, steps: int) -> int:
        """How many steps are computed of a table of so many."""
        if self.adaptive is not None:
            return self.adaptive
        steps = self.steps or steps
        return steps if self.schedule is None else len(self.schedule.full_steps(steps))


@dataclass(frozen=True)
class PaperRow:
    """One row.

    Attributes:
        method: its name, as published.
        published: figures by column; empty: the row is ours.
        run: how to generate it; None: its published figures are all there is.
    """

    method: str
    published: Mapping[str, float] = field(default_factory=dict)
    run: Run | None = None


@dataclass(frozen=True)
class PaperTable:
    """One table, with the protocol that makes it.

    Attributes:
        number: in the paper.
        title: what it shows.
        pipeline: diffusers' class; "": a file of the user's (`--upsampler`).
        model: id on the Hugging Face Hub.
        estimated_as: key of `foca_dit.adapters.published.PUBLISHED` for the FLOPs; "": unknown.
        inputs: "prompts", "classes" or "images": what a sample is made from.
        count: samples as published; None: one for every prompt or image.
        suffix: of the files that hold samples.
        metrics: keys of `foca_dit.evaluation.paper_metrics.METRICS`.
        rows: in the paper's order, ours last.
        steps: denoising steps of the full run.
        scheduler: diffusers' class, in the place of the pipeline's own; "": its own.
        arguments: of every call of the pipeline.
    """

    number: int
    title: str
    pipeline: str
    model: str
    estimated_as: str
    inputs: str
    count: int | None
    suffix: str
    metrics: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    steps: int = 50
    scheduler: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)


def _fora(interval: int, warmup: int) -> Run:
    return Run(scheme=schemes.Reuse(), schedule=Interval(interval, warmup))


def _taylor(interval: int, warmup: int, order: int) -> Run:
    """As its public code has it: published figures are that code's (docs/method.md, section 7)."""
    scheme = schemes.TaylorSeer(order, official=True, warmup=warmup)
    return Run(scheme=scheme, schedule=Interval(interval, warmup))


def _foca(interval: int, warmup: int) -> Run:
    return Run(scheme=schemes.FoCa(feedback=1.0), schedule=Interval(interval, warmup))


def _ours(*budgets: int) -> tuple[PaperRow, ...]:
    return tuple(
        PaperRow(f"this project's default, {n} full steps", {}, Run(adaptive=n)) for n in budgets
    )


def _rows(columns: tuple[str, ...], *rows: tuple[Any, ...]) -> tuple[PaperRow, ...]:
    """Rows of (method, run, figures in the columns' order; None: not legible)."""
    return tuple(
        PaperRow(
            method,
            {c: v for c, v in zip(columns, figures, strict=True) if v is not None},
            run,
        )
        for method, run, *figures in rows
    )


_TABLE_1 = _rows(
    ("seconds", "tflops", "flops_ratio", "image_reward", "clip_score"),
    ("FLUX.1 [dev], 50 steps", Run(), 25.82, 3719.50, 1.0, 0.9898, None),
    ("60% steps", Run(30), 16.70, 2231.70, 1.67, 0.9663, None),
    ("Delta-DiT (N = 2)", None, 17.80, 2480.01, 1.50, 0.9444, None),
    ("Delta-DiT (N = 3)", None, 13.02, 1686.76, 2.21, 0.8721, None),
    ("34% steps", Run(17), 9.07, 1264.63, 3.13, 0.9453, None),
    ("Chipmunk", None, 12.72, 1505.87, 2.47, 0.9936, None),
    ("FORA (N = 3)", _fora(3, 2), 10.16, 1320.07, 2.82, 0.9776, None),
    ("ToCa (N = 6)", None, 13.16, 924.30, 4.02, 0.9802, None),
    ("DuCa (N = 5)", None, 8.18, 978.76, 3.80, 0.9955, None),
    ("TaylorSeer (N = 4, O = 2)", _taylor(4, 2, 2), 9.24, 1042.27, 3.57, 0.9857, None),
    ("FoCa (N = 5)", _foca(5, 3), 7.46, 893.54, 4.16, 1.0029, None),
    ("22% steps", Run(11), 6.04, 818.29, 4.55, 0.8183, None),
    ("FORA (N = 4)", _fora(4, 1), 8.12, 967.91, 3.84, 0.9730, None),
    ("ToCa (N = 8)", None, 11.36, 784.54, 4.74, 0.9451, None),
    ("DuCa (N = 7)", None, 6.74, 760.14, 4.89, 0.9757, None),
    ("TeaCache (l = 0.8)", None, 7.21, 892.35, 4.17, 0.8683, None),
    ("DBCache (F = 4, B = 4)", None, 6.96, 725.40, 5.12, 0.6286, None),
    ("TaylorSeer (N = 5, O = 2)", _taylor(5, 3, 2), 7.46, 893.54, 4.16, 0.9768, None),
    ("FoCa (N = 7)", _foca(7, 3), 6.36, 670.44, 5.54, 0.9891, None),
    ("FORA (N = 7)", _fora(7, 3), 7.71, 670.14, 5.55, 0.7418, None),
    ("ToCa (N = 12)", None, 10.34, 644.70, 5.77, 0.7155, None),
    ("DuCa (N = 10)", None, 9.22, 606.91, 6.13, 0.8382, None),
    ("TeaCache (l = 1.2)", None, 6.12, 669.27, 5.56, 0.7394, None),
    ("DBCache (F = 4, B = 2)", None, 6.53, 633.44, 5.87, 0.4858, None),
    ("TaylorSeer (N = 7, O = 2)", _taylor(7, 3, 2), 6.38, 670.44, 5.54, 0.9128, None),
    ("FoCa (N = 8)", _foca(8, 3), 5.88, 596.07, 6.24, 0.9502, 32.706),
)

# FoCa's 7.74 full steps of 50 are no whole number of them: 8, the nearest, cost 3 % more.
_TABLE_2 = _rows(
    ("seconds", "tflops", "flops_ratio", "vbench"),
    ("HunyuanVideo, original", Run(), 334.96, 29773.0, 1.0, 80.66),
    ("DDIM-22%", Run(11), 87.01, 6550.1, 4.55, 78.74),
    ("FORA (N = 5)", _fora(5, 1), 83.78, 5960.4, 5.00, 78.83),
    ("ToCa (N = 5)", None, 93.80, 7006.2, 4.25, 78.86),
    ("DuCa (N = 5)", None, 87.48, 6483.2, 4.62, 78.72),
    ("TeaCache (l = 0.4)", None, 70.43, 6550.1, 4.55, 79.36),
    ("TeaCache (l = 0.5)", None, 61.47, 5359.1, 5.56, 78.32),
    ("TaylorSeer (N = 7, O = 1)", _taylor(7, 1, 1), 72.76, 4611.3, 6.45, 79.37),
    ("FoCa (N = 7)", _foca(7, 1), 72.18, 4611.3, 6.45, 79.68),
)

# The order of TaylorSeer is not given here; 2 is that of table 1.
_TABLE_3 = _rows(
    ("seconds", "tflops", "flops_ratio", "fid", "is"),
    ("DDIM-50 steps", Run(), 0.428, 23.74, 1.0, 2.32, 241.25),
    ("DDIM-25 steps", Run(25), 0.230, 11.87, 2.00, 3.18, 232.01),
    ("L2C (NFE = 30)", None, 0.281, 11.55, 2.05, 2.61, 237.83),
    ("Delta-DiT (N = 2)", None, 0.246, 18.04, 1.31, 2.69, 225.99),
    ("Delta-DiT (N = 3)", None, 0.173, 16.14, 1.47, 3.75, 207.57),
    ("FoCa (N = 2)", _foca(2, 2), 0.238, 12.35, 1.92, 2.17, 239.94),
    ("DDIM-20 steps", Run(20), 0.191, 9.49, 2.50, 3.81, 221.43),
    ("FORA (N = 3)", _fora(3, 2), 0.197, 8.58, 2.77, 3.55, 229.02),
    ("ToCa (N = 3)", None, 0.216, 10.23, 2.32, 2.87, 235.21),
    ("DuCa (N = 3)", None, 0.208, 9.58, 2.48, 2.88, 233.37),
    ("SmoothCache (alpha = 0.22)", None, 0.251, 8.57, 2.77, 4.15, 231.71),
    ("TaylorSeer (N = 3)", _taylor(3, 2, 2), 0.248, 8.56, 2.77, 2.35, 236.22),
    ("FoCa (N = 3)", _foca(3, 2), 0.250, 8.56, 2.77, 2.25, 237.70),
    ("DDIM-12 steps", Run(12), 0.128, 5.70, 4.17, 7.80, 184.50),
    ("FORA (N = 5)", _fora(5, 2), 0.149, 5.24, 4.53, 6.58, 193.01),
    ("ToCa (N = 6)", None, 0.163, 6.34, 3.75, 6.55, 189.53),
    ("DuCa (N = 5)", None, 0.154, 6.27, 3.78, 6.06, 198.46),
    ("TaylorSeer (N = 5)", _taylor(5, 2, 2), 0.186, 5.24, 4.53, 2.74, 231.42),
    ("FoCa (N = 5)", _foca(5, 2), 0.183, 5.24, 4.53, 2.60, 230.76),
)

# The published shares of the full FLOPs (0.36 and 0.32) fit no uniform count of full steps, for
# the embedding of the low-resolution image is computed at every step: these rows take the interval.
_TABLE_4 = _rows(
    ("seconds", "tflops", "flops_ratio", "psnr", "ssim"),
    ("Inf-DiT, original", Run(), 451.3, 124004, 1.0, 30.85, 0.829),
    ("AB-Cache", None, 197.2, 45177, 2.74, 29.77, 0.801),
    ("TaylorSeer (N = 4)", _taylor(4, 3, 2), 199.5, 45184, 2.74, 29.67, 0.805),
    ("FoCa (N = 5)", _foca(5, 3), 161.7, 39096, 3.17, 31.03, 0.814),
)

TABLES: dict[int, PaperTable] = {
    1: PaperTable(
        number=1,
        title="text to image, FLUX.1 [dev] on DrawBench",
        pipeline="FluxPipeline",
        model="black-forest-labs/FLUX.1-dev",
        estimated_as="flux.1-dev",
        inputs="prompts",
        count=None,
        suffix=".png",
        metrics=("image_reward", "clip_score"),
        rows=(*_TABLE_1, *_ours(12, 9, 8)),
        arguments={"height": 1024, "width": 1024, "guidance_scale": 3.5},
    ),
    2: PaperTable(
        number=2,
        title="text to video, HunyuanVideo on VBench",
        pipeline="HunyuanVideoPipeline",
        model="hunyuanvideo-community/HunyuanVideo",
        estimated_as="hunyuan-video",
        inputs="prompts",
        count=None,
        suffix=".mp4",
        metrics=("vbench",),
        rows=(*_TABLE_2, *_ours(8)),
        arguments={"height": 480, "width": 640, "num_frames": 65},
    ),
    3: PaperTable(
        number=3,
        title="class to image, DiT-XL/2 on ImageNet 256",
        pipeline="DiTPipeline",
        model="facebook/DiT-XL-2-256",
        estimated_as="dit-xl/2-256",
        inputs="classes",
        count=50_000,
        suffix=".png",
        metrics=("inception",),
        rows=(*_TABLE_3, *_ours(26, 18, 11)),
        scheduler="DDIMScheduler",
        arguments={"guidance_scale": 1.5},
    ),
    4: PaperTable(
        number=4,
        title="super-resolution from 512 to 2048 pixels, Inf-DiT on DIV8K",
        pipeline="",
        model="",
        estimated_as="",
        inputs="images",
        count=None,
        suffix=".png",
        metrics=("fidelity",),
        rows=(*_TABLE_4, *_ours(12)),
    ),
}
