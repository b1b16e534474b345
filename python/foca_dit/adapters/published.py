"""Published models by name: enough to plan a cache for them without their weights.

The configurations are those of the models' public `config.json`, given where they differ from the
defaults of the diffusers class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Request:
    """What is asked of a model: pixels, frames, and samples in one call (two with guidance)."""

    height: int
    width: int
    frames: int = 1
    batch: int = 1


@dataclass(frozen=True)
class Published:
    """One published model.

    Attributes:
        class_name: its diffusers class.
        inputs: the arguments of one call, on the meta device.
        request: what it is usually asked for.
        config: constructor arguments that differ from the class's defaults.
        steps: denoising steps that are usual.
    """

    class_name: str
    inputs: Callable[[Request], dict[str, Any]]
    request: Request
    config: dict[str, Any] = field(default_factory=dict)
    steps: int = 50

    def build(self) -> torch.nn.Module:
        """The model on the meta device, in bfloat16."""
        import diffusers

        diffusers.utils.logging.get_logger("diffusers.models.modeling_utils").setLevel("ERROR")
        with torch.device("meta"):
            model: torch.nn.Module = getattr(diffusers, self.class_name)(**self.config)
        return model.to(DTYPE).eval()


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=DTYPE, device="meta")


def _timestep(batch: int) -> torch.Tensor:
    return torch.empty(batch, device="meta")


def _dit(request: Request) -> dict[str, Any]:
    b = request.batch
    return {
        "hidden_states": _empty(b, 4, request.height // 8, request.width // 8),
        "timestep": _timestep(b),
        "class_labels": torch.zeros(b, dtype=torch.long, device="meta"),
    }


def _flux(
    request: Request,
    text: int = 512,
    channels: int = 64,
    text_dim: int = 4096,
    axes: int = 3,
    pooled: bool = True,
    guidance: bool = True,
) -> dict[str, Any]:
    b, tokens = request.batch, (request.height // 16) * (request.width // 16)
    call = {
        "hidden_states": _empty(b, tokens, channels),
        "encoder_hidden_states": _empty(b, text, text_dim),
        "timestep": _timestep(b),
        "img_ids": _empty(tokens, axes),
        "txt_ids": _empty(text, axes),
    }
    if guidance:
        call["guidance"] = _timestep(b)
    if pooled:
        call["pooled_projections"] = _empty(b, 768)
    return call


def _schnell(request: Request) -> dict[str, Any]:
    return _flux(request, text=256, guidance=False)


def _flux2(request: Request) -> dict[str, Any]:
    return _flux(request, channels=128, text_dim=15360, axes=4, pooled=False)


def _sd3(request: Request) -> dict[str, Any]:
    b = request.batch
    return {
        "hidden_states": _empty(b, 16, request.height // 8, request.width // 8),
        "encoder_hidden_states": _empty(b, 333, 4096),
        "pooled_projections": _empty(b, 2048),
        "timestep": _timestep(b),
    }


def _qwen(request: Request) -> dict[str, Any]:
    b, grid = request.batch, (request.height // 16, request.width // 16)
    return {
        "hidden_states": _empty(b, grid[0] * grid[1], 64),
        "encoder_hidden_states": _empty(b, 512, 3584),
        "timestep": _timestep(b),
        "img_shapes": [[(1, *grid)]] * b,
    }


def _hunyuan(request: Request) -> dict[str, Any]:
    b = request.batch
    return {
        "hidden_states": _video(request, 16, 8, 4),
        "encoder_hidden_states": _empty(b, 256, 4096),
        "encoder_attention_mask": torch.empty(b, 256, device="meta"),
        "pooled_projections": _empty(b, 768),
        "timestep": _timestep(b),
        "guidance": _timestep(b),
    }


def _wan(request: Request) -> dict[str, Any]:
    b = request.batch
    return {
        "hidden_states": _video(request, 16, 8, 4),
        "encoder_hidden_states": _empty(b, 512, 4096),
        "timestep": _timestep(b),
    }


def _video(request: Request, channels: int, space: int, time: int) -> torch.Tensor:
    frames = (request.frames - 1) // time + 1
    return _empty(request.batch, channels, frames, request.height // space, request.width // space)


def _dit_xl(size: int) -> Published:
    request = Request(size, size, batch=2)
    return Published("DiTTransformer2DModel", _dit, request, {"sample_size": size // 8})


_SD35_MEDIUM = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}

PUBLISHED: dict[str, Published] = {
    "dit-xl/2-256": _dit_xl(256),
    "dit-xl/2-512": _dit_xl(512),
    "flux.1-dev": Published(
        "FluxTransformer2DModel", _flux, Request(1024, 1024), {"guidance_embeds": True}
    ),
    "flux.1-schnell": Published("FluxTransformer2DModel", _schnell, Request(1024, 1024), steps=4),
    "flux.2-dev": Published("Flux2Transformer2DModel", _flux2, Request(1024, 1024)),
    "sd3.5-medium": Published(
        "SD3Transformer2DModel", _sd3, Request(1024, 1024, batch=2), _SD35_MEDIUM, steps=40
    ),
    "qwen-image": Published("QwenImageTransformer2DModel", _qwen, Request(1328, 1328)),
    "hunyuan-video": Published(
        "HunyuanVideoTransformer3DModel", _hunyuan, Request(720, 1280, frames=129)
    ),
    "wan2.1-14b": Published("WanTransformer3DModel", _wan, Request(720, 1280, frames=81)),
}
