"""What the paper says of its figures, and what the measured series say of that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Series = Mapping[str, Sequence[float]]
PAPER = "FoCa c=1"


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        source: figure or statement of the paper (arXiv:2508.16211).
        claim: what it says.
        measured: what was found here, in words with numbers.
        agrees: whether that agrees.
    """

    source: str
    claim: str
    measured: str
    agrees: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def late_rise(values: Sequence[float]) -> float:
    """Mean over the last fifth of the run, by the mean over the three fifths in the middle."""
    usable = np.asarray(values, dtype=np.float64)
    n = len(usable)
    with np.errstate(all="ignore"):
        late, middle = np.nanmean(usable[n - n // 5 :]), np.nanmean(usable[n // 5 : n - n // 5])
    return float(late / middle) if middle > 0 else math.nan


def judge(
    interval_errors: Series,
    local_errors: Series,
    stiffness: Sequence[float],
    horizons: Mapping[int, Series],
    exponents: Mapping[str, float],
    ablation: Mapping[str, Mapping[int, float]],
    interval: int,
) -> list[Claim]:
    """The paper's claims beside the measurements.

    Args:
        interval_errors: relative error per step on a uniform interval, by scheme.
        local_errors: local truncation error per step, by scheme.
        stiffness: h L per step.
        horizons: by starting step, the error over the horizon by scheme.
        exponents: growth of the error with the horizon, by scheme.
        ablation: PSNR by interval, by scheme.
        interval: of `interval_errors`.
    """
    mean = {name: float(np.mean(values)) for name, values in interval_errors.items()}
    rivals = {n: v for n, v in mean.items() if n.startswith("TaylorSeer")}
    best = min(rivals, key=lambda n: rivals[n])
    last = horizons[max(horizons)]
    ends = {name: float(values[-1]) for name, values in last.items()}
    highest = max(name for name in ends if name.startswith("TaylorSeer"))
    rise, rise_h = late_rise(local_errors[PAPER]), late_rise(stiffness)
    heun = {n: ablation["FoCa c=1"][n] - ablation["BDF2 alone"][n] for n in ablation["BDF2 alone"]}
    worst = min(heun, key=lambda n: heun[n])
    return [
        Claim(
            "Figure 1b",
            "FoCa's prediction error stays below TaylorSeer's",
            f"interval {interval}, mean relative error: "
            + ", ".join(f"{name} {value:.3g}" for name, value in sorted(mean.items())),
            mean[PAPER] < rivals[best],
        ),
        Claim(
            "Figure 7",
            "Adding the Heun corrector to BDF2 improves every interval",
            "PSNR gained: " + ", ".join(f"N={n} {g:+.1f} dB" for n, g in sorted(heun.items())),
            heun[worst] > 0,
        ),
        Claim(
            "Figure 8a",
            "The local truncation error rises sharply in the late stage",
            f"last fifth over the middle: x{rise:.2f}",
            rise > 2,
        ),
        Claim(
            "Figure 8a",
            "Stiffness rises sharply in the late stage",
            f"last fifth over the middle: x{rise_h:.2f}",
            rise_h > 2,
        ),
        Claim(
            "Figure 8b",
            "Late in the run TaylorSeer's ten-step forecast diverges and FoCa's stays bounded",
            f"error after {len(last[PAPER])} steps from step {max(horizons)}: "
            + ", ".join(f"{name} {value:.3g}" for name, value in sorted(ends.items()))
            + f"; judged against {highest}",
            ends[PAPER] < ends[highest],
        ),
        Claim(
            "Proposition 1",
            "The error is bounded independently of the number of skipped steps",
            "error grows as (steps skipped)^p: "
            + ", ".join(f"{name} p={p:.2f}" for name, p in sorted(exponents.items())),
            exponents[PAPER] < 0.25,
        ),
    ]
