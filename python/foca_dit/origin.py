"""What something was calibrated on: a model, a sampler and its steps.

Tuned plans and the files of GOC and EOC hold for one model, one sampler and one number of steps.
Used with anything else they would not fail, only forecast badly: so everything that can be compared
is compared, the model when the cache is applied and the timesteps as they come.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from foca_dit.clock import Clock
from foca_dit.files import is_finite_number

# bfloat16 keeps 8 bits: a timestep or a weight that went through it is off by 2^-9 at most.
HALF_PRECISION = 2.0**-8
SINGLE_PRECISION = 1e-5
PROBE_DISTANCE = 2.0**-6
PROBED_MATRICES, PROBED_VALUES = 8, 8

MADE_FOR = "foca_dit: this plan or scheme was calibrated for"
AGAIN = "calibrate again for this one (foca-dit tune, foca-dit calibrate)"


@dataclass(frozen=True)
class Origin:
    """What a plan or a calibrated scheme was made on.

    Attributes:
        model: class of the transformer.
        granularity: "module", "stack" or "output".
        sampler: class of the scheduler; "" if unknown.
        timesteps: the model's timestep at every step: this is what step count, shift and sampler
            come down to.
        structure: digest of the model's configuration.
        probe: some of the model's weights, to tell two models of one configuration apart.
    """

    model: str
    granularity: str
    sampler: str
    timesteps: tuple[float, ...]
    structure: str
    probe: tuple[float, ...]

    @classmethod
    def of(
        cls, model: Any, granularity: str, scheduler: Any = None, timesteps: Sequence[float] = ()
    ) -> Origin:
        """Describes a model.

        Args:
            model: a transformer with a diffusers configuration.
            granularity: what is to be cached in it.
            scheduler: the sampler, or None.
            timesteps: the model's timestep at every step, if known.
        """
        config = {k: v for k, v in dict(model.config).items() if not k.startswith("_")}
        text = json.dumps(config, sort_keys=True, default=str)
        return cls(
            model=type(model).__name__,
            granularity=granularity,
            sampler="" if scheduler is None else type(scheduler).__name__,
            timesteps=tuple(timesteps),
            structure=hashlib.sha256(text.encode()).hexdigest()[:16],
            probe=_probe(model),
        )

    def check(self, model: Any, granularity: str, scheduler: Any = None) -> None:
        """Refuses a model, sampler or granularity that it was not made on.

        Args:
            model: the one that is to be cached.
            granularity: what is to be cached in it.
            scheduler: its sampler, None if unknown.

        Raises:
            ValueError: It is another one; the message says in what.
        """
        other = Origin.of(model, granularity, scheduler)
        for name, what in (
            ("model", "the class"),
            ("structure", "a model whose configuration has the fingerprint"),
            ("granularity", "the granularity"),
        ):
            mine, got = getattr(self, name), getattr(other, name)
            if mine != got:
                raise ValueError(f"{MADE_FOR} {what} {mine}, got {got}: {AGAIN}")
        if other.sampler and self.sampler and other.sampler != self.sampler:
            raise ValueError(f"{MADE_FOR} the sampler {self.sampler}, got {other.sampler}: {AGAIN}")
        if not _close_probe(self.probe, other.probe):
            raise ValueError(
                f"{MADE_FOR} a model with other weights (the class and configuration agree): "
                f"{AGAIN}"
            )

    def step(self, timestep: float) -> int:
        """The step that a model's timestep belongs to.

        Raises:
            ValueError: It is not one of those known: another sampler, shift or number of steps.
        """
        known = np.asarray(self.timesteps)
        step = int(np.argmin(np.abs(known - timestep)))
        limit = (HALF_PRECISION if _is_half(timestep) else SINGLE_PRECISION) * abs(timestep)
        if not abs(known[step] - timestep) <= max(limit, 1e-9):
            raise ValueError(
                f"{MADE_FOR} {len(known)} steps of {self.sampler or 'a sampler'} with timesteps "
                f"{known[0]:g}, {known[min(1, len(known) - 1)]:g}, .. {known[-1]:g}; got timestep "
                f"{timestep:g}: use that number of steps and that sampler, or {AGAIN}"
            )
        return step

    def watched(self, clock: Clock) -> Clock:
        """The same clock, that refuses timesteps out of place."""

        def watched(timestep: float, step: int) -> float:
            known = self.step(timestep)
            # A sampler may stand at one timestep twice, or at two that half precision makes one.
            if known != step and not math.isclose(self.timesteps[known], self._at(step)):
                raise ValueError(
                    "foca_dit: expected a generation that starts at the first timestep that the "
                    "cache was calibrated for and leaves none out, got the calibrated step "
                    f"{known} as step {step}"
                )
            return clock(timestep, step)

        return watched

    def _at(self, step: int) -> float:
        return self.timesteps[step] if step < len(self.timesteps) else math.nan

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "timesteps": list(self.timesteps), "probe": list(self.probe)}

    @classmethod
    def from_dict(cls, data: Any) -> Origin:
        """The inverse of `as_dict`.

        Raises:
            ValueError: It is none.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(data, Mapping) or set(data) != names:
            raise ValueError(f"expected an object with {sorted(names)}")
        values = dict(data)
        for name in ("timesteps", "probe"):
            if not isinstance(values[name], list) or not all(map(is_finite_number, values[name])):
                raise ValueError(f"'{name}': expected a list of finite numbers")
            values[name] = tuple(float(value) for value in values[name])
        for name in names - {"timesteps", "probe"}:
            if not isinstance(values[name], str):
                raise ValueError(f"'{name}': expected a string, got {values[name]!r}")
        return cls(**values)


def _probe(model: Any) -> tuple[float, ...]:
    """Single weights out of matrices spread over the whole model; none if they cannot be read."""
    matrices = [
        parameter
        for _, parameter in sorted(model.named_parameters(), key=lambda named: named[0])
        if parameter.ndim >= 2 and parameter.is_floating_point() and not parameter.is_meta
    ]
    chosen = matrices[:: max(1, len(matrices) // PROBED_MATRICES)]
    values = []
    for matrix in chosen:
        flat = matrix.detach().reshape(-1)
        values += [float(v) for v in flat[:: max(1, flat.numel() // PROBED_VALUES)][:PROBED_VALUES]]
    return tuple(values)


def _is_half(value: float) -> bool:
    """Whether a number may have been rounded to bfloat16 or float16."""
    single = struct.unpack("<I", struct.pack("<f", value))[0]
    return single & 0xFFFF == 0 or float(np.float16(value)) == value


def _close_probe(mine: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two probes are of the same weights, up to their storage type; empty: cannot tell."""
    if not mine or not other:
        return True
    a, b = np.asarray(mine), np.asarray(other)
    if a.shape != b.shape:
        return False
    return float(np.linalg.norm(a - b)) <= PROBE_DISTANCE * float(np.linalg.norm(a)) + 1e-12
