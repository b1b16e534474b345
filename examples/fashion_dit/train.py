"""Trains the small Diffusion Transformer that the demo and the quality figures run on.

Flow matching in pixel space: x_s = (1 - s) image + s noise, and the model predicts the velocity
noise - image from (x_s, 1000 s, class). One class label in ten is replaced by the null class, so
that the model serves classifier-free guidance.

    python examples/fashion_dit/train.py --out runs/fashion_dit

Stop it at any time; the same command goes on from the last checkpoint.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from data import CLASSES, DEFAULT_FOLDER, IMAGE_SIZE, NULL_CLASS, load_fashion_mnist
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from torch.optim.swa_utils import AveragedModel

LABEL_DROPOUT = 0.1
EMA_DECAY = 0.999


def build_model(blocks: int = 7, heads: int = 3, head_dim: int = 64) -> DiTTransformer2DModel:
    """A DiT with adaLN-zero initialisation: at the start every block is the identity."""
    model = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=1,
        out_channels=1,
        num_layers=blocks,
        sample_size=IMAGE_SIZE,
        patch_size=4,
        num_embeds_ada_norm=len(CLASSES),
        norm_num_groups=1,
    )
    zero = [block.norm1.linear for block in model.transformer_blocks]
    for layer in [*zero, model.proj_out_1, model.proj_out_2]:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    for block in model.transformer_blocks:
        # In train mode every diffusers block drops labels by itself, each another subset: the null
        # class would never be seen by all blocks at once. Labels are dropped once, in the loop.
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    return model


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Linear warm-up, then a cosine down to 1 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def moving_average(averaged: torch.Tensor, current: torch.Tensor, updates) -> torch.Tensor:
    """An exponential average whose memory grows with what there is to remember."""
    decay = min(EMA_DECAY, (1 + float(updates)) / (10 + float(updates)))
    return torch.lerp(current, averaged, decay)


def flow_matching_loss(
    model, images: torch.Tensor, labels: torch.Tensor, generator
) -> torch.Tensor:
    """Mean squared error of the predicted velocity; sigma is logit-normal, stratified."""
    batch = len(images)
    strata = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    sigma = torch.special.ndtri(strata.clamp(1e-6, 1 - 1e-6)).sigmoid()
    noise = torch.randn(images.shape, generator=generator)
    drop = torch.rand(batch, generator=generator) < LABEL_DROPOUT
    labels = labels.masked_fill(drop, NULL_CLASS)
    mixed = torch.lerp(images, noise, sigma.view(-1, 1, 1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        velocity = model(mixed, timestep=sigma * 1000, class_labels=labels).sample
    return (velocity.float() - (noise - images)).square().mean()


def export(ema: AveragedModel, folder: Path, record: dict) -> None:
    """Writes what the project ships: fp16 weights, the sampler's configuration, how it was made."""
    model = build_model()
    model.load_state_dict(ema.module.state_dict())
    model.half().save_pretrained(folder / "transformer", safe_serialization=True)
    FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(folder / "scheduler")
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint and weights")
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--peak-lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    images, labels = load_fashion_mnist("train", args.data)
    torch.manual_seed(args.seed)
    model = build_model().train()
    ema = AveragedModel(model, avg_fn=moving_average)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=args.peak_lr,
        betas=(0.9, 0.99),
        fused=True,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint, first, seconds, smoothed = args.out / "checkpoint.pt", 0, 0.0, None
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds, smoothed = state["step"], state["seconds"], state["loss"]
        print(f"resumed at step {first}")

    for step in range(first, args.steps):
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.peak_lr)
        picked = torch.randint(len(images), (args.batch,), generator=generator)
        loss = flow_matching_loss(model, images[picked], labels[picked], generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(model)
        value = loss.item()
        smoothed = value if smoothed is None else 0.99 * smoothed + 0.01 * value
        seconds += time.perf_counter() - started
        done = step + 1
        if done % 50 == 0:
            print(f"step {done}/{args.steps}  loss {smoothed:.4f}  {seconds:.0f} s", flush=True)
        if done % 250 == 0 or done == args.steps:
            state = {
                "model": model.state_dict(),
                "ema": ema.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": done,
                "seconds": seconds,
                "loss": smoothed,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            record = {
                "steps": done,
                "batch": args.batch,
                "peak_lr": args.peak_lr,
                "seed": args.seed,
                "ema_decay": EMA_DECAY,
                "label_dropout": LABEL_DROPOUT,
                "smoothed_loss": round(smoothed, 4),
                "seconds": round(seconds),
                "parameters": sum(p.numel() for p in model.parameters()),
                "torch": torch.__version__,
            }
            export(ema, args.out, record)


if __name__ == "__main__":
    main()
