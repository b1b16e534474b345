"""The command line, run as a user runs it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import foca_kernels
from foca_dit.analysis.metrics import psnr
from foca_dit.cli.chart import write_picture
from foca_dit.cli.main import main
from foca_dit.clock import make_clock
from foca_dit.files import read_json
from foca_dit.plan import Plan
from foca_dit.schemes import FoCa

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "examples/fashion_dit/weights"
NOISE = ROOT / "examples/fashion_dit/weights-noise"


def test_the_installed_command_explains_itself():
    command = shutil.which("foca-dit", path=str(Path(sys.executable).parent))
    assert command, "foca-dit is not installed beside this Python"
    text = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    for word in ("demo", "schedule", "doctor", "Feature caching"):
        assert word in text


@pytest.mark.parametrize("command", ["demo", "analyze"])
def test_caches_read_the_models_scheduler(command, tmp_path, monkeypatch):
    """A model that predicts noise is not taken for one of flow matching."""
    read = []

    def watched(time, levels):
        read.append(levels)
        return make_clock(time, levels)

    monkeypatch.setattr("foca_dit.state.make_clock", watched)
    arguments = ["--steps", "15", "--intervals", "5", "--out", str(tmp_path / "out.png")]
    if command == "demo":
        arguments += ["--model", str(NOISE), "--images", "1"]
    else:
        arguments[-1] = str(tmp_path / "out.json")
        arguments += [str(NOISE), "--samples", "1"]
    assert main([command, *arguments]) == 0
    assert read[-1].prediction == "epsilon"  # of the last cache that ran


def test_demo_on_the_shipped_weights(tmp_path, capsys):
    picture = tmp_path / "demo.png"
    arguments = ["--images", "4", "--steps", "12", "--intervals", "4", "--out", str(picture)]
    assert main(["demo", "--model", str(WEIGHTS), *arguments]) == 0
    table = capsys.readouterr().out
    lines = [line.split() for line in table.splitlines() if "x" in line and "." in line]
    names = ("reuse", "TaylorSeer-1", "FoCa", "adaptive")
    lines = [line[1:] if line[:2] == ["FoCa", "adaptive"] else line for line in lines]
    rows = {(line[0], line[1]): line for line in lines if line[0] in names}
    assert set(rows) == {(name, what) for name in names for what in ("module", "stack")}
    for granularity in ("module", "stack"):
        decibels = {scheme: float(rows[scheme, granularity][4]) for scheme in ("reuse", "FoCa")}
        assert 10 < decibels["reuse"] < decibels["FoCa"] < 80
    assert all(row[3] == "5" for row in rows.values())  # 0, 1, 2, 6, 10, and as many adaptive
    with Image.open(picture) as image:
        assert image.width > 300
        assert len(image.convert("L").getcolors(256)) > 50  # it shows something


def test_schedule_prints_the_steps_and_exports_the_plan(tmp_path, capsys):
    file = tmp_path / "plan.json"
    assert main(["schedule", "--interval", "5", "--warmup", "3", "--json", str(file)]) == 0
    text = capsys.readouterr().out
    assert "full steps (12 of 50): 0, 1, 2, 7, 12, 17, 22, 27, 32, 37, 42, 47" in text
    assert "4.17x" in text
    plan = Plan.from_json(file.read_text())
    assert plan.full_steps[:5] == (0, 1, 2, 7, 12)
    weights = FoCa().weights(range(50), (0, 1, 2), 4)
    assert plan.tables[4].tolist() == weights.tolist()
    assert json.loads(file.read_text())["format"] == "foca-plan"


def test_doctor_says_what_is_built_and_what_serves(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    compiled = "CPU kernels" in said
    assert f"CPU tensors: served by {'cpp' if compiled else 'reference'}" in said
    assert "CUDA tensors: " in said


def test_doctor_says_why_a_better_backend_does_not_serve(capsys, monkeypatch):
    report = {"CUDA": {"backend": "triton", "cpp": "_C_cuda.abi3.so is not built"}}
    monkeypatch.setattr(foca_kernels, "backend_report", lambda: report)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "CUDA tensors: served by triton; " in said
    assert "\n  not by cpp: _C_cuda.abi3.so is not built\n" in said


@pytest.mark.parametrize("command", ["tune", "analyze"])
def test_a_model_of_another_kind_is_refused_by_name(command, tmp_path, capsys):
    video = WEIGHTS.parent / "weights-video"
    extra = ["--budget", "9"] if command == "tune" else []
    assert main([command, str(video), *extra, "--out", str(tmp_path / "out.json")]) == 2
    error = capsys.readouterr().err
    assert "expected a class-conditional image model" in error
    assert "WanTransformer3DModel" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--model", "/nowhere"], "argument model: expected a folder"),
        (
            ["demo", "--model", str(WEIGHTS), "--images", "0"],
            "--images: expected at least 1, got 0",
        ),
        (["demo", "--steps", "0"], "--steps: expected at least 1, got 0"),
        (["demo", "--intervals", "3", "0"], "--intervals: expected at least 1, got 0"),
        (["demo", "--out", "demo"], "--out: expected a .png or .jpg file, got demo"),
        (["demo", "--out", "/nowhere/demo.png"], "--out: expected a folder that exists"),
        (["schedule", "--interval", "0"], "--interval: expected an integer >= 1, got 0"),
        (["schedule", "--steps", "0"], "--steps: expected an integer >= 1, got 0"),
        (["schedule", "--json", "/nowhere/plan.json"], "--json: expected a folder that exists"),
        (["schedule", "--json", "/proc/plan.json"], "--json: expected a folder to write to"),
        (["eval", str(NOISE), "--draw", "fid.png"], "--draw: expected --judge too"),
        (["plan", "flux.1-dev", "--steps", "0"], "--steps: expected an integer >= 1, got 0"),
        (["plan", "flux.1-dev", "--frames", "5"], "--frames: expected none for the image model"),
        (["plan", "flux.1-dev", "--width", "8"], "--height, --width: expected one token or more"),
        (["plan", "flux.1-dev", "--warmup", "4"], "--warmup: expected --interval too"),
        (
            ["tune", str(WEIGHTS), "--budget", "9", "--shift", "0"],
            "shift: expected a positive number, got 0",
        ),
        (
            ["analyze", str(WEIGHTS.with_name("weights-noise")), "--shift", "3"],
            "shift: expected none for DDIMScheduler, got 3",
        ),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_broken_operator_is_what_doctor_finds(capsys, monkeypatch):
    monkeypatch.setattr("foca_dit.cli.doctor.try_operator", lambda device: "ERROR: no kernel image")
    assert main(["doctor"]) == 1
    assert "ERROR: no kernel image" in capsys.readouterr().out


def test_files_that_hold_no_json_are_named(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("{")
    with pytest.raises(ValueError, match=r"a\.json: expected JSON"):
        read_json(file)


def test_an_engine_needs_no_pillow_and_no_diffusers():
    """`pip install .` brings neither; doctor and schedule run all the same."""
    hidden = ("PIL", "diffusers", "transformers", "accelerate", "tqdm", "safetensors")
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden})); "
    code += "from foca_dit.cli.main import main; "
    code += "sys.exit(main(['doctor']) or main(['schedule', '--steps', '4']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "full steps (3 of 4)" in done.stdout


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "foca_dit", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("foca-dit ")


def test_psnr():
    zeros = torch.zeros(2, 3)
    assert psnr(zeros, zeros) == float("inf")
    assert psnr(zeros + 0.02, zeros) == pytest.approx(40.0)
    with pytest.raises(ValueError, match=r"'images': expected shape \(2, 3\) like reference"):
        psnr(torch.zeros(3), zeros)


def test_pictures_are_written_whole(tmp_path):
    class Interrupted:
        def save(self, stream, kind):
            stream.write(b"half of")
            raise KeyboardInterrupt

    file = tmp_path / "a.png"
    write_picture(Image.new("RGB", (3, 2)), file)
    whole = file.read_bytes()
    assert Image.open(file).size == (3, 2)
    with pytest.raises(KeyboardInterrupt):
        write_picture(Interrupted(), file)
    assert file.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(ValueError, match=r"\.png"):
        write_picture(Image.new("RGB", (3, 2)), tmp_path / "a.nothing")
