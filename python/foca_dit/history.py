"""The histories of a model's cached features in one guidance branch, and what is done with them.

Every feature has its own anchors (the steps at which it was computed), so features may be computed
at different steps: a mask over blocks, or a step that an exception cut short, need nothing special.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

import foca_kernels  # noqa: F401  (defines torch.ops.foca)
from foca_dit.config import Settings
from foca_dit.schedules import Decision, Outlook, Situation
from foca_dit.schedules.defects import DefectMeter, defect_rows
from foca_dit.stats import CacheStats

# The operators themselves: under torch.compile a Python wrapper would become a graph of its own.
_ops = torch.ops.foca


class FeatureHistories:
    """Histories of `count` features: K tensors each, folded and read by the `foca` ops.

    Args:
        settings: scheme, schedule and storage dtype.
        count: number of features L.
        stats: where commits and forecasts are counted.

    Attributes:
        allocations: how often a history was laid out in memory: as long as this stands, each is
            where it was.
    """

    def __init__(self, settings: Settings, count: int, stats: CacheStats) -> None:
        self._settings = settings
        self._stats = stats
        self._slots: list[list[torch.Tensor]] = [[] for _ in range(count)]
        self._anchors: list[tuple[int, ...]] = [() for _ in range(count)]
        self._due: list[int] = [0] * count
        self._dtypes: list[torch.dtype | None] = [None] * count
        self._meter = DefectMeter(count) if settings.schedule.uses_defects else None
        self._decided = -1
        self._tau: Sequence[float] = ()
        self._step = -1
        self._compute_all = False
        self.allocations = 0
        self._table: torch.Tensor | None = None
        # The tables of the open step, by anchors: features that were computed together share one.
        self._transitions: dict[tuple[int, ...], torch.Tensor] = {}
        self._weights: dict[tuple[int, ...], torch.Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held by all histories."""
        return sum(slot.nbytes for slots in self._slots for slot in slots)

    @property
    def anchors(self) -> list[tuple[int, ...]]:
        """Per feature, the steps at which it was computed since the last start."""
        return list(self._anchors)

    def begin(self, step: int, tau: Sequence[float], compute_all: bool = False) -> None:
        """Opens a step. `tau[i]` is the time variable of step i, for every i <= step.

        `compute_all` computes every feature whatever the schedule says.
        """
        self._step, self._tau, self._compute_all = step, tau, compute_all
        self._transitions.clear()
        self._weights.clear()

    def forget(self) -> None:
        """Forgets all features: each begins anew at the step that computes it next."""
        self._slots = [[] for _ in self._slots]
        self._anchors = [() for _ in self._anchors]

    def fits(self, feature: int, x: torch.Tensor) -> bool:
        """Whether a forecast of the feature has the shape of x."""
        return self._slots[feature][0].shape == x.shape

    def due(self, feature: int) -> bool:
        """Whether this feature is computed (True) or forecast (False) in the open step."""
        if self._compute_all or not self._anchors[feature]:
            return True
        return self._step >= self._due[feature] or self._anchors[feature][-1] == self._step

    @property
    def is_computed_early(self) -> bool:
        """Whether the open step is computed, every feature, though the schedule skips some."""
        return self._compute_all and any(
            anchors and due > self._step
            for anchors, due in zip(self._anchors, self._due, strict=True)
        )

    @property
    def steps_to_full(self) -> int:
        """How many steps there are from the open one to the next one that computes a feature."""
        return max(1, min(self._due) - self._step)

    def commit(self, feature: int, value: torch.Tensor) -> None:
        """Folds a computed feature into its history.

        A second commit of one feature in one step does nothing, so a step that failed half-way can
        simply be run again.

        Args:
            value: the computed feature, any shape; made contiguous if it is not.
        """
        anchors = self._anchors[feature]
        if anchors and anchors[-1] == self._step:
            return
        settings, value = self._settings, value.contiguous()
        slots = self._slots[feature]
        if slots and slots[0].shape != value.shape:
            slots, anchors = [], ()
        if not slots:
            self.allocations += 1
            dtype = settings.kept_as(value.dtype)
            slots = [
                torch.empty_like(value, dtype=dtype) for _ in range(settings.scheme.history_size)
            ]
        anchors = (*anchors, self._step)
        if anchors not in self._transitions:
            table = settings.scheme.transition(self._tau, anchors)
            if self._meter is not None:
                rows = defect_rows(settings.scheme, self._tau, anchors)
                table = np.concatenate([table, rows])
            self._transitions[anchors] = _host_table(table)
        sums = None
        if self._meter is not None:
            sums = self._meter.slot(self._step, feature, value.device)
        _ops.commit_(value, slots, self._transitions[anchors], sums)
        self._slots[feature], self._anchors[feature] = slots, anchors
        self._dtypes[feature] = value.dtype
        if self._meter is None:
            self._due[feature] = settings.schedule.next_full(anchors, feature)
        self._stats.commits += 1

    @property
    def undecided(self) -> bool:
        """Whether the open step was computed and the schedule has still to say what follows."""
        if self._meter is None or self._decided == self._step:
            return False
        return any(anchors and anchors[-1] == self._step for anchors in self._anchors)

    @property
    def decisive_anchors(self) -> tuple[int, ...]:
        """The anchors that a decision for all features goes by: those of the shortest history.

        Features that were never computed (a module that the model does not call) have no say.
        """
        return min(filter(None, self._anchors), key=len)

    def decide(self, outlook: Outlook) -> Decision:
        """Asks an adaptive schedule, once per full step, and follows it. A host read."""
        assert self._meter is not None
        settings, anchors = self._settings, self.decisive_anchors
        self._meter.read(getattr(settings.schedule, "reduce", None))
        defects = [self._meter.defects.get(anchor, math.nan) for anchor in anchors]
        seen = Situation(anchors, defects, outlook, settings.scheme.exact_degree)
        decision = settings.schedule.decide(seen)
        self._stats.host_reads += 1
        self._stats.nonfinite_defects += not decision.finite
        self._stats.note(anchors, decision.predicted)
        self.follow(decision)
        return decision

    def follow(self, decision: Decision) -> None:
        """Takes a decision over: all features are due at the same step."""
        self._due = [decision.next_full] * len(self._due)
        self._decided = self._step

    def forecast(self, feature: int) -> torch.Tensor:
        """The forecast of one feature at the open step: a new tensor of the feature's dtype."""
        self._stats.forecasts += 1
        value: torch.Tensor = _ops.forecast(self._slots[feature], self._weights_of(feature))
        if (factor := self._factor(feature)) is not None:
            value = value * factor
        return value.to(self._dtypes[feature])

    def add_forecasts_(
        self,
        x: torch.Tensor,
        gates: Sequence[torch.Tensor],
        features: Sequence[int] | None = None,
        index: tuple[slice, ...] = (),
    ) -> None:
        """The collapsed skip: `x += sum_l gate_l * forecast_l`, in one launch, in place.

        Args:
            x: [..., D], contiguous, of the shape of the features (or of their part `index`).
            gates: one per feature ([D], [1, 1, D], [B, 1, D] or [B, S, D]), or none for gates of 1.
            features: the features to add; None: all.
            index: which part of the features x is, e.g. one sample and a range of its tokens.
        """
        chosen = range(len(self._slots)) if features is None else features
        weights = self._rows(chosen)
        slots = [slot[index] if index else slot for i in chosen for slot in self._slots[i]]
        factors = [self._factor(i) for i in chosen]
        if any(factor is not None for factor in factors):
            gates = [
                self._full_gate(feature, gates[n] if gates else None, factors[n], x, index)
                for n, feature in enumerate(chosen)
            ]
        _ops.forecast_residual_(x, slots, weights, list(gates))

    @property
    def device(self) -> torch.device:
        """Where the histories are."""
        return next(slots[0].device for slots in self._slots if slots)

    @property
    def factored(self) -> bool:
        """Whether the scheme multiplies forecasts of the open step by factors."""
        return any(self._factor(feature) is not None for feature in range(len(self._slots)))

    def table(self) -> torch.Tensor:
        """The weights of all features at the open step, [L, K], on the host."""
        return torch.stack([self._weights_of(feature) for feature in range(len(self._slots))])

    @contextmanager
    def reading(self, table: torch.Tensor) -> Iterator[None]:
        """`add_forecasts_` inside takes its weights from this table [L, K], wherever it is."""
        self._table = table
        try:
            yield
        finally:
            self._table = None

    def _rows(self, features: Sequence[int]) -> torch.Tensor:
        if self._table is None:
            return torch.stack([self._weights_of(feature) for feature in features])
        if list(features) == list(range(len(self._table))):
            return self._table
        return torch.stack([self._table[feature] for feature in features])

    def _factor(self, feature: int) -> torch.Tensor | None:
        """The scheme's elementwise factor of this feature's forecast, on its device, or None."""
        slot = self._slots[feature][0]
        factor: torch.Tensor | None = self._settings.scheme.factor(
            feature, self._anchors[feature], self._step, slot.device
        )
        if factor is None:
            return None
        if factor.shape[1:] != slot.shape[1:]:
            raise ValueError(
                f"foca_dit: the scheme's factors: expected the size {list(slot.shape[1:])} of "
                f"feature {feature}, got {list(factor.shape[1:])}: calibrate at this resolution"
            )
        return factor

    def _full_gate(
        self,
        feature: int,
        gate: torch.Tensor | None,
        factor: torch.Tensor | None,
        x: torch.Tensor,
        index: tuple[slice, ...],
    ) -> torch.Tensor:
        """Gate times factor as one gate of x's size: the kernels take those too."""
        full = x.new_ones(x.shape, dtype=torch.float32)
        if gate is not None:
            full = full * gate
        if factor is not None:
            factor = factor.expand(self._slots[feature][0].shape)
            full = full * (factor[index] if index else factor)
        return full.contiguous()

    def _weights_of(self, feature: int) -> torch.Tensor:
        anchors = self._anchors[feature]
        if anchors not in self._weights:
            weights = self._settings.scheme.weights(self._tau, anchors, self._step)
            self._weights[anchors] = _host_table(weights)
        return self._weights[anchors]


def _host_table(values: np.ndarray) -> torch.Tensor:
    """Float64 coefficients as the small float32 host tensor that the ops take by value."""
    return torch.from_numpy(values.astype(np.float32))
