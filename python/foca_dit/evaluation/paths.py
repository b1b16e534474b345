"""Where full steps stand: the best paths through a graph of cache segments.

Nodes are the steps 0..S, S being the finished sample; an edge (i, j) is a segment that computes
step i in full and reuses until j. A path of B edges from 0 to S is a schedule of B full steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from foca_dit.evaluation.setting import Absent

Edges = Mapping[tuple[int, int], float]
Key = TypeVar("Key")
Reached = dict[int, tuple[Any, tuple[int, ...]]]
"""By node: the best key, and the full steps of the path to it."""


def lexicographic_minimax(edges: Edges, steps: int, budget: int) -> list[int]:
    """The path of exactly `budget` edges whose largest error is smallest, then the next, and so on.

    Gao et al., LeMiCa, arXiv:2511.00090. Adding one edge to two paths keeps their order, so dynamic
    programming over (node, edges so far) is exact.

    Args:
        edges: errors by (i, j), 0 <= i < j <= steps.
        steps: S.
        budget: B.

    Returns:
        The full steps.

    Raises:
        Absent: the edges are too short for so few.
    """

    def add(path: tuple[float, ...], error: float) -> tuple[float, ...]:
        return tuple(sorted((*path, error), reverse=True))

    nothing: tuple[float, ...] = ()
    return _best(edges, steps, budget, nothing, add)


def shortest(edges: Edges, steps: int, budget: int, power: float) -> list[int]:
    """The path of exactly `budget` edges with the smallest sum of `error ** power`.

    Gao et al., MeanCache, arXiv:2601.19961, "peak-suppressed shortest path": a power above 1 weighs
    large errors more. Arguments and errors as for `lexicographic_minimax`.
    """

    def add(total: float, error: float) -> float:
        return float(total + error**power)

    return _best(edges, steps, budget, 0.0, add)


def _best(
    edges: Edges, steps: int, budget: int, empty: Key, add: Callable[[Key, float], Key]
) -> list[int]:
    into: dict[int, list[tuple[int, float]]] = {}
    for (start, stop), error in edges.items():
        into.setdefault(stop, []).append((start, error))
    reached: Reached = {0: (empty, ())}
    for _ in range(budget):
        following: Reached = {}
        for stop, sources in into.items():
            options = [
                (add(reached[start][0], error), (*reached[start][1], start))
                for start, error in sources
                if start in reached
            ]
            if options:
                following[stop] = min(options)
        reached = following
    if steps not in reached:
        raise Absent(f"no path of {budget} full steps: segments are too short or too many")
    return list(reached[steps][1])
