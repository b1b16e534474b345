"""Trains the second image model: noise prediction, sampled by DDIM with guidance, as DiT-XL/2 is.

x_t = sqrt(abar_t) image + sqrt(1 - abar_t) noise with linear betas, and the model predicts the
noise from (x_t, t, class). It starts from the flow model's weights, five of its seven blocks, which
saves most of the training: what garments look like is known, the parametrisation is new.

    python examples/fashion_dit/train_noise.py --out runs/noise_dit

Stop it at any time; the same command goes on from the last checkpoint.
"""

from pathlib import Path

import torch
from data import NULL_CLASS, load_fashion_mnist
from diffusers import DDIMScheduler, DiTTransformer2DModel
from train import build_model
from training import arguments, drop_labels, stratified, train

START = Path(__file__).parent / "weights/transformer"
# Five blocks make 7.7 MB in float16. The first one stays: its conditioning is also the head's.
KEPT_BLOCKS = (0, 1, 3, 5, 6)


def pruned(start: Path) -> dict[str, torch.Tensor]:
    """The state dict of a trained model with the kept blocks only, renumbered."""
    model = DiTTransformer2DModel.from_pretrained(start, torch_dtype=torch.float32)
    model.transformer_blocks = torch.nn.ModuleList(model.transformer_blocks[i] for i in KEPT_BLOCKS)
    return model.state_dict()


def noise_prediction_loss(
    model, images: torch.Tensor, labels: torch.Tensor, alphas_cumprod: torch.Tensor, generator
) -> torch.Tensor:
    """Mean squared error of the predicted noise; timesteps 0 to 999 evenly, stratified."""
    steps = (stratified(len(images), generator) * len(alphas_cumprod)).long()
    noise = torch.randn(images.shape, generator=generator)
    labels = drop_labels(labels, NULL_CLASS, generator)
    abar = alphas_cumprod[steps].view(-1, 1, 1, 1)
    mixed = abar.sqrt() * images + (1 - abar).sqrt() * noise
    with torch.autocast("cpu", torch.bfloat16):
        predicted = model(mixed, timestep=steps, class_labels=labels).sample
    return (predicted.float() - noise).square().mean()


def main() -> None:
    doc = __doc__.splitlines()[0]
    parser = arguments(doc, steps=600, batch=64, peak_lr=5e-4, warmup=50)
    parser.add_argument("--start", type=Path, default=START, help="the trained flow model")
    args = parser.parse_args()
    images, labels = load_fashion_mnist("train", args.data)
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    model = build_model(len(KEPT_BLOCKS))
    model.load_state_dict(pruned(args.start))

    def loss_of(model: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
        picked = torch.randint(len(images), (args.batch,), generator=generator)
        return noise_prediction_loss(
            model, images[picked], labels[picked], scheduler.alphas_cumprod, generator
        )

    def export(weights: dict[str, torch.Tensor]) -> None:
        shipped = build_model(len(KEPT_BLOCKS))
        shipped.load_state_dict(weights)
        shipped.half().save_pretrained(args.out / "transformer", safe_serialization=True)
        scheduler.save_pretrained(args.out / "scheduler")

    train(model.train(), loss_of, export, args)


if __name__ == "__main__":
    main()
