"""The training loop that the models here share: AdamW, a cosine, an average of the weights.

A script brings the model, the loss of a step and what to write. Stop it at any time; the same
command goes on from the last checkpoint.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from data import DEFAULT_FOLDER
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel

LABEL_DROPOUT = 0.1
EMA_DECAY = 0.999
SHOW_EVERY, SAVE_EVERY = 50, 100


def arguments(
    description: str, steps: int, batch: int, peak_lr: float, warmup: int = 200
) -> argparse.ArgumentParser:
    """The options of every training script; a script may add its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint and weights")
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--peak-lr", type=float, default=peak_lr)
    parser.add_argument("--warmup", type=int, default=warmup, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine down to 1 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def moving_average(averaged: torch.Tensor, current: torch.Tensor, updates) -> torch.Tensor:
    """An exponential average whose memory grows with what there is to remember."""
    decay = min(EMA_DECAY, (1 + float(updates)) / (10 + float(updates)))
    return torch.lerp(current, averaged, decay)


def stratified(batch: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform in (0, 1), one per stratum: less noise in the loss than independent numbers."""
    return (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch


def drop_labels(labels: torch.Tensor, null: int, generator: torch.Generator) -> torch.Tensor:
    """One label in ten becomes the null class, so that the model serves guidance."""
    return labels.masked_fill(torch.rand(len(labels), generator=generator) < LABEL_DROPOUT, null)


def flow_matching_loss(
    velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    data: torch.Tensor,
    generator: torch.Generator,
    shift: float = 1.0,
) -> torch.Tensor:
    """Mean squared error of a velocity, predicted from a mixed sample and its timestep.

    The noise levels are logit-normal, stratified, and then shifted as the sampler's are.
    """
    strata = stratified(len(data), generator).clamp(1e-6, 1 - 1e-6)
    sigma = (torch.special.ndtri(strata) + math.log(shift)).sigmoid()
    noise = torch.randn(data.shape, generator=generator)
    mixed = torch.lerp(data, noise, sigma.view(-1, *[1] * (data.dim() - 1)))
    with torch.autocast("cpu", torch.bfloat16):
        predicted = velocity(mixed, sigma * 1000)
    return (predicted.float() - (noise - data)).square().mean()


def train(
    model: torch.nn.Module,
    loss_of: Callable[[torch.nn.Module, torch.Generator], torch.Tensor],
    export: Callable[[dict[str, torch.Tensor]], Any],
    args: argparse.Namespace,
) -> None:
    """Trains, and at every checkpoint exports the averaged weights and `training.json`.

    Args:
        model: in train mode.
        loss_of: the loss of one step, all of whose randomness comes from the generator.
        export: writes averaged weights (a state dict) in the form that is shipped.
        args: what `arguments` parsed.
    """
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
        print(f"resumed at step {first}", flush=True)

    for step in range(first, args.steps):
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.peak_lr, args.warmup)
        with sdpa_kernel(SDPBackend.MATH):  # for so few tokens a quarter faster than the fused one
            loss = loss_of(model, generator)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(model)
        value = loss.item()
        smoothed = value if smoothed is None else 0.99 * smoothed + 0.01 * value
        seconds += time.perf_counter() - started
        done = step + 1
        if done % SHOW_EVERY == 0:
            print(f"step {done}/{args.steps}  loss {smoothed:.4f}  {seconds:.0f} s", flush=True)
        if done % SAVE_EVERY == 0 or done == args.steps:
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
            export(ema.module.state_dict())
            record = {
                "steps": done,
                "batch": args.batch,
                "peak_lr": args.peak_lr,
                "warmup": args.warmup,
                "seed": args.seed,
                "ema_decay": EMA_DECAY,
                "label_dropout": LABEL_DROPOUT,
                "smoothed_loss": round(smoothed, 4),
                "seconds": round(seconds),
                "parameters": sum(p.numel() for p in model.parameters()),
                "torch": torch.__version__,
            }
            (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
