"""The states of one model that threads keep, one each, and the counts of threads that are gone."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, finalize

from foca_dit.stats import CacheStats

if TYPE_CHECKING:
    from foca_dit.state import CacheState


class Family:
    """What the states of one model have in common, one state in every thread. A copy has none yet.

    Attributes:
        states: those of the threads that are alive.
    """

    def __init__(self) -> None:
        self._states: WeakSet[CacheState] = WeakSet()
        self._departed: list[CacheStats] = []
        self._gone = CacheStats()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Family:
        copied: Family = memo.setdefault(id(self), Family())
        return copied

    @property
    def states(self) -> tuple[CacheState, ...]:
        with self._lock:
            return tuple(self._states)

    def take_in(self, state: CacheState) -> None:
        self.departed()  # folded now and then, where nobody asks for the counts
        with self._lock:
            self._states.add(state)
        # The counts outlive the thread. Finalizers run anywhere, so this one only appends.
        finalize(state, self._departed.append, state.stats).atexit = False

    def departed(self) -> CacheStats:
        """The counts of all threads that are gone."""
        with self._lock:
            while self._departed:
                self._gone.add(self._departed.pop())
            return replace(self._gone)
