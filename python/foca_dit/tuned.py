"""A tuned plan: a plan and what it was tuned for. Written by `foca-dit tune`, loaded by
`FoCaCacheConfig(plan="file.json")`; docs/plan-format.md describes the file.

A plan's tables hold for one model, one sampler and one number of steps. Used with anything else it
would not fail, only forecast badly: so everything that can be compared is compared.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from foca_dit.files import write_whole
from foca_dit.plan import Plan
from foca_dit.schemes.base import Scheme, Table, fault

# bfloat16 keeps 8 bits: a timestep or a weight that went through it is off by 2^-9 at most.
HALF_PRECISION = 2.0**-8
SINGLE_PRECISION = 1e-5
PROBE_DISTANCE = 2.0**-6
PROBED_MATRICES, PROBED_VALUES = 8, 8


@dataclass(frozen=True)
class Target:
    """What a plan was tuned for.

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
    ) -> Target:
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

    def check(self, other: Target) -> None:
        """Compares with the model that the plan is to be used on.

        Raises:
            ValueError: It is another one; the message says in what.
        """
        for name, what in (
            ("model", "tuned for the class"),
            ("structure", "tuned for a model whose configuration has the fingerprint"),
        ):
            mine, got = getattr(self, name), getattr(other, name)
            if mine != got:
                raise ValueError(f"plan: {what} {mine}, got {got}: tune this model by itself")
        if other.sampler and self.sampler and other.sampler != self.sampler:
            raise ValueError(
                f"plan: tuned for the sampler {self.sampler}, got {other.sampler}: run foca-dit "
                "tune with this sampler"
            )
        if not _close_probe(self.probe, other.probe):
            raise ValueError(
                "plan: tuned for a model with other weights (the class and configuration agree): "
                "tune this model by itself"
            )


@dataclass(frozen=True, eq=False)
class TunedPlan:
    """A plan with its target, as one JSON file.

    Attributes:
        plan: full steps and tables; its tau is the step index.
        target: what it was tuned for.
        report: how it was tuned and what its check on other seeds gave. Information only.
    """

    plan: Plan
    target: Target
    report: Mapping[str, Any]

    def __post_init__(self) -> None:
        steps = self.plan.num_steps
        if len(self.target.timesteps) != steps:
            got = len(self.target.timesteps)
            raise ValueError(fault("TunedPlan", "timesteps", f"{steps} timesteps", got))
        if self.plan.tau != tuple(map(float, range(steps))):
            raise ValueError(fault("TunedPlan", "tau", "the step index", list(self.plan.tau)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file: whole or not at all."""
        data = json.loads(self.plan.to_json())
        data["tuned_for"] = {**asdict(self.target), "timesteps": list(self.target.timesteps)}
        data["report"] = dict(self.report)
        write_whole(path, json.dumps(data, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TunedPlan:
        """Reads a file and checks that it is consistent.

        Raises:
            OSError: It cannot be read.
            ValueError: It is no plan, or a plan that was not tuned for a model.
        """
        text = Path(path).read_text()
        try:
            plan = Plan.from_json(text)
        except ValueError as error:
            raise ValueError(f"plan {path}: {error}") from None
        data = json.loads(text)
        target = data.get("tuned_for")
        names = {field.name for field in fields(Target)}
        if not isinstance(target, dict) or set(target) != names:
            raise ValueError(
                f"plan {path}: expected an object 'tuned_for' with {sorted(names)}: only a plan "
                "written by foca-dit tune can be applied to a model by its file"
            )
        for name in ("timesteps", "probe"):
            if not isinstance(target[name], list) or not all(map(_is_number, target[name])):
                raise ValueError(f"plan {path}: '{name}': expected a list of finite numbers")
            target[name] = tuple(float(value) for value in target[name])
        for name in names - {"timesteps", "probe"}:
            if not isinstance(target[name], str):
                raise ValueError(f"plan {path}: '{name}': expected a string, got {target[name]!r}")
        return cls(plan, Target(**target), data.get("report", {}))

    def time(self, timestep: float) -> float:
        """The step that a model's timestep belongs to: the plan's time variable.

        Raises:
            ValueError: It is not one of the plan's: another sampler, shift or number of steps.
        """
        known = np.asarray(self.target.timesteps)
        step = int(np.argmin(np.abs(known - timestep)))
        limit = (HALF_PRECISION if _is_half(timestep) else SINGLE_PRECISION) * abs(timestep)
        if not abs(known[step] - timestep) <= max(limit, 1e-9):
            raise ValueError(
                f"plan: tuned for {len(known)} steps of {self.target.sampler or 'a sampler'} with "
                f"timesteps {known[0]:g}, {known[min(1, len(known) - 1)]:g}, .. {known[-1]:g}; got "
                f"timestep {timestep:g}: use the number of steps and the sampler that it was tuned "
                "for, or tune again"
            )
        return float(step)

    def check(self, model: Any, scheduler: Any = None) -> None:
        """Refuses a model or sampler that the plan was not tuned for.

        Raises:
            ValueError: It is another one; the message says in what.
        """
        self.target.check(Target.of(model, self.target.granularity, scheduler))

    @property
    def scheme(self) -> Tabulated:
        """The plan as a scheme."""
        return Tabulated(self.plan)


@dataclass(frozen=True, eq=False)
class Tabulated(Scheme):
    """A scheme that reads its tables from a plan in the place of computing them.

    Args:
        plan: the tables; its tau must be the step index.
    """

    plan: Plan

    name: ClassVar[str] = "tabulated"
    citation: ClassVar[str] = "weights by least squares: docs/tune.md"

    @property
    def order(self) -> int:
        return self.plan.history_size - 1

    @property
    def history_size(self) -> int:
        return self.plan.history_size

    @property
    def exact_degree(self) -> int:
        return 0

    def __repr__(self) -> str:
        return f"Tabulated({len(self.plan.full_steps)} of {self.plan.num_steps} full steps)"

    def transition(self, tau: Sequence[float], anchors: Sequence[int]) -> Table:
        self._check(tau, anchors[-1])
        if not self.plan.is_full(anchors[-1]):
            # Computed all the same, as the second step is while it is unsure whether a generation
            # has begun anew: the weights to come know nothing of it, so the history stays.
            return np.eye(self.history_size, self.history_size + 1)
        return self.plan.transition(anchors[-1])

    def weights(self, tau: Sequence[float], anchors: Sequence[int], step: int) -> Table:
        self._check(tau, step)
        if not {s for s in self.plan.full_steps if s < step} <= set(anchors):
            raise ValueError(fault("Tabulated", "anchors", "the plan's full steps", list(anchors)))
        return self.plan.weights(step)

    def _check(self, tau: Sequence[float], step: int) -> None:
        if step >= self.plan.num_steps or tau[step] != step:
            raise ValueError(
                "plan: expected a generation that starts at the plan's first timestep and leaves "
                f"none out, got the plan's step {tau[step]:g} as step {step}"
            )

    def _rows(self, tau: list[float], anchors: list[int]) -> Table:
        return self.plan.transition(anchors[-1])[1:]

    def _weights(self, tau: list[float], anchors: list[int], step: int) -> Table:
        return self.plan.weights(step)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


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
