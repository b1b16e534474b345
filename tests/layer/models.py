"""Real diffusers models with small random weights, and the loops that the tests run them in."""

import itertools

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)

from foca_dit.analysis.sampling import sample


def tiny_dit(seed: int = 0, classes: int = 10, channels: int = 4, size: int = 8):
    torch.manual_seed(seed)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=channels,
        num_layers=3,
        sample_size=size,
        patch_size=2,
        num_embeds_ada_norm=classes,
        norm_num_groups=1,
    ).eval()


def tiny_flux(seed: int = 0):
    torch.manual_seed(seed)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    ).eval()


def tiny_dit_pipeline(seed: int = 0):
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(8,), latent_channels=4, norm_num_groups=2, sample_size=8
    )
    pipeline = DiTPipeline(tiny_dit(seed, classes=1000), vae.eval(), DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(model, batch: int = 2, steps: int = 12, seed: int = 0, guidance_scale: float = 1.0):
    """Samples a batch; everything random is fixed by the seed."""
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, config.in_channels, config.sample_size, config.sample_size)
    noise = torch.randn(shape, generator=generator)
    labels = torch.arange(batch) % config.num_embeds_ada_norm
    return sample(model, FlowMatchEulerDiscreteScheduler(), noise, labels, steps, guidance_scale)


@torch.no_grad()
def call_dit(model, timesteps, x, labels=None):
    """The outputs of one call per timestep, all on the same sample."""
    labels = torch.zeros(len(x), dtype=torch.long) if labels is None else labels
    return [
        model(x, timestep=torch.full((len(x),), t), class_labels=labels).sample for t in timesteps
    ]


@torch.no_grad()
def draw_flux(model, steps: int = 12, seed: int = 0, tokens: int = 6, branches: int = 1, **extra):
    """A plain Euler loop around FLUX; `branches` calls per step, as true guidance makes them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, tokens, 4, generator=generator)
    texts = [torch.randn(1, 5, 32, generator=generator) for _ in range(branches)]
    pooled = torch.randn(1, 32, generator=generator)
    sigmas = torch.linspace(1, 0, steps + 1)
    for now, after in itertools.pairwise(sigmas):
        velocity = sum(
            model(
                hidden_states=x,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=now[None],
                img_ids=torch.zeros(tokens, 3),
                txt_ids=torch.zeros(5, 3),
                **extra,
            ).sample
            for text in texts
        ) / len(texts)
        x = x + (after - now) * velocity
    return x


def tiny_flux_pipeline(seed: int = 0):
    """A FluxPipeline without text encoders: prompts go in as embeddings."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(8,), latent_channels=1, norm_num_groups=2, sample_size=32
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline = FluxPipeline(scheduler, vae.eval(), None, None, None, None, tiny_flux(seed))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flux_prompt(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "prompt_embeds": torch.randn(1, 5, 32, generator=generator),
        "pooled_prompt_embeds": torch.randn(1, 32, generator=generator),
    }
