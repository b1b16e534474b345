"""Rows are written one by one; a run that was cut goes on; tables say what rows hold."""

import json

import pytest
import torch

from foca_dit.cli.main import main
from foca_dit.evaluation import suite, tables
from foca_dit.evaluation.judge import load_judge
from foca_dit.evaluation.rival import Rival
from foca_dit.evaluation.setting import Absent
from foca_dit.evaluation.trained import Trained

ROWS = suite.choose(["fewer", "reuse", "L2C"])


@pytest.fixture
def selection():
    return suite.Selection(
        budgets=(5, 4), images=2, seeds=(0, 1), steps=12, rivals=ROWS, reference_steps=20
    )


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_rows_and_tables(dit, selection, tmp_path):
    results = suite.Results(tmp_path / "rows.json", "model")
    suite.run(Trained(dit), selection, results)
    assert [row for _, row in selection.rows()] == [
        {key: row[key] for key in ("shift", "seed", "steps", "images", "guidance_scale")}
        | {key: row[key] for key in ("reference_steps", "row", "budget")}
        for row in results.rows
    ]
    full, fewer = results.rows[0], results.rows[1]
    assert full["psnr"] is None  # infinite: it is the reference
    assert full["ssim"] == pytest.approx(1)
    assert 0 < fewer["psnr"] < fewer["psnr_each"] < 100  # Jensen's inequality
    assert fewer["full_steps"] == 5
    assert fewer["psnr_reference"] < full["psnr_reference"]
    missing = [row for row in results.rows if "absent" in row]
    assert {row["row"] for row in missing} == {"L2C-style mask"}
    text = tables.report(results.rows)
    assert "fewer steps" in text
    assert "5 full steps: PSNR of each image" in text
    assert " ± " in text  # two seeds
    assert "L2C-style mask (5, 4): computes every second step" in text
    assert "All metrics at 4 full steps:" in text
    assert "All metrics" not in tables.report(results.rows, metrics=False)


def test_rows_that_are_absent_for_one_reason_share_a_line():
    rows = [
        {"row": name, "budget": budget, "absent": why}
        for budget in (4, 9)
        for name, why in (("A, all", "not here"), ("B", "not here"), ("C", f"more than {budget}"))
    ]
    assert tables.absent([*rows, rows[0], {"row": "D", "budget": 4}]) == (
        "Absent:\n\n- A, all; B (9, 4): not here\n- C (4): more than 4\n- C (9): more than 9"
    )
    assert tables.absent([]) == ""


def test_rows_of_several_days_say_so():
    first, last = ({"environment": {"date": day}} for day in ("2026-01-30", "2026-02-01"))
    assert tables.dates([last, first, last]) == "2026-01-30 to 2026-02-01"
    assert tables.dates([first, first]) == "2026-01-30"


def test_a_run_that_was_cut_goes_on(dit, selection, tmp_path):
    file, calls = tmp_path / "rows.json", []

    def cut(setting, budget):
        calls.append((setting.seed, budget))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return setting.draw(steps=budget)

    selection = suite.Selection(
        budgets=(5, 4), images=2, steps=12, rivals=(Rival("cut", "", "", cut),)
    )
    with pytest.raises(KeyboardInterrupt):
        suite.run(Trained(dit), selection, suite.Results(file, "model"))
    kept = json.loads(file.read_text())["rows"]
    assert [row["budget"] for row in kept] == [12, 5]
    ticks = []
    suite.run(Trained(dit), selection, suite.Results(file, "model"), tick=lambda: ticks.append(1))
    assert calls == [(0, 5), (0, 4), (0, 4)]
    assert len(ticks) == 3
    rows = json.loads(file.read_text())["rows"]
    assert rows[:2] == kept
    assert len(rows) == 3
    assert not list(tmp_path.glob("*.part"))


def test_the_long_run_is_drawn_once(dit, selection, tmp_path, monkeypatch):
    selection = suite.Selection(
        budgets=(5,), images=2, steps=12, rivals=suite.choose(["fewer"]), reference_steps=20
    )
    suite.run(Trained(dit), selection, suite.Results(tmp_path / "a.json", "model"))
    (kept,) = suite.cache_folder().glob("*.pt")
    monkeypatch.setattr(torch, "save", None)
    suite.run(Trained(dit), selection, suite.Results(tmp_path / "b.json", "model"))
    a, b = (json.loads((tmp_path / f"{name}.json").read_text())["rows"] for name in "ab")
    assert [row["psnr_reference"] for row in a] == [row["psnr_reference"] for row in b]
    assert kept.exists()


def test_rows_of_another_model_are_refused(dit, tmp_path):
    file = tmp_path / "rows.json"
    suite.Results(file, "one").add({"row": "x"})
    with pytest.raises(ValueError, match="rows of another model"):
        suite.Results(file, "two")
    assert suite.Results(file, "two", fresh=True).rows == []
    for other in ("[]", '{"format": "foca-eval"}', '{"format": "foca-eval", "model": "one"}'):
        file.write_text(other)
        with pytest.raises(ValueError, match="to be a file of `foca-dit eval`"):
            suite.Results(file, "one")
    file.unlink()
    moments = tmp_path / "rows.moments.safetensors"
    moments.write_bytes(b"cut")
    with pytest.raises(ValueError, match=f"{moments}: expected a safetensors file, got"):
        suite.Results(file, "one")


@pytest.mark.parametrize(
    "bad",
    [
        {"images": 1},
        {"budgets": (0,)},
        {"budgets": (50,)},
        {"steps": 2},
        {"rivals": ()},
        {"reference_steps": 0},
    ],
)
def test_selections_that_cannot_work_are_refused(bad):
    with pytest.raises(ValueError, match=f"argument '{next(iter(bad))}'|argument 'budgets'"):
        suite.Selection(**bad)


def test_rows_are_chosen_by_words():
    assert {rival.name for rival in suite.choose(["unipc", "LEMICA"])} == {"UniPC-2", "LeMiCa"}
    taken = suite.choose(["TaylorSeer-1", "log-snr"])  # a whole name is that row alone
    assert {rival.name for rival in taken} == {
        "TaylorSeer-1", "FoCa, c = 1/2, log-SNR", "FoCa, c = 3/4, log-SNR",
    }  # fmt: skip
    with pytest.raises(ValueError, match="expected words out of"):
        suite.choose(["nonsense"])


def test_fingerprints_tell_models_apart(dit):
    before = suite.fingerprint(dit)
    with torch.no_grad():
        dit.proj_out_2.bias.add_(1)
        changed = suite.fingerprint(dit)
        dit.proj_out_2.bias.sub_(1)
    assert before != changed


def test_the_command_refuses_what_cannot_work(tmp_path, capsys):
    assert main(["eval", "--list"]) == 0
    assert "arXiv:2411.19108" in capsys.readouterr().out  # TeaCache, with its source
    assert main(["eval", "--out", str(tmp_path / "none/rows.json")]) == 2
    assert "a folder that exists" in capsys.readouterr().err
    assert main(["eval", "--seeds", "0", "--out", str(tmp_path / "rows.json")]) == 2
    assert "argument --seeds" in capsys.readouterr().err


@pytest.fixture
def shipped(monkeypatch, request):
    root = request.config.rootpath
    monkeypatch.chdir(root)
    return root / "examples/fashion_dit"


def test_the_command_on_the_shipped_model(shipped, tmp_path, capsys):
    out = tmp_path / "rows.json"
    argv = ["eval", "--images", "2", "--seeds", "1", "--steps", "6", "--budgets", "3"]
    assert main([*argv, "--rows", "fewer", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "classifier-FID" in shown
    assert "All metrics at 3 full steps" in shown
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 2
    assert 0 <= rows[1]["accuracy"] <= 1


def test_the_shipped_reference_is_of_real_images(shipped):
    """Noise is far from it; the distance of the statistics to themselves is 0."""
    from foca_dit.evaluation.metrics import frechet_distance

    judge = load_judge(shipped)
    assert judge.mean.shape == (128,)
    scale = float(judge.cov.trace())
    itself = frechet_distance(judge.mean, judge.cov, judge.mean, judge.cov)
    assert itself == pytest.approx(0, abs=1e-5 * scale)
    noise = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    scores = judge.scores(judge.features(noise), torch.zeros(64, dtype=torch.long))
    assert scores["classifier_fid"] > scale
    assert 1 <= scores["classifier_is"] <= 10


def test_fid_is_that_of_all_seeds_together(shipped, tmp_path, monkeypatch):
    """Cut and resumed, it is still the distance of all images, not a mean of distances."""
    from foca_dit.evaluation.metrics import frechet_distance, gaussian
    from foca_dit.evaluation.trained import load

    judge, seen = load_judge(shipped), []
    model, _ = load(shipped / "weights")

    def drawn(setting, budget):
        outcome = setting.draw(steps=budget)
        seen.append(judge.features(outcome.images))
        if len(seen) == 2 and not (tmp_path / "cut").exists():
            (tmp_path / "cut").touch()
            seen.pop()
            raise KeyboardInterrupt
        return outcome

    selection = suite.Selection((2,), 3, (0, 1), steps=3, rivals=(Rival("two", "", "", drawn),))
    file = tmp_path / "rows.json"
    with pytest.raises(KeyboardInterrupt):
        suite.run(Trained(model), selection, suite.Results(file, "model"), judge)
    suite.run(Trained(model), selection, suite.Results(file, "model"), judge)
    pooled = suite.read(file)["pooled"]
    assert [(row["row"], row["seeds"]) for row in pooled] == [("full run", [0, 1]), ("two", [0, 1])]
    whole = frechet_distance(*gaussian(torch.cat(seen)), judge.mean, judge.cov)
    assert pooled[1]["classifier_fid"] == pytest.approx(whole, rel=1e-6)
    rows = [row["classifier_fid"] for row in suite.read(file)["rows"] if row["row"] == "two"]
    assert pooled[1]["classifier_fid_by_seed"] == pytest.approx(rows)
    assert whole < min(rows)
    assert suite.Results(file, "model", fresh=True).moments.tensors == {}


def test_seeds_that_come_later_are_pooled_with_the_first(shipped, tmp_path):
    from foca_dit.cli.demo import load

    judge, (model, _) = load_judge(shipped), load(shipped / "weights")
    fewer = suite.choose(["fewer"])
    for seeds in ((0,), (0, 1)):
        plan = suite.Selection((2,), 2, seeds, steps=3, rivals=fewer)
        suite.run(Trained(model), plan, suite.Results(tmp_path / "rows.json", "model"), judge)
        pooled = suite.read(tmp_path / "rows.json")["pooled"]
        assert [row["seeds"] for row in pooled] == [[0, 1]] * (2 if len(seeds) > 1 else 0)
    (tmp_path / "rows.moments.safetensors").unlink()  # rows may travel without it
    more = suite.Selection((1,), 2, (0, 1), steps=3, rivals=fewer)
    suite.run(Trained(model), more, suite.Results(tmp_path / "rows.json", "model"), judge)
    kept = suite.read(tmp_path / "rows.json")["pooled"]
    assert kept[:2] == pooled
    assert [row["budget"] for row in kept] == [3, 2, 1]


def test_a_judge_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"classifier\.py"):
        load_judge(tmp_path)


def test_absent_is_not_an_error_of_the_run(dit, tmp_path):
    def nothing(setting, budget):
        raise Absent("not today")

    selection = suite.Selection(
        budgets=(5,), images=2, steps=12, rivals=(Rival("no", "", "", nothing),)
    )
    results = suite.Results(tmp_path / "rows.json", "model")
    suite.run(Trained(dit), selection, results)
    assert results.rows[-1]["absent"] == "not today"


def test_rows_that_pass_their_budget_stand_last():
    def row(name, psnr, full_steps):
        return {"row": name, "budget": 9, "psnr": psnr, "full_steps": full_steps, "seed": 0}

    rows = [row("costly", 50.0, 36.0), row("low", 20.0, 9.0), row("high", 30.0, 8.4)]
    for lines in (tables.quality(rows), tables.everything(rows, 9)):
        assert [line[0] for line in lines[1:]] == ["high", "low", "costly"]
    assert tables.quality(rows)[1][1] == "30.0 (8.4)"
    assert tables.measures([*rows, {**rows[0], "psnr_each": 50.0}]) == ["psnr"]  # not all have it
    assert tables.measures([{**rows[0], "psnr_each": 50.0}]) == ["psnr", "psnr_each"]
    assert tables.measures([{**rows[0], "psnr": None}]) == []  # the full run alone


def test_fid_over_full_steps_is_drawn_and_tabulated(tmp_path):
    from PIL import Image

    from foca_dit.cli.chart import write_picture
    from foca_dit.cli.distance import picture

    setting = {"shift": 1.0, "steps": 50, "images": 500, "guidance_scale": 1.0}
    values = {("full run", 50): (2.0, 2.4), ("few", 9): (3.0, 3.2), ("FoCa, adaptive", 9): (1.0, 1)}
    rows = [
        {**setting, "row": row, "budget": budget, "seed": seed, "classifier_fid": fid[seed]}
        for (row, budget), fid in values.items()
        for seed in (0, 1)
    ]
    pooled = [
        {**setting, "row": row, "budget": 9, "seeds": [0, 1], "classifier_fid": fid}
        for row, fid in (("few", 2.5), ("FoCa, adaptive", 0.75))
    ]
    lines = tables.closeness(rows, pooled)
    assert lines[0] == ["row", "9 full steps: FID"]
    assert [line[0] for line in lines[1:]] == ["full run", "FoCa, adaptive", "few"]
    assert lines[2][1] == "0.75 (1.00 ± 0.00)"
    assert lines[3][1] == "2.50 (3.10 ± 0.14)"
    assert lines[1][1] == "- (2.20 ± 0.28)"
    only = [row for row in rows if row["seed"] == 0]
    assert tables.distances(only, [])["few"] == {9: [3.0, 3.0]}
    write_picture(picture(only, []), tmp_path / "fid.png")
    assert Image.open(tmp_path / "fid.png").size == (760, 420)


@pytest.mark.parametrize("judged", [True, False])
def test_fid_is_drawn_without_a_shift_and_without_rivals(judged):
    from foca_dit.cli.distance import picture

    setting = {"shift": None, "steps": 50, "images": 500, "guidance_scale": 1.0, "seed": 0}
    rows = [{**setting, "row": suite.FULL, "budget": 50, "classifier_fid": 2.0}]
    rows += [{**setting, "row": "few", "budget": 9} | ({"classifier_fid": 3.0} if judged else {})]
    assert picture(rows, []).size == (760, 420)
