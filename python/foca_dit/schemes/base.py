"""What every forecasting scheme has in common: the two tables and their checks.

A scheme is a *general linear method* (Butcher). It keeps K history tensors per feature and
describes all its arithmetic by two small tables of float64 scalars:

    commit (a full step):       H_new[p] = sum_q M[p, q] * v[q],   v = (H_old[0..K-1], F)
    forecast (a skipped step):  F^       = sum_p w[p] * H[p]

The tables depend on times and step numbers only, never on tensors. The kernels apply them; the
derivations are in docs/method.md.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]


class Scheme(ABC):
    """A forecaster of cached features, as tables of scalars.

    Concrete schemes are frozen dataclasses. They implement `_rows` and `_weights`, which are only
    asked with at least two anchors and checked arguments: with one anchor every scheme reuses it.

    Attributes:
        name: Key of the scheme in the registry (`foca_dit.schemes.get`).
        citation: Where the scheme comes from.
        order: The nominal order, counted as the scheme's source counts it.
        history_size: K, the number of history tensors kept per feature. Slot 0 is always the
            latest computed feature itself.
        exact_degree: The highest degree of polynomial trajectories (in tau) that is forecast
            exactly once the history is full; the error of a forecast is O(h^(exact_degree + 1)).
    """

    name: ClassVar[str]
    citation: ClassVar[str]

    @property
    @abstractmethod
    def order(self) -> int: ...

    @property
    @abstractmethod
    def history_size(self) -> int: ...

    @property
    @abstractmethod
    def exact_degree(self) -> int: ...

    def transition(self, tau: Sequence[float], anchors: Sequence[int]) -> Table:
        """The table M that folds a newly computed feature into the history.

        Args:
            tau: The time of every step up to `anchors[-1]`, strictly monotone; later entries are
                not read.
            anchors: The feature's full steps since the last reset, strictly increasing;
                `anchors[-1]` is the step being committed.

        Returns:
            float64 [K, K + 1]; the columns are the old history and the new feature. The first
            commit reads no old history and fills every slot: what cannot be known yet with zeros.

        Raises:
            TypeError, ValueError: An argument is not as described; the message names it.
        """
        times, steps = check_steps(type(self).__name__, tau, anchors, None)
        table = np.zeros((self.history_size, self.history_size + 1))
        table[0, -1] = 1.0
        if len(steps) > 1:
            table[1:] = self._rows(times, steps)
        return table

    def weights(self, tau: Sequence[float], anchors: Sequence[int], step: int) -> Table:
        """The weights w of the history in the forecast for a skipped step.

        Args:
            tau: The time of every step up to `step`, strictly monotone; later entries are not read.
            anchors: The feature's full steps since the last reset, strictly increasing.
            step: The step to forecast, later than `anchors[-1]`.

        Returns:
            float64 [K]. With a single anchor it is (1, 0, ..): reuse.

        Raises:
            TypeError, ValueError: An argument is not as described; the message names it.
        """
        times, steps = check_steps(type(self).__name__, tau, anchors, step)
        weights = np.zeros(self.history_size)
        weights[0] = 1.0
        if len(steps) > 1:
            weights[:] = self._weights(times, steps, int(step))
        return weights

    @property
    def origin(self) -> Any:
        """What it was calibrated on (`foca_dit.origin.Origin`); None: it holds for all models."""
        return None

    @property
    def described(self) -> Scheme:
        """The scheme whose name and parameters stand for this one's tables; its own, usually.

        Raises:
            TypeError: Tables are not all there is to it.
        """
        return self

    @property
    def made_in(self) -> str | None:
        """The time variable that it was calibrated in and needs; None: it holds in any."""
        return None

    def factor(self, feature: int, anchors: Sequence[int], step: int, device: Any = None) -> Any:
        """An elementwise factor of a forecast, beside the scalar weights.

        Only schemes with an offline prior have one (`foca_dit.calibration.eoc`).

        Args:
            feature: Index of the feature.
            anchors: Its full steps since the last reset.
            step: The step to forecast.
            device: Where the factor is wanted; None: wherever it is.

        Returns:
            A float32 tensor that broadcasts to the feature, or None: there is none.
        """
        return None

    @abstractmethod
    def _rows(self, tau: list[float], anchors: list[int]) -> Table:
        """Rows 1..K-1 of the transition, [K - 1, K + 1], for two or more anchors."""

    @abstractmethod
    def _weights(self, tau: list[float], anchors: list[int], step: int) -> Table:
        """The weights [K], for two or more anchors."""


def check_steps(
    owner: str, tau: Sequence[float], anchors: Sequence[int], step: int | None
) -> tuple[list[float], list[int]]:
    """Checks times and steps and returns them as plain Python numbers, times up to the last step.

    Raises:
        TypeError, ValueError: `{owner}: argument '{name}': expected .., got ..`.
    """
    if len(anchors) == 0:
        raise ValueError(fault(owner, "anchors", "at least one step", "none"))
    steps = [require_int(owner, f"anchors[{i}]", a, low=0) for i, a in enumerate(anchors)]
    for i in range(1, len(steps)):
        if steps[i] <= steps[i - 1]:
            raise ValueError(fault(owner, "anchors", "strictly increasing steps", steps))
    last = steps[-1]
    if step is not None:
        last = require_int(owner, "step", step)
        if last <= steps[-1]:
            raise ValueError(
                fault(owner, "step", f"a step after the last anchor {steps[-1]}", last)
            )
    if len(tau) <= last:
        raise ValueError(
            fault(owner, "tau", f"a time for every step up to {last}", f"{len(tau)} times")
        )
    times = [float(t) for t in tau[: last + 1]]
    check_monotone(owner, times, first=steps[0])
    return times, steps


def check_monotone(owner: str, tau: Sequence[float], first: int = 0) -> None:
    """Checks that the times from step `first` on are finite and strictly monotone."""
    for i in range(first, len(tau)):
        if not math.isfinite(tau[i]):
            raise ValueError(fault(owner, f"tau[{i}]", "a finite time", tau[i]))
    for i in range(first + 1, len(tau)):
        forward = tau[first + 1] > tau[first]
        if tau[i] == tau[i - 1] or (tau[i] > tau[i - 1]) != forward:
            raise ValueError(
                fault(
                    owner,
                    "tau",
                    "strictly monotone times",
                    f"{tau[i - 1]!r} then {tau[i]!r} at steps {i - 1} and {i}",
                )
            )


def fault(owner: str, argument: str, expected: str, got: object) -> str:
    """The one form of message for a bad argument."""
    return f"{owner}: argument '{argument}': expected {expected}, got {got}"


def require_int(
    owner: str, argument: str, value: object, low: int | None = None, high: int | None = None
) -> int:
    """Returns `value` as int, or raises naming the argument (bool is not an integer here)."""
    limits = "" if low is None else f" >= {low}" if high is None else f" from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(
            fault(owner, argument, f"an integer{limits}", f"{value!r} ({type(value).__name__})")
        )
    number = int(value)
    if (low is not None and number < low) or (high is not None and number > high):
        raise ValueError(fault(owner, argument, f"an integer{limits}", number))
    return number


def require_float(
    owner: str,
    argument: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    allow_infinity: bool = False,
) -> float:
    """Returns `value` as float in [low, high], or raises naming the argument."""
    expected = "a number" if allow_infinity else "a finite number"
    if low > -math.inf:
        expected += f" >= {low:g}" if high == math.inf else f" from {low:g} to {high:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(fault(owner, argument, expected, f"{value!r} ({type(value).__name__})"))
    number = float(value)
    finite = math.isfinite(number) or (allow_infinity and math.isinf(number))
    if not finite or not low <= number <= high:
        raise ValueError(fault(owner, argument, expected, number))
    return number


def require_choice(owner: str, argument: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises, naming the argument, unless `value` is one of `choices`."""
    if value not in choices:
        listed = " or ".join(repr(c) for c in choices)
        raise ValueError(fault(owner, argument, listed, repr(value)))
