"""EOC, the Error-Optimized Cache: an offline prior that corrects a forecast element by element.

A forecast Q of feature l at step k becomes `Q (1 + eta T)`, with a prior T of the feature's shape
from calibration samples (arXiv:2501.19243 from its abstract; our reading). Two priors:

    "difference"  T = mean(F_k - Q)                 as the paper's abstract is read
    "ratio"       T = sum Q (F_k - Q) / sum Q^2     ours: the least-squares factor of every element

The paper's judgment decides per feature and step whether the prior is used at all: only where it
lowers the error on calibration samples that it was not made from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from foca_dit import schemes, times
from foca_dit.calibration.calibrated import ORIGIN, Calibrated, read_origin
from foca_dit.calibration.record import Recorded, recorded
from foca_dit.clock import make_clock
from foca_dit.files import read_tensors, write_whole
from foca_dit.origin import Origin
from foca_dit.schedules import Schedule
from foca_dit.schemes.base import Scheme
from foca_dit.schemes.reuse import Reuse

PRIORS = ("difference", "ratio")
FORMAT = "foca-eoc"


@dataclass(frozen=True, eq=False)
class EOC(Calibrated):
    """A scheme whose forecasts are multiplied by `1 + eta T` where a judged prior exists.

    Tables are the base scheme's. The factor multiplies elementwise, so it is a full-size gate for
    the kernels and no row of a table.

    Args:
        base: the scheme that forecasts.
        factors: `1 + eta T` [1, ...], float32, by (feature, latest anchor, step).
        made_for: what the priors were made on; None: anything.
        time: the time variable that the base forecast in while they were made; another is refused.
            None: any, as for a base that reads no times.
    """

    factors: Mapping[tuple[int, int, int], torch.Tensor] = field(repr=False)
    time: str | None = field(default=None, kw_only=True)
    _moved: dict[Any, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    name: ClassVar[str] = "eoc"
    citation: ClassVar[str] = (
        "Qiu et al., Accelerating Diffusion Transformer via Error-Optimized Cache, arXiv:2501.19243"
    )

    @property
    def made_in(self) -> str | None:
        return self.time

    @property
    def described(self) -> Scheme:
        raise TypeError(
            "Plan.build: argument 'scheme': expected a scheme whose tables are all there is to it, "
            "got eoc: a plan cannot hold its factors"
        )

    def factor(
        self, feature: int, anchors: Sequence[int], step: int, device: Any = None
    ) -> torch.Tensor | None:
        key = (feature, anchors[-1], step)
        found = self.factors.get(key)
        if found is None or device in (None, found.device):
            return found
        if (key, device) not in self._moved:  # once, for all generations to come
            self._moved[key, device] = found.to(device)
        return self._moved[key, device]


def judged(
    forecasts: torch.Tensor, features: torch.Tensor, factor: torch.Tensor
) -> tuple[float, float]:
    """Squared errors on calibration samples without and with a factor.

    Args:
        forecasts, features: [B, ...], of the samples to judge on.
        factor: [1, ...].
    """
    without = float((forecasts - features).square().sum())
    return without, float((forecasts * factor - features).square().sum())


class _Sums:
    """What a prior is made of, for one feature and step."""

    def __init__(self) -> None:
        self.count = 0
        self.difference: Any = 0.0
        self.product: Any = 0.0
        self.square: Any = 0.0

    def add(self, forecasts: torch.Tensor, features: torch.Tensor) -> None:
        missing = features - forecasts
        self.count += len(features)
        self.difference = self.difference + missing.sum(0, keepdim=True)
        self.product = self.product + (forecasts * missing).sum(0, keepdim=True)
        self.square = self.square + forecasts.square().sum(0, keepdim=True)

    def prior(self, kind: str, ridge: float) -> torch.Tensor:
        if kind == "difference":
            mean: torch.Tensor = self.difference / self.count
            return mean
        ratio: torch.Tensor = self.product / (self.square + ridge * self.square.mean() + 1e-30)
        return ratio


def calibrate_eoc(
    model: torch.nn.Module,
    base: Scheme,
    schedule: Schedule,
    make: Sequence[Callable[[], Any]],
    judge: Sequence[Callable[[], Any]],
    granularity: str = "module",
    prior: str = "ratio",
    eta: float = 1.0,
    ridge: float = 1.0,
    scheduler: Any = None,
    done: Callable[[], Any] | None = None,
    time: str = "step",
) -> tuple[EOC, dict[str, Any]]:
    """Makes the priors from some generations and judges them on others.

    Args:
        model: a supported transformer, without a cache.
        base: the scheme to correct.
        schedule: the full steps that the cache will use.
        make, judge: generations of one resolution; the two sets must differ.
        granularity: what is cached.
        prior: "difference" or "ratio".
        eta: weight of the prior.
        ridge: shrinks the ratio where a feature is small: in units of its mean square.
        scheduler: the sampler of the generations, so that others are refused; None: unknown.
        done: called after each generation.
        time: the time variable that the base forecasts in, as in `FoCaCacheConfig`; the
            configuration must name the same one, unless the base is `Reuse`.

    Returns:
        The scheme, and a report: how many (feature, step) pairs are corrected, and the calibration
        error without and with.
    """
    if prior not in PRIORS:
        raise ValueError(
            f"calibrate_eoc: argument 'prior': expected one of {PRIORS}, got {prior!r}"
        )
    if time not in times.names():
        raise ValueError(
            f"calibrate_eoc: argument 'time': expected one of {times.names()}, got {time!r}"
        )
    if not make or not judge:
        raise ValueError("calibrate_eoc: expected generations to make priors from and to judge on")
    sums: dict[tuple[int, int, int], _Sums] = {}
    timesteps: tuple[float, ...] = ()
    errors: dict[tuple[int, int, int], tuple[float, float]] = {}
    factors: dict[tuple[int, int, int], torch.Tensor] = {}
    everything = recorded(
        "calibrate_eoc: arguments 'make', 'judge'", model, granularity, [*make, *judge], done
    )
    for number, one in enumerate(everything):
        timesteps = one.timesteps
        if number == len(make):
            factors = {key: 1 + eta * s.prior(prior, ridge) for key, s in sums.items()}
            sums.clear()
        for key, forecast, feature in _forecasts(one, base, schedule, time):
            if number < len(make):
                sums.setdefault(key, _Sums()).add(forecast, feature)
            else:
                before, after = judged(forecast, feature, factors[key])
                known = errors.get(key, (0.0, 0.0))
                errors[key] = (known[0] + before, known[1] + after)
    kept = {key: value.float() for key, value in factors.items() if errors[key][1] < errors[key][0]}
    report = {
        "prior": prior,
        "eta": eta,
        "judged": len(errors),
        "corrected": len(kept),
        "error_without": sum(e[0] for e in errors.values()),
        "error_with": sum(e[1] if key in kept else e[0] for key, e in errors.items()),
    }
    origin = Origin.of(model, granularity, scheduler, timesteps)
    needed = None if isinstance(base, Reuse) else time
    return EOC(base, kept, made_for=origin, time=needed), report


def _forecasts(
    one: Recorded, base: Scheme, schedule: Schedule, time: str
) -> Iterator[tuple[tuple[int, int, int], torch.Tensor, torch.Tensor]]:
    """((feature, latest anchor, step), forecast, true value) of every skipped step."""
    clock, steps = make_clock(time, one.levels), len(one.timesteps)
    tau = [clock(timestep, step) for step, timestep in enumerate(one.timesteps)]
    for _, feature, values in one.features():
        full = schedule.full_steps(steps, feature)
        forecasts = schemes.run_reference(base, values, full, tau)
        for step in range(steps):
            if step not in full:
                anchor = max(a for a in full if a < step)
                yield (feature, anchor, step), forecasts[step], values[step]


def tensors_beside(path: Path) -> Path:
    """Where the priors of the file `path` stand.

    Raises:
        ValueError: that would be the file itself.
    """
    tensors = path.with_suffix(".safetensors")
    if tensors == path:
        raise ValueError(
            f"save_eoc: argument 'path': expected a name for the JSON file that does not end in "
            f".safetensors (the tensors go beside it), got {path}"
        )
    return tensors


def save_eoc(scheme: EOC, path: Path, report: Mapping[str, Any]) -> None:
    """Writes `path` (JSON) and the priors beside it as `.safetensors`: the JSON last, and whole."""
    from safetensors.torch import save

    tensors = tensors_beside(path)
    named = {"/".join(map(str, key)): f.contiguous() for key, f in scheme.factors.items()}
    write_whole(tensors, save(named))
    data = {
        "format": FORMAT,
        "base": schemes.describe(scheme.base),
        "factors": tensors.name,
        "time": scheme.time,
        ORIGIN: None if scheme.made_for is None else scheme.made_for.as_dict(),
        "report": dict(report),
    }
    write_whole(path, json.dumps(data, indent=1) + "\n")


def load_eoc(path: Path, data: Mapping[str, Any]) -> EOC:
    """The inverse of `save_eoc`, for the JSON data of a file."""
    named = read_tensors(path.with_name(str(data["factors"])))
    factors = {}
    for name, tensor in named.items():
        feature, anchor, step = map(int, name.split("/"))
        factors[feature, anchor, step] = tensor
    base = schemes.build(data["base"])
    # Files without it were made in step indices.
    time = data.get("time", None if isinstance(base, Reuse) else "step")
    return EOC(base, factors, made_for=read_origin(data), time=time)
