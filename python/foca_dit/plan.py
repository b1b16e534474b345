"""`Plan`: everything a cache does in one generation, worked out beforehand as plain numbers.

An engine that cannot run Python loads a plan's JSON file and needs no knowledge of schemes: for
each step it finds either a transition table to commit with or weights to forecast with. The format
is described in docs/plan-format.md. (`foca_dit.tuned` holds plans fitted to one model.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foca_dit import schemes
from foca_dit.files import is_finite_number
from foca_dit.schedules import Schedule
from foca_dit.schemes.base import Scheme, Table, check_monotone, fault, require_int
from foca_kernels.schemas import MAX_HISTORY

FORMAT = "foca-plan"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Plan:
    """The tables of one feature (or of all features that share a schedule) for every step.

    Use `Plan.build` or `Plan.from_json`; the constructor checks that the parts fit together.

    Attributes:
        scheme: Name and parameters of the scheme, as `schemes.describe` gives them. Information
            only: the tables say all.
        history_size: K.
        tau: S times, strictly monotone.
        full_steps: The steps at which the feature is computed, from step 0.
        tables: One per step, float64: the transition [K, K + 1] at a full step, the weights [K]
            at a skipped one.
    """

    scheme: Mapping[str, Any]
    history_size: int
    tau: tuple[float, ...]
    full_steps: tuple[int, ...]
    tables: tuple[Table, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.scheme, Mapping) or not isinstance(self.scheme.get("name"), str):
            raise ValueError(fault("Plan", "scheme", "an object with a name", repr(self.scheme)))
        k = require_int("Plan", "history_size", self.history_size, 1)
        if k > MAX_HISTORY:
            raise ValueError(fault("Plan", "history_size", f"at most {MAX_HISTORY}", k))
        if not self.tau:
            raise ValueError(fault("Plan", "tau", "at least one time", "none"))
        check_monotone("Plan", self.tau)
        steps = range(len(self.tau))
        if (
            self.full_steps[:1] != (0,)
            or list(self.full_steps) != sorted(set(self.full_steps))
            or self.full_steps[-1] not in steps
        ):
            expected = f"increasing steps that start with 0 and stay below {len(self.tau)}"
            raise ValueError(fault("Plan", "full_steps", expected, list(self.full_steps)))
        if len(self.tables) != len(self.tau):
            raise ValueError(fault("Plan", "tables", f"{len(self.tau)} tables", len(self.tables)))
        for step in steps:
            table = self.tables[step]
            shape = (k, k + 1) if self.is_full(step) else (k,)
            if table.shape != shape:
                name, got = f"tables[{step}]", f"shape {list(table.shape)}"
                raise ValueError(fault("Plan", name, f"shape {list(shape)}", got))
            with np.errstate(over="ignore"):
                finite = np.isfinite(table.astype(np.float32)).all()
            if not finite:
                expected = "values that are finite in float32"
                raise ValueError(fault("Plan", f"tables[{step}]", expected, table.tolist()))
        if (old := self.tables[0][:, :-1]).any():
            expected = "a transition that reads no old history (its last column alone)"
            raise ValueError(fault("Plan", "tables[0]", expected, old.tolist()))

    @classmethod
    def build(
        cls,
        scheme: Scheme,
        schedule: Schedule,
        tau: Sequence[float],
        feature: int = 0,
    ) -> Plan:
        """Works out all tables.

        Args:
            scheme: The forecaster.
            schedule: The full steps; must not be adaptive.
            tau: The time of every step, strictly monotone; its length is the number of steps.
            feature: The feature that the schedule is asked for.

        Raises:
            TypeError, ValueError: The times are not monotone, the schedule is adaptive, or the
                scheme multiplies forecasts by factors (EOC), which a plan cannot hold.
        """
        description = schemes.describe(scheme.described)
        times = tuple(float(t) for t in tau)
        full_steps = schedule.full_steps(len(times), feature)
        tables: list[Table] = []
        anchors: list[int] = []
        for step in range(len(times)):
            if step in full_steps:
                anchors.append(step)
                tables.append(scheme.transition(times, anchors))
            else:
                tables.append(scheme.weights(times, anchors, step))
        return cls(description, scheme.history_size, times, full_steps, tuple(tables))

    @property
    def num_steps(self) -> int:
        """S, the number of steps."""
        return len(self.tau)

    def is_full(self, step: int) -> bool:
        """Whether the feature is computed at this step."""
        return step in self.full_steps

    def transition(self, step: int) -> Table:
        """The transition [K, K + 1] of a full step.

        Raises:
            ValueError: The step is not a full step of this plan.
        """
        if not self.is_full(step):
            raise ValueError(fault("Plan.transition", "step", "a full step", step))
        return self.tables[step]

    def weights(self, step: int) -> Table:
        """The weights [K] of a skipped step.

        Raises:
            ValueError: The step is not a skipped step of this plan.
        """
        if not 0 <= step < self.num_steps or self.is_full(step):
            raise ValueError(fault("Plan.weights", "step", "a skipped step", step))
        return self.tables[step]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._data() == other._data()

    def __hash__(self) -> int:
        return hash((self.tau, self.full_steps, self.history_size))

    def to_json(self, indent: int | None = None) -> str:
        """The plan as JSON text. All numbers are written so that they read back exactly."""
        return json.dumps(self._data(), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Reads a plan and checks it.

        Raises:
            ValueError: The text is no JSON, no plan, of another version, or inconsistent.
        """
        try:
            data = json.loads(text)
        except RecursionError:
            raise ValueError("Plan.from_json: expected a plan, got lists nested too deep") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"Plan.from_json: expected an object with format {FORMAT!r}")
        if data.get("version") != VERSION:
            got = data.get("version")
            raise ValueError(fault("Plan.from_json", "version", str(VERSION), repr(got)))
        for key in ("scheme", "history_size", "tau", "steps"):
            if key not in data:
                raise ValueError(fault("Plan.from_json", key, "a value", "none"))
        tau = tuple(_number(f"tau[{i}]", t) for i, t in enumerate(_list("tau", data["tau"])))
        full_steps: list[int] = []
        tables: list[Table] = []
        for i, entry in enumerate(_list("steps", data["steps"])):
            keys = set(entry) if isinstance(entry, dict) else set()
            if keys == {"transition"}:
                full_steps.append(i)
                rows = _list(f"steps[{i}]", entry["transition"])
                values = [_numbers(f"steps[{i}]", row) for row in rows]
                if len({len(row) for row in values}) > 1:
                    raise ValueError(
                        fault("Plan.from_json", f"steps[{i}]", "rows of one length", "others")
                    )
                tables.append(np.array(values, dtype=np.float64))
            elif keys == {"weights"}:
                values_1d = _numbers(f"steps[{i}]", entry["weights"])
                tables.append(np.array(values_1d, dtype=np.float64))
            else:
                expected = "an object with either 'transition' or 'weights'"
                raise ValueError(fault("Plan.from_json", f"steps[{i}]", expected, repr(entry)))
        size = data["history_size"]
        if isinstance(size, bool) or not isinstance(size, int):
            raise ValueError(fault("Plan.from_json", "history_size", "an integer", repr(size)))
        return cls(data["scheme"], size, tau, tuple(full_steps), tuple(tables))

    def _data(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "scheme": dict(self.scheme),
            "history_size": self.history_size,
            "tau": list(self.tau),
            "steps": [
                {"transition" if self.is_full(step) else "weights": table.tolist()}
                for step, table in enumerate(self.tables)
            ],
        }


def _list(name: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(fault("Plan.from_json", name, "a list", repr(value)))
    return value


def _numbers(name: str, value: object) -> list[float]:
    return [_number(name, v) for v in _list(name, value)]


def _number(name: str, value: object) -> float:
    if not is_finite_number(value):
        raise ValueError(fault("Plan.from_json", name, "finite numbers", repr(value)))
    return float(value)
