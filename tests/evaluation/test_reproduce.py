"""The paper's tables: the data is consistent, the protocols run on tiny models and resume."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tiny_dit, tiny_dit_pipeline
from PIL import Image
from tiny_text import flux_pipeline, save_clip

from foca_dit.cli.main import main
from foca_dit.evaluation import paper_job, paper_metrics, paper_run
from foca_dit.evaluation.paper_tables import TABLES, Run

RUNNABLE = [
    (table, row)
    for table in TABLES.values()
    for row in table.rows
    if table.number < 4 and row.run is not None and row.published
]


@pytest.mark.parametrize(("table", "row"), RUNNABLE, ids=lambda x: getattr(x, "method", ""))
def test_rows_compute_as_many_steps_as_their_published_flops(table, row):
    whole = table.rows[0].published["tflops"]
    published = table.steps * row.published["tflops"] / whole
    # HunyuanVideo's 7.74 steps are no whole number.
    slack = 0.035 if table.number == 2 else 0.018
    assert row.run.full_steps(table.steps) == pytest.approx(published, rel=slack)


def test_taylorseer_is_run_as_its_public_code_has_it():
    rows = [row for _, row in RUNNABLE if row.method.startswith("TaylorSeer")]
    assert len(rows) == 6
    for row in rows:
        assert row.run.scheme.official
        assert row.run.scheme.warmup == row.run.schedule.warmup


def test_the_published_figures_are_the_papers():
    """Those that its text repeats."""
    rows = {(t.number, r.method): r.published for t in TABLES.values() for r in t.rows}
    assert rows[1, "FoCa (N = 5)"]["image_reward"] == 1.0029
    assert rows[1, "FoCa (N = 8)"] | {} == {
        "seconds": 5.88, "tflops": 596.07, "flops_ratio": 6.24, "image_reward": 0.9502,
        "clip_score": 32.706,
    }  # fmt: skip
    assert rows[2, "FoCa (N = 7)"]["vbench"] == 79.68
    assert rows[3, "FoCa (N = 3)"]["fid"] == 2.25
    assert rows[3, "TaylorSeer (N = 3)"]["fid"] == 2.35
    assert rows[4, "FoCa (N = 5)"]["psnr"] == 31.03
    assert rows[4, "FoCa (N = 5)"]["flops_ratio"] == 3.17


@pytest.fixture
def dit_folder(tmp_path):
    tiny_dit_pipeline().save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_table_3_on_a_tiny_dit(dit_folder, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["reproduce", "table3", "--model", str(dit_folder), "--out", str(out), "--limit", "3"]
    argv += ["--dtype", "float32", "--device", "cpu", "--batch", "2", "--rows", "FoCa (N = 5)"]
    argv += ["DDIM-12", "DuCa (N = 5)"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    if importlib.util.find_spec("torch_fidelity") is None:
        assert "pip install torch-fidelity" in shown
    assert "230.76" in shown  # published beside measured
    assert "DuCa (N = 5)" in shown  # published alone
    data = json.loads((out / "table3.json").read_text())
    rows = {row["method"]: row for row in data["rows"]}
    assert set(rows) == {"DDIM-12 steps", "FoCa (N = 5)"}
    assert rows["FoCa (N = 5)"]["published"]["fid"] == 2.60
    # DiT-XL/2 on the meta device: the paper's 0.475 TFLOPs a step, and its speedup.
    assert rows["DDIM-12 steps"]["measured"]["tflops"] == pytest.approx(5.70, rel=0.02)
    assert rows["FoCa (N = 5)"]["measured"]["flops_ratio"] == pytest.approx(4.53, rel=0.02)
    assert rows["FoCa (N = 5)"]["measured"]["seconds"] > 0
    files = sorted((out / "table3" / "FoCa (N = 5)").iterdir())
    assert [file.name for file in files] == ["00000.png", "00001.png", "00002.png"]
    before = [file.read_bytes() for file in files]
    assert len(set(before)) == 3
    files[1].unlink()
    capsys.readouterr()
    assert main(argv) == 0  # goes on: the missing one is drawn again, and is the same
    assert [file.read_bytes() for file in files] == before
    times = (out / "table3" / "FoCa (N = 5)-seconds.csv").read_text().split()
    assert [line.split(",")[0] for line in times] == ["0", "1", "2", "1"]
    assert main([*argv, "--seed", "1"]) == 2
    assert "rows of other settings" in capsys.readouterr().err


def test_table_1_on_a_tiny_flux(tmp_path, capsys):
    pytest.importorskip("transformers")
    for name in ("flux", "clip"):
        (tmp_path / name).mkdir()
    save_clip(tmp_path / "clip")
    pipeline = flux_pipeline(tmp_path / "flux")
    prompts = tmp_path / "prompts.csv"
    prompts.write_text('Prompts,Category\n"a cat, a hat",x\na dog,y\n')
    table = dataclasses.replace(TABLES[1], estimated_as="")  # FLUX on meta takes its time
    job = paper_job.Job(
        table,
        tmp_path / "out",
        paper_job.read_prompts(prompts),
        clip=str(tmp_path / "clip"),
        arguments={"height": 32, "width": 32, "max_sequence_length": 16},
    )
    names = ("22% steps", "FoCa (N = 8)", "this project's default, 8 full steps")
    rows = [row for row in table.rows if row.method in names]
    said = []
    results = paper_run.run(job, pipeline, rows, said.append)
    if importlib.util.find_spec("ImageReward") is None:
        assert any("pip install image-reward" in line for line in said)
    for name in names:
        assert -100 <= results.rows[name]["clip_score"] <= 100
        assert len(list((job.folder / "table1" / name).glob("*.png"))) == 2
    # As the pipeline makes it by itself, when nothing is cached.
    drawn = pipeline(
        "a dog",
        num_inference_steps=11,
        guidance_scale=3.5,
        generator=torch.Generator().manual_seed(1),
        **job.arguments,
    ).images[0]
    kept = Image.open(job.folder / "table1" / "22% steps" / "00001.png")
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(kept))
    shown = paper_run.lines(table, results)
    assert [line[1] for line in shown if line[0] == "FoCa (N = 8)"] == ["published", "measured"]
    assert [line[1] for line in shown if line[0] == "Chipmunk"] == ["published"]


UPSAMPLER = """
import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler

class Upsampler:
    def __init__(self):
        torch.manual_seed(0)
        self.transformer = DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=6, out_channels=3,
            num_layers=2, sample_size=32, patch_size=4, num_embeds_ada_norm=10, norm_num_groups=1,
        ).eval()
        self.scheduler = FlowMatchEulerDiscreteScheduler()

    @torch.inference_mode()
    def upsample(self, low, steps, generator):
        near = torch.nn.functional.interpolate(low, scale_factor=4)
        x = torch.randn(near.shape, generator=generator)
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            velocity = self.transformer(
                torch.cat([x, near], 1), timestep=t[None], class_labels=torch.zeros(1).long()
            ).sample
            x = self.scheduler.step(velocity, t, x).prev_sample
        return (near + 0.01 * x).clamp(0, 1)

def load(device):
    return Upsampler()
"""


def test_table_4_on_a_tiny_upsampler(tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    Image.fromarray(np.stack([np.add.outer(ramp // 2, ramp // 2)] * 3, 2)).save(images / "a.png")
    upsampler = tmp_path / "own.py"
    upsampler.write_text(UPSAMPLER)
    out = tmp_path / "out"
    argv = ["reproduce", "table4", "--images", str(images), "--out", str(out), "--device", "cpu"]
    assert main(argv) == 2
    assert "argument --upsampler" in capsys.readouterr().err
    argv += ["--upsampler", str(upsampler), "--rows", "original", "FoCa"]
    assert main(argv) == 0
    rows = json.loads((out / "table4.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["Inf-DiT, original", "FoCa (N = 5)"]
    for row in rows:
        assert 20 < row["measured"]["psnr"] < 60
        assert 0.5 < row["measured"]["ssim"] <= 1
    assert rows[0]["measured"]["psnr"] != rows[1]["measured"]["psnr"]  # the cache was in use


class Video:
    """Stands where HunyuanVideoPipeline does: a denoising loop around a real transformer."""

    def __init__(self):
        self.transformer = tiny_dit(channels=3, size=8, classes=1000)
        self.scheduler = None

    @torch.inference_mode()
    def __call__(self, prompt, height, width, num_frames, num_inference_steps, generator):
        x = torch.randn(num_frames, 3, height, width, generator=generator)
        label = torch.full((num_frames,), len(prompt))
        for i in range(num_inference_steps):
            t = torch.full((num_frames,), 1000 * (1 - i / num_inference_steps))
            x = x - self.transformer(x, timestep=t, class_labels=label).sample / num_inference_steps
        frames = (x / 4 + 0.5).permute(0, 2, 3, 1).numpy()
        return type("Output", (), {"frames": [frames]})()


def test_table_2_writes_videos_by_prompt(tmp_path):
    table = dataclasses.replace(TABLES[2], suffix=".gif", estimated_as="")
    (tmp_path / "info.json").write_text('[{"prompt_en": "a cat", "dimension": ["color"]}]')
    job = paper_job.Job(
        table,
        tmp_path / "out",
        paper_job.read_prompts(tmp_path / "info.json"),
        samples=2,
        vbench_info=tmp_path / "info.json",
        arguments={"height": 8, "width": 8, "num_frames": 4},
    )
    rows = [row for row in table.rows if row.method == "FoCa (N = 7)"]
    said = []
    results = paper_run.run(job, Video(), rows, said.append)
    folder = job.folder / "table2" / "FoCa (N = 7)"
    assert sorted(file.name for file in folder.iterdir()) == ["a cat-0.gif", "a cat-1.gif"]
    assert Image.open(folder / "a cat-0.gif").n_frames == 4
    if importlib.util.find_spec("vbench") is None:
        assert any("pip install vbench" in line for line in said)
    assert set(results.rows["FoCa (N = 7)"]) == {"seconds"}
    if not any(map(importlib.util.find_spec, ("imageio", "cv2"))):
        real = dataclasses.replace(job, table=TABLES[2], folder=tmp_path / "mp4")
        with pytest.raises(ValueError, match="pip install imageio"):
            paper_run.generate(real, Video(), rows[0], tmp_path / "mp4")


def test_vbench_total_is_that_of_its_script():
    dimensions = {**paper_metrics.VBENCH_QUALITY, **paper_metrics.VBENCH_MEANING}
    assert len(dimensions) == 16
    best = {name: high for name, (_, high, _) in dimensions.items()}
    assert paper_metrics.vbench_total(best) == pytest.approx(100)
    assert paper_metrics.vbench_total({n: low for n, (low, _, _) in dimensions.items()}) == 0
    # One quality dimension of weight 1/2 out of 6.5 in all, four times as heavy as meaning.
    worse = {**best, "dynamic_degree": 0.0}
    assert paper_metrics.vbench_total(worse) == pytest.approx(100 * (1 - 0.8 * 0.5 / 6.5))


def test_prompts_are_read_in_every_form(tmp_path):
    for name, text in (
        ("a.txt", "one\n\n two \n"),
        ("a.tsv", "id\tprompt\n1\tone\n2\ttwo\n"),
        ("a.json", '["one", {"prompt": "two"}]'),
    ):
        (tmp_path / name).write_text(text)
        assert paper_job.read_prompts(tmp_path / name) == ("one", "two")
    (tmp_path / "b.csv").write_text("text\none\n")
    with pytest.raises(ValueError, match="expected prompts"):
        paper_job.read_prompts(tmp_path / "b.csv")


def test_json_that_is_no_list_of_prompts_is_refused(tmp_path):
    file = tmp_path / "a.json"
    for text, message in (
        ('{"prompt": "one", "seed": "two"}', "a JSON list, got dict"),
        ('["one", 2]', "strings, or objects with 'prompt' or 'prompt_en', got 2"),
        ("[", "a.json: expected JSON"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            paper_job.read_prompts(file)


def test_long_prompts_have_files_of_their_own(tmp_path):
    long = "a cat " * 40
    assert paper_job.file_name("a/cat") == "a_cat"
    assert len(paper_job.file_name(long + "sits")) == 180
    job = paper_job.Job(TABLES[2], tmp_path, (long + "sits", long + "stands"))
    assert len({item.name for item in job.items}) == 2


DRAWBENCH = paper_job.Job(TABLES[1], Path("out"), ("a cat", "a dog"), dtype="bfloat16")
DRAWN = paper_job.Job(TABLES[4], Path("out"), images=(Path("x/a.png"),), upsampler=Path("own.py"))


@pytest.mark.parametrize(
    ("job", "change"),
    [
        (DRAWBENCH, {"model": "another"}),
        (DRAWBENCH, {"dtype": "float32"}),
        (DRAWBENCH, {"prompts": ("a cat", "a fox")}),
        (DRAWBENCH, {"samples": 2, "limit": 1}),
        (DRAWN, {"images": (Path("x/b.png"),)}),
        (DRAWN, {"upsampler": Path("other.py")}),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else f"table {x.table.number}",
)
def test_samples_of_other_settings_are_refused(job, change, tmp_path):
    """Their files have the same names, and would be taken for those asked for."""
    file = tmp_path / "rows.json"
    paper_run.PaperResults(file, job.settings()).begin(job.table)  # no row is complete yet
    paper_run.PaperResults(file, job.settings())
    with pytest.raises(ValueError, match="rows of other settings"):
        paper_run.PaperResults(file, dataclasses.replace(job, **change).settings())


def test_real_images_may_be_named_later_but_not_exchanged(tmp_path):
    file = tmp_path / "rows.json"
    job = paper_job.Job(TABLES[3], tmp_path, limit=2)
    one, two = (dataclasses.replace(job, real=tmp_path / name) for name in ("one", "two"))
    for asked in (job, one, job):
        results = paper_run.PaperResults(file, asked.settings())
        results.begin(job.table)
    assert results.settings["real"] == str(tmp_path / "one")
    with pytest.raises(ValueError, match="rows of other settings"):
        paper_run.PaperResults(file, two.settings())


def test_settings_are_written_before_anything_is_drawn(tmp_path):
    def cut(*_args, **_kwargs):
        raise KeyboardInterrupt

    job = paper_job.Job(dataclasses.replace(TABLES[1], metrics=()), tmp_path, ("a cat",))
    rows = [row for row in job.table.rows if row.method == "22% steps"]
    with pytest.raises(KeyboardInterrupt):
        paper_run.run(job, cut, rows)
    with pytest.raises(ValueError, match="rows of other settings"):
        paper_run.run(dataclasses.replace(job, model="another"), cut, rows)


def test_what_cannot_run_is_said_before_anything_is_drawn(tmp_path, capsys):
    assert main(["reproduce", "table1", "--list"]) == 0
    listed = capsys.readouterr().out
    assert "Chipmunk [published figures only]: latency s 12.72" in listed
    assert "FoCa (N = 5): " in listed
    assert main(["reproduce", "table1", "--out", str(tmp_path / "x")]) == 2
    assert "--prompts" in capsys.readouterr().err
    assert main(["reproduce", "table3", "--rows", "nonsense"]) == 2
    assert "argument --rows" in capsys.readouterr().err
    with pytest.raises(ValueError, match="argument 'limit'"):
        paper_job.Job(TABLES[3], tmp_path, limit=0)
    assert Run().config is None
