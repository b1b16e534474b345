"""The README's example for diffusers on the models that it is for: a tiny FLUX and HunyuanVideo."""

from pathlib import Path

import diffusers
import pytest
import torch
from models import flux_prompt, tiny_flux_pipeline
from test_models_pipelines import PIPELINES, _of

from foca_dit import foca_cache_stats

README = Path(__file__).parents[2] / "README.md"
SIZE = {"output_type": "latent"}
# pipeline -> (how it is made, its prompt as embeddings, what it returns)
MODELS = {
    "FluxPipeline": (
        tiny_flux_pipeline,
        lambda: {**flux_prompt(), "height": 16, "width": 16, **SIZE},
        "images",
    ),
    "HunyuanVideoPipeline": (
        lambda: _of("HunyuanVideoPipeline"),
        lambda: PIPELINES["HunyuanVideoPipeline"][2] | SIZE,
        "frames",
    ),
}


@pytest.mark.supports("pipeline")
@pytest.mark.parametrize("name", MODELS)
def test_the_readmes_example_runs(name, monkeypatch):
    """Its own lines: only the pipeline's name and the prompt are others."""
    text = README.read_text()
    (code,) = [b for b in text.split("```python\n") if "from diffusers import DiTPipeline" in b]
    code = code.partition("```")[0]
    build, prompt, returned = MODELS[name]
    for ours, theirs in (
        ("DiTPipeline", name),
        ("class_labels=[1]", "**prompt"),
        (".images[0]", f".{returned}[0]"),
    ):
        assert ours in code
        code = code.replace(ours, theirs)
    monkeypatch.setattr(getattr(diffusers, name), "from_pretrained", lambda *_, **__: build())
    scope = {"prompt": prompt()}
    exec(compile(code, "README", "exec"), scope)
    stats = foca_cache_stats(scope["pipe"])
    assert stats["full_steps"] + stats["skipped_steps"] == 50
    assert stats["skipped_steps"] == 38
    assert torch.isfinite(scope["image"]).all()
