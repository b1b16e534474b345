"""docs/support-matrix.md: made of its data, complete, and checked against what a run has shown."""

from types import SimpleNamespace

import pytest
from support_matrix import DATA, FEATURES, PAGE, Claim, Recorder, Shown, page

# Only these classes of diffusers have it: no video model among them.
IMAGES_ONLY = {"inpainting", "ControlNet", "IP-Adapter", "tensor parallel"}


def test_the_page_is_made_of_its_data():
    assert PAGE.read_text() == page(Shown.load())


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_was_shown_on_an_image_and_a_video_model(feature):
    models = {claim.model for claim in Shown.load() if claim.feature == feature}
    assert any("3D" not in model for model in models) or feature == "frames"
    assert any("3D" in model for model in models) or feature in IMAGES_ONLY


def _report(outcome="passed", claim=("compile", "Model", "stack"), when="call"):
    return SimpleNamespace(
        when=when,
        passed=outcome == "passed",
        nodeid="tests/test_it.py::test_it[case]",
        user_properties=[("other", 1), ("supports", claim)],
    )


@pytest.mark.parametrize(
    "report", [_report("failed"), _report("skipped"), _report(when="setup"), _report(claim="xyz")]
)
def test_only_a_passed_test_shows_its_claim(report):
    recorder = Recorder("check")
    recorder.pytest_runtest_logreport(report)
    assert Claim("compile", "Model", "stack") not in recorder.shown.tests
    recorder.pytest_runtest_logreport(_report())
    assert recorder.shown.tests[Claim("compile", "Model", "stack")] == {"tests/test_it.py::test_it"}


def test_a_claim_that_nothing_shows_fails_the_run_and_is_named():
    session = SimpleNamespace(exitstatus=0)
    recorder = Recorder("check")
    recorder.shown = Shown.load()
    recorder.pytest_sessionfinish(session, 0)
    assert (session.exitstatus, recorder.unshown) == (0, [])
    claim = next(iter(recorder.shown))
    del recorder.shown.tests[claim]
    recorder.pytest_sessionfinish(session, 0)
    assert session.exitstatus == 1
    assert f"{claim.feature}, {claim.model}" in recorder.unshown[0]


def test_a_failed_run_writes_nothing():
    before = DATA.read_text(), PAGE.read_text()
    Recorder("write").pytest_sessionfinish(SimpleNamespace(exitstatus=1), 1)
    assert (DATA.read_text(), PAGE.read_text()) == before
