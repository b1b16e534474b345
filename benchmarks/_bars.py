"""What the GPU suite must reach on an H200, and what its JSON files say of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Rows = list[dict[str, Any]]
FLUX, DIT = "flux.1-dev", "dit-xl/2-256"
KERNEL = "cuda-cpp"


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        what, bar: for the table.
        part: of the suite that measures it.
        read: what the part's measured rows say; an empty text: they do not have it.
    """

    what: str
    bar: str
    part: str
    read: Callable[[Rows], str]

    @property
    def command(self) -> str:
        return f"make bench-gpu PARTS={self.part}"


def select(rows: Rows, **wanted: Any) -> Rows:
    return [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]


def _share(row: dict[str, Any]) -> float:
    return float(row["gbs"] / row["copy_gbs"])


def _every_op(rows: Rows) -> str:
    large = [r for r in select(rows, provider=KERNEL) if r["gbs"] and r["elements"] >= 1 << 25]
    if not large:
        return ""
    worst = min(large, key=_share)
    name = f"{worst['case']}, {worst['dtype']}, {worst['elements']} elements"
    return f"{_share(worst):.0%} at the least ({name}); {len(large)} measurements"


def _collapsed(rows: Rows) -> str:
    of = {
        r["provider"]: r
        for r in select(rows, model=FLUX, part="collapsed")
        if "packed" not in r["case"]
    }
    if KERNEL not in of:
        return ""
    ours = of[KERNEL]
    ratios = [
        f"{row['ms'] / ours['ms']:.2f}x {name}"
        for name, row in of.items()
        if name in ("eager", "eager-in-place") or name.startswith("compile")
    ]
    return ", ".join([f"{_share(ours):.0%}", *ratios])


def _statistics(rows: Rows) -> str:
    def ms(n: int) -> float | None:
        found = select(rows, model=FLUX, provider=KERNEL, case=f"commit_ K=3 R={n}")
        return found[0]["ms"] if found else None

    with_stats, without = ms(2), ms(0)
    return f"{with_stats / without:.2f}x" if with_stats and without else ""


def _skipped(rows: Rows) -> str:
    parts = []
    for granularity in ("module", "stack"):
        for row in select(rows, model=FLUX, case=f"skipped step, {granularity}"):
            parts.append(f"{granularity}{row['provider'].removeprefix('foca')} {row['share']:.2%}")
    return "; ".join(parts)


def _end_to_end(rows: Rows) -> str:
    parts = []
    for row in select(rows, model=FLUX, mode="eager"):
        if row["provider"].startswith(("foca stack", "foca module")) and row["of_ideal"]:
            name = f"{row['provider'].removeprefix('foca ')}, N={row['interval']}"
            bytes_too = f" ({row['of_bytes']:.2f} of its bytes)" if "module" in name else ""
            parts.append(f"{name}: {row['of_ideal']:.2f}{bytes_too}")
    return "; ".join(parts)


def _peak(rows: Rows) -> str:
    at = [r for r in select(rows, model=FLUX, mode="eager") if r["peak_gb"]]
    interval = max((r["interval"] for r in at), default=0)
    chosen = [r for r in at if r["interval"] in (0, interval) and "output" not in r["provider"]]
    return "; ".join(f"{r['provider']} {r['peak_gb']:.1f} GB" for r in chosen)


def _launches(rows: Rows) -> str:
    parts = []
    for row in select(rows, model=FLUX, case="skipped step, module"):
        issued = ", ".join(f"{name} {count}" for name, count in row.get("issued", {}).items())
        if "graph" in row["provider"]:
            parts.append(f"as a graph: {issued or row['launches']}")
        else:
            parts.append(f"whole step, launches: {row['launches']}")
        for name, count, _ in row.get("by_name", []):
            if "residual" in name:
                parts.append(f"collapsed part: {count}")
    return "; ".join(parts)


def _dit(rows: Rows) -> str:
    full = select(rows, model=DIT, case="full step", provider="compile")
    steps = [
        r
        for r in rows
        if r.get("model") == DIT and r["case"] in ("skipped step, module", "skipped step, stack")
    ]
    if not full or not steps:
        return ""
    return "; ".join(
        f"{r['case'].split(', ')[1]}{r['provider'].removeprefix('foca')} "
        f"{r['ms'] / full[0]['ms']:.1%}"
        for r in steps
    )


BARS = (
    Bar("every op, at least 2^25 elements, aligned", ">= 92 % of the copy", "ops", _every_op),
    Bar(
        "collapsed skip, FLUX shape",
        ">= 90 % of the copy, >= 6x eager, not slower than `torch.compile`",
        "skip",
        _collapsed,
    ),
    Bar("commit with statistics", "<= 1.05x the same commit without", "commit", _statistics),
    Bar(
        "whole skipped step, FLUX, module / stack",
        "<= 2 % / <= 0.5 % of a full step",
        "skip",
        _skipped,
    ),
    Bar(
        "end to end over steps / full steps, FLUX, N = 5, 7, 8",
        "stack >= 0.97; module >= 0.90 and >= 0.95 of what its bytes allow",
        "e2e-flux",
        _end_to_end,
    ),
    Bar(
        "peak memory beside diffusers' TaylorSeer and cache-dit",
        "lower than either at module; stack within 1 % of uncached",
        "e2e-flux",
        _peak,
    ),
    Bar(
        "launches in a skipped step",
        "collapsed part 1; whole step one graph replay",
        "skip",
        _launches,
    ),
    Bar(
        "DiT-XL/2, batch 1 (two guidance branches)",
        "whole skipped step <= 5 % of a compiled full step",
        "skip",
        _dit,
    ),
)


def table_rows(rows_of: Callable[[str], Rows]) -> Iterator[list[str]]:
    """What, bar, measured, command.

    Args:
        rows_of: from the name of a part to its rows; none where it was not run.
    """
    for bar in BARS:
        rows = [row for row in rows_of(bar.part) if "ms" in row]
        yield [bar.what, bar.bar, bar.read(rows) or "not measured", f"`{bar.command}`"]
