"""The shape of the house: who may import whom, one set of pins, a README that runs."""

import ast
import itertools
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYER = ROOT / "python/foca_dit"
KERNELS = ROOT / "foca_kernels"

# What a part of foca_dit may import from foca_dit: adapters -> state -> schemes and schedules.
BELOW_STATE = {
    "config", "files", "schemes", "schedules", "times", "clock", "timetable", "origin", "plan",
    "tuned",
}  # fmt: skip
STATE = {
    "state", "family", "branch", "ahead", "history", "graphs", "capture", "trajectory", "stats",
    "reasons",
}  # fmt: skip
ALLOWED = {
    **dict.fromkeys(BELOW_STATE, BELOW_STATE),
    **dict.fromkeys(STATE, BELOW_STATE | STATE),
    "adapters": BELOW_STATE | STATE | {"adapters"},
    "analysis": BELOW_STATE | {"analysis"},
    "calibration": BELOW_STATE | STATE | {"adapters", "analysis", "api", "calibration"},
    "evaluation": BELOW_STATE
    | {"state", "analysis", "api", "adapters", "calibration", "estimate", "evaluation"},
}


def imports(path: Path):
    """(absolute module name, whether inside a function or TYPE_CHECKING) of every import."""
    tree = ast.parse(path.read_text())
    lazy = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef)
        or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.unparse(outer.test))
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            if node.module in ("foca_dit", "foca_kernels"):
                # `from foca_dit import schemes` imports a part, not the whole.
                yield from ((f"{node.module}.{a.name}", id(node) in lazy) for a in node.names)
            else:
                yield node.module, id(node) in lazy


@pytest.mark.parametrize(
    "path", sorted(LAYER.rglob("*.py")), ids=lambda p: str(p.relative_to(LAYER))
)
def test_imports_inside_the_layer_go_one_way(path):
    part = path.relative_to(LAYER).parts[0].removesuffix(".py")
    for module, lazy in imports(path):
        package, _, rest = module.partition(".")
        if package == "foca_dit" and part in ALLOWED:
            assert rest.split(".")[0] in ALLOWED[part], f"{part} imports {module}"
        if package == "diffusers":
            commands = part in ("cli", "evaluation")  # the latter is the body of `foca-dit eval`
            assert part == "adapters" or (commands and lazy), f"{part} imports {module}"


@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.py")), ids=lambda p: p.name)
def test_kernels_know_no_models(path):
    packages = {module.partition(".")[0] for module, _ in imports(path)}
    assert not packages & {"foca_dit", "diffusers", "transformers"}


def test_one_set_of_pins():
    pins = dict(
        line.split("==")
        for file in ("requirements.txt", "requirements-test.txt")
        for line in (ROOT / file).read_text().split()
        if "==" in line
    )
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    revisions = re.findall(
        r"repo: \S+/(?:mirrors-)?([a-z-]+?)(?:-pre-commit)?\n\s+rev: v(\S+)", hooks
    )
    assert dict(revisions) == {name: pins[name] for name in ("ruff", "clang-format")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *itertools.chain(*project["optional-dependencies"].values()),
    ]
    names = {re.split(r"[<>=\[]", requirement)[0] for requirement in wanted}
    assert names - {"torch", "foca-kernels"} <= set(pins)


def test_files_are_short():
    sources = [
        path
        for folder in ("foca_kernels", "python", "csrc", "tests", "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".cpp", ".h", ".cu", ".cuh"}
    ]
    too_long = {str(p): n for p in sources if (n := len(p.read_text().splitlines())) > 450}
    assert not too_long


def code_blocks():
    text = (ROOT / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(code_blocks())))
def test_readme_code_runs(number, monkeypatch):
    """Every block runs as it stands, on a tiny pipeline in place of the real one's gigabytes."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "tests/layer"))
    import diffusers
    import models

    monkeypatch.setattr(
        diffusers.DiTPipeline, "from_pretrained", lambda *_, **__: models.tiny_dit_pipeline()
    )
    exec(compile(code_blocks()[number], f"README block {number}", "exec"), {})


def test_readme_tables_are_the_measured_ones(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import report

    text = (ROOT / "README.md").read_text()
    assert "<!-- measured:begin -->" in text
    assert report.updated(text) == text, "run python benchmarks/report.py"
