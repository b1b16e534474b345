"""`TunedPlan`: a `Plan` that was fitted to one model and sampler, and refuses any other.

Written by `foca-dit tune`, loaded by `FoCaCacheConfig(plan="file.json")`; docs/plan-format.md
describes the file. (`foca_dit.plan` holds the tables themselves, for any scheme and for export.)
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from foca_dit.files import write_whole
from foca_dit.origin import Origin
from foca_dit.plan import Plan
from foca_dit.schemes.base import Scheme, Table, fault


@dataclass(frozen=True, eq=False)
class TunedPlan:
    """A plan with its origin, as one JSON file.

    Attributes:
        plan: full steps and tables; its tau is the step index.
        origin: what it was tuned for.
        report: how it was tuned and what its check on other seeds gave. Information only.
    """

    plan: Plan
    origin: Origin
    report: Mapping[str, Any]

    def __post_init__(self) -> None:
        steps = self.plan.num_steps
        if len(self.origin.timesteps) != steps:
            got = len(self.origin.timesteps)
            raise ValueError(fault("TunedPlan", "timesteps", f"{steps} timesteps", got))
        if self.plan.tau != tuple(map(float, range(steps))):
            raise ValueError(fault("TunedPlan", "tau", "the step index", list(self.plan.tau)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file: whole or not at all."""
        data = json.loads(self.plan.to_json())
        data["tuned_for"] = self.origin.as_dict()
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
        try:
            origin = Origin.from_dict(data.get("tuned_for"))
        except ValueError as error:
            raise ValueError(
                f"plan {path}: 'tuned_for': {error}: only a plan written by foca-dit tune can be "
                "applied to a model by its file"
            ) from None
        return cls(plan, origin, data.get("report", {}))

    @property
    def scheme(self) -> Tabulated:
        """The plan as a scheme."""
        return Tabulated(self.plan, self.origin)


@dataclass(frozen=True, eq=False)
class Tabulated(Scheme):
    """A scheme that reads its tables from a plan in the place of computing them.

    Args:
        plan: the tables; its tau must be the step index.
        made_for: what it was tuned for; None: anything.
    """

    plan: Plan
    made_for: Origin | None = None

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

    @property
    def origin(self) -> Origin | None:
        return self.made_for

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
        lost = {s for s in self.plan.full_steps if s < step} - set(anchors)
        if lost:
            # An exception in a full step, caught by the caller, who went on with the next one.
            raise ValueError(
                f"plan: full step {min(lost)} was not completed, and the weights of step {step} "
                "need it: run that step again, or else start a new generation; nothing else helps"
            )
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
