"""Which test showed what of which model: the data of docs/support-matrix.md.

A test marked `supports("compile", ..)` is watched: every cache that it applies counts as one claim,
(feature, class of the model, granularity), if the test passes. Nothing is claimed by hand.

    pytest -m 'supports and not slow' -n auto --dist loadfile --support-matrix write
    make test  # checks it

A check fails the run if the page claims something that no test of this run has shown.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests/support_matrix.json"
PAGE = ROOT / "docs/support-matrix.md"
GRANULARITIES = ("module", "stack", "output")
COMMAND = "pytest -m 'supports and not slow' -n auto --dist loadfile --support-matrix write"

# Every feature that a test can show, in the order of the page: (column of the first table, what is
# said of it in the second).
FEATURES: dict[str, tuple[str, str]] = {
    "granularity": ("", "A skipped step continues what the model computes"),
    "one launch": (
        "one launch",
        "The skipped step, one launch, equals the recursion around every module",
    ),
    "removal": ("", "Removal leaves the model bit-identical"),
    "bytes": ("memory", "Bytes held are those that the plan says"),
    "peak": ("memory", "Peak memory on top of the uncached run is the plan's plus at most 5 %"),
    "no leak": ("memory", "Twenty generations leak nothing"),
    "pipeline": ("pipeline", "The pipeline of diffusers equals the recursion around every module"),
    "batch of two": ("guidance", "Guidance as one batch of two"),
    "two calls": ("guidance", "Guidance as two calls a step"),
    "three branches": ("guidance", "Guidance with three branches"),
    "switched off": ("guidance", "Guidance switched off part-way"),
    "distilled": ("guidance", "Distilled guidance"),
    "strength": ("samplers", "img2img strength"),
    "inpainting": ("samplers", "Inpainting strength"),
    "Heun": ("samplers", "Heun: the model is called twice a step"),
    "number of steps": ("samplers", "Schedulers that change the number of steps; another number"),
    "DDPM": ("samplers", "DDPM, a stochastic sampler"),
    "Euler ancestral": ("samplers", "Euler ancestral, a stochastic sampler"),
    "LoRA": ("weights", "LoRA loaded, switched, fused, unloaded between generations (peft)"),
    "layerwise casting": ("weights", "Layerwise casting"),
    "int8": ("weights", "int8 weights (torchao)"),
    "model offload": ("offload", "Model offload"),
    "sequential offload": ("offload", "Sequential offload"),
    "group offload": ("offload", "Group offload, to memory and to disk"),
    "attention backends": ("attention", "Every attention backend that is installed"),
    "compile model": ("compile", "torch.compile of the model, no recompile after one generation"),
    "compile blocks": ("compile", "torch.compile of its blocks, the same"),
    "compile first": ("compile", "torch.compile before the cache is applied, the same"),
    "two pipelines": ("sharing", "Two pipelines share a transformer"),
    "two threads": ("sharing", "Two threads on one model"),
    "interleaved": ("sharing", "Requests interleaved on one model with cache_scope"),
    "deepcopy": ("copies", "copy.deepcopy with the cache applied"),
    "save_pretrained": ("copies", "save_pretrained with the cache applied"),
    "to dtype": ("copies", "to(dtype) with the cache applied"),
    "to device": ("copies", "to(device) with the cache applied"),
    "interrupt": ("changes", "A callback that interrupts"),
    "exception": ("changes", "An exception in the middle of a step"),
    "batch": ("changes", "Another batch size without a reset"),
    "resolution": ("changes", "Another resolution without a reset"),
    "frames": ("changes", "Another number of frames without a reset"),
    "dtype": ("changes", "Another dtype without a reset"),
    "second cache": (
        "said to run uncached",
        "A cache of diffusers there, too: refused, or uncached",
    ),
    "ControlNet": ("said to run uncached", "ControlNet: uncached, said and counted"),
    "IP-Adapter": ("said to run uncached", "IP-Adapter: uncached, said and counted"),
    "layer skip": ("said to run uncached", "Layer skip: uncached, said and counted"),
    "context parallel": ("parallel", "Context parallelism of diffusers, two gloo processes"),
    "tensor parallel": ("parallel", "Tensor parallelism of diffusers, two gloo processes"),
    "branches on ranks": ("parallel", "Guidance branches on different ranks, two gloo processes"),
}


class Claim(NamedTuple):
    """What one passed test showed."""

    feature: str
    model: str
    granularity: str


class Shown:
    """Claims, each with the tests that showed it.

    Args:
        tests: by claim, the names of the test functions.
    """

    def __init__(self, tests: dict[Claim, set[str]] | None = None) -> None:
        self.tests: dict[Claim, set[str]] = defaultdict(set, tests or {})

    def add(self, properties: Iterable[tuple[str, Any]], nodeid: str) -> None:
        """Counts what a passed test has noted under "supports"."""
        for name, value in properties:
            if name == "supports":
                self.tests[Claim(*value)].add(nodeid.partition("[")[0])

    @classmethod
    def load(cls) -> Shown:
        """What the page claims."""
        rows = json.loads(DATA.read_text())
        return cls({Claim(*row["claim"]): set(row["tests"]) for row in rows})

    def save(self) -> None:
        """Writes data and page."""
        rows = [{"claim": list(claim), "tests": sorted(self.tests[claim])} for claim in self]
        lines = ",\n".join(json.dumps(row) for row in rows)
        DATA.write_text(f"[\n{lines}\n]\n")
        PAGE.write_text(page(self))

    def __iter__(self) -> Any:
        return iter(sorted(self.tests, key=_order))

    def missing_from(self, other: Shown) -> list[str]:
        """The claims, and tests named for them, that the other does not have."""
        return [
            f"{claim.feature}, {claim.model}, {claim.granularity}: {test}"
            for claim in self
            for test in sorted(self.tests[claim] - other.tests.get(claim, set()))
        ]


class Recorder:
    """A pytest plugin: gathers what passed tests show, then writes the page or checks it.

    Args:
        wanted: "write" or "check".
    """

    def __init__(self, wanted: str) -> None:
        self.wanted, self.shown = wanted, Shown()
        self.unshown: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" and report.passed:
            self.shown.add(report.user_properties, report.nodeid)

    def pytest_sessionfinish(self, session: Any, exitstatus: int) -> None:
        if exitstatus:
            return  # a failed run says nothing
        if self.wanted == "write":
            self.shown.save()
            return
        self.unshown = Shown.load().missing_from(self.shown)
        if self.unshown:
            session.exitstatus = 1

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.unshown:
            terminalreporter.section(f"{PAGE.name} claims what no test of this run has shown")
            terminalreporter.write_line("\n".join(self.unshown))
            terminalreporter.write_line(f"to write it anew: {COMMAND}")


def _order(claim: Claim) -> tuple[Any, ...]:
    features, granularities = list(FEATURES), GRANULARITIES
    return features.index(claim.feature), claim.model, granularities.index(claim.granularity)


def page(shown: Shown) -> str:
    """The page, from what was shown."""
    return "\n".join([_HEAD, _matrix(shown), _LIST, _features(shown), ""])


_HEAD = f"""# Support matrix

Generated from a run of the tests by
`{COMMAND}`; edit nothing here.
`make test` fails if this page claims what none of its tests has shown. A test that was skipped or
failed claims nothing.

M, S and O are the granularities `module`, `stack` and `output` at which a test of that column ran
and passed; the second table says which tests stand behind a column. An empty cell means that no
test ran, not that it does not work. Every model is the real class of diffusers with small random
weights, on a CPU.
"""
_LIST = """
## What was shown, by which test

M, S, O before a class: the granularities it was shown at.
"""


def _letters(claims: Iterable[Claim]) -> str:
    found = {claim.granularity for claim in claims}
    return "".join(name[0].upper() for name in GRANULARITIES if name in found)


def _matrix(shown: Shown) -> str:
    names = [*GRANULARITIES, *dict.fromkeys(c for c, _ in FEATURES.values() if c)]
    claims = list(shown)
    rows = [f"| model | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for model in sorted({claim.model for claim in claims}):
        own = [claim for claim in claims if claim.model == model]
        cells = [
            "yes" if any(c.granularity == g for c in own if c.feature in _BASIC) else ""
            for g in GRANULARITIES
        ]
        for column in names[len(GRANULARITIES) :]:
            cells.append(_letters(c for c in own if FEATURES[c.feature][0] == column))
        rows.append(f"| `{model}` | {' | '.join(cells)} |")
    return "\n".join(rows)


# What shows that a granularity works at all.
_BASIC = ("granularity", "one launch")


def _features(shown: Shown) -> str:
    rows = ["| column | shown | models | tests |", "|---|---|---|---|"]
    for feature, (column, said) in FEATURES.items():
        claims = [claim for claim in shown if claim.feature == feature]
        by_letters: dict[str, list[str]] = defaultdict(list)
        for model in dict.fromkeys(claim.model for claim in claims):
            letters = _letters(claim for claim in claims if claim.model == model)
            by_letters[letters].append(f"`{model}`")
        models = "; ".join(f"{k}: {', '.join(v)}" for k, v in by_letters.items())
        tests = sorted({test for claim in claims for test in shown.tests[claim]})
        names = ", ".join(f"`{name.removeprefix('tests/')}`" for name in tests)
        rows.append(f"| {column or 'granularity'} | {said} | {models} | {names} |")
    return "\n".join(rows)
