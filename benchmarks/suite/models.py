"""Models with random weights at the real shapes of published ones, and the loop they run in."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from foca_dit import FoCaCacheConfig, foca_cache
from foca_dit.adapters.published import PUBLISHED, Request
from foca_dit.schedules import Schedule

from .plain_models import ARCHITECTURES

# The paper's warm-up: full steps before the interval begins.
WARMUP = {"dit-xl/2-256": 2, "dit-xl/2-512": 2}

# The real classes at sizes that a processor runs in milliseconds.
TINY: dict[str, dict[str, Any]] = {
    "flux.1-dev": {
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "axes_dims_rope": [4, 4, 8],
    },
    "hunyuan-video": {
        "num_layers": 2,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "rope_axes_dim": (4, 6, 6),
    },
    "dit-xl/2-256": {"num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2},
    "wan2.1-14b": {
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "ffn_dim": 64,
    },
}
TINY["dit-xl/2-512"] = TINY["dit-xl/2-256"]


@dataclass
class Workload:
    """One model and what it is called with.

    Attributes:
        name: of the published model; `source`: which code stands for it.
        sample: [B, ...], the noise that a generation begins with.
        arguments: the other arguments of a call, but for the timestep.
        scale: what one unit of sigma is in the model's timestep.
        context: what every call of the model is made inside of.
        warmup: full steps before the interval begins.
    """

    name: str
    source: str
    model: torch.nn.Module
    sample: torch.Tensor
    request: Request
    arguments: dict[str, Any] = field(default_factory=dict)
    scale: float = 1000.0
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def warmup(self) -> int:
        return WARMUP.get(self.name, 3)

    def call(self, x: torch.Tensor, time: float) -> torch.Tensor:
        """The prediction at a time in 1 .. 0, shaped like the sample."""
        timestep = torch.full((1,), self.scale * time, device=x.device).expand(len(x))
        with self.context():
            output = self.model(hidden_states=x, timestep=timestep, **self.arguments)
        value = output[0] if isinstance(output, tuple) else output.sample
        channels = -1 if x.dim() == 3 else 1
        return value.narrow(channels, 0, x.shape[channels])  # DiT also predicts its variance

    def generate(self, steps: int) -> torch.Tensor:
        """The Euler loop of a flow: what every pipeline does around its transformer."""
        x = self.sample
        for now, after in itertools.pairwise(torch.linspace(1, 0, steps + 1).tolist()):
            x = x + (after - now) * self.call(x, now)
        return x

    def cached(
        self, granularity: str, schedule: Schedule, **more: Any
    ) -> AbstractContextManager[torch.nn.Module]:
        """With the paper's cache at one granularity."""
        config = FoCaCacheConfig(preset="paper", granularity=granularity, schedule=schedule, **more)
        return foca_cache(self.model, config)


def tokens(request: Request) -> int:
    """Image tokens: all compress 8 times in space, some 4 times in time, and patch by 2."""
    frames = (request.frames - 1) // 4 + 1
    return frames * (request.height // 16) * (request.width // 16)


def features(name: str) -> int:
    """Histories at granularity `module`; Wan's gates are shared, so that three sums do."""
    a = ARCHITECTURES[name]
    return 3 if a.cross else 2 * a.double + a.single + 2 * a.alone


def stream(name: str, request: Request) -> tuple[int, int, int]:
    """(B, S, D) of the image stream that is cached."""
    return request.batch, tokens(request), ARCHITECTURES[name].width


def has_diffusers() -> bool:
    return importlib.util.find_spec("diffusers") is not None


def build(
    name: str,
    device: str,
    tiny: bool = False,
    plain: bool | None = None,
    dtype: torch.dtype = torch.bfloat16,
    **asked: int,
) -> Workload:
    """A model of a published shape with random weights, ready to be called.

    Args:
        name: a key of `ARCHITECTURES`.
        tiny: two or three narrow blocks and few tokens.
        plain: the plain PyTorch blocks; None: only where diffusers is not installed.
        asked: fields of `Request` that differ from the published one.
    """
    plain = not has_diffusers() if plain is None else plain
    request = replace(PUBLISHED[name].request, **asked)
    if tiny:
        request = replace(request, height=64, width=64, frames=min(request.frames, 5))
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.device(device):
            make = _plain if plain else _published
            workload = make(name, request, tiny, dtype)
    finally:
        torch.set_default_dtype(before)
    workload.model.requires_grad_(False)
    return workload


def _plain(name: str, request: Request, tiny: bool, dtype: torch.dtype) -> Workload:
    a = ARCHITECTURES[name]
    if tiny:
        few = {k: min(getattr(a, k), 2) for k in ("double", "single", "alone", "cross")}
        a = replace(a, width=32, heads=2, text=(min(a.text[0], 8), min(a.text[1], 16)), **few)
        a = replace(a, hidden=64)
    sample = torch.randn(request.batch, tokens(request), a.channels_in, dtype=dtype)
    text = torch.randn(request.batch, *a.text, dtype=dtype) if a.text[0] else None
    arguments = {} if text is None else {"encoder_hidden_states": text}
    source = "plain PyTorch blocks of the same shapes"
    return Workload(name, source, a.build(), sample, request, arguments)


def _published(name: str, request: Request, tiny: bool, dtype: torch.dtype) -> Workload:
    import diffusers

    diffusers.utils.logging.get_logger("diffusers.models.modeling_utils").setLevel("ERROR")
    published = PUBLISHED[name]
    if tiny:
        published = replace(published, config={**published.config, **TINY[name]})
    model = getattr(diffusers, published.class_name)(**published.config).to(dtype).eval()
    drawn = {k: _drawn(k, v) for k, v in published.inputs(request).items() if k != "timestep"}
    sample = drawn.pop("hidden_states")
    scale = 1.0 if published.class_name.startswith("Flux") else 1000.0
    return Workload(name, f"diffusers {published.class_name}", model, sample, request, drawn, scale)


def _drawn(name: str, value: Any) -> Any:
    """A value for an argument of which only shape and dtype are known."""
    if not isinstance(value, torch.Tensor):
        return value
    if not value.is_floating_point():
        return torch.zeros(value.shape, dtype=value.dtype)
    if name in ("encoder_attention_mask", "guidance"):
        return torch.ones(value.shape)
    if name.endswith("_ids"):
        return torch.zeros(value.shape, dtype=value.dtype)
    return torch.randn(value.shape, dtype=value.dtype)


def of_shape(workload: Workload) -> dict[str, Any]:
    """The columns that say what was measured."""
    request = workload.request
    return {
        "model": workload.name,
        "source": workload.source,
        "pixels": [request.height, request.width],
        "frames": request.frames,
        "batch": len(workload.sample),
    }
