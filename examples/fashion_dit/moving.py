"""Moving garments: short clips in which a garment of Fashion-MNIST moves and bounces."""

import torch
import torch.nn.functional as F

FRAMES = 8
FRAME_SIZE = 20
GARMENT_SIZE = 14  # pixels that the 28 x 28 garment is shrunk to, so that there is room to move
SLOWEST, FASTEST = 0.4, 1.4  # pixels per frame


def positions(clips: int, generator: torch.Generator, frames: int = FRAMES) -> torch.Tensor:
    """Upper left corners of the garments, in pixels [clips, frames, 2], each in [0, room].

    Start and direction are uniform, the speed is uniform and constant; walls reflect.
    """
    room = float(FRAME_SIZE - GARMENT_SIZE)
    start = room * torch.rand(clips, 1, 2, generator=generator)
    angle = 2 * torch.pi * torch.rand(clips, generator=generator)
    speed = SLOWEST + (FASTEST - SLOWEST) * torch.rand(clips, generator=generator)
    velocity = speed[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    free = start + torch.arange(frames).view(1, -1, 1) * velocity[:, None]
    return room - (free % (2 * room) - room).abs()  # a triangle wave


def moving_clips(
    images: torch.Tensor, generator: torch.Generator, frames: int = FRAMES
) -> torch.Tensor:
    """Clips of garments that move; positions between pixels are interpolated.

    Args:
        images: [n, 1, 28, 28] in [-1, 1], -1 is the background.
        generator: of the motion.
        frames: of a clip.

    Returns:
        [n, 1, frames, 20, 20] in [-1, 1].
    """
    corners = positions(len(images), generator, frames)
    centres = (corners + (GARMENT_SIZE - FRAME_SIZE) / 2) / (FRAME_SIZE / 2)  # in [-1, 1], x first
    zoom = FRAME_SIZE / GARMENT_SIZE
    theta = torch.zeros(len(images), frames, 2, 3)
    theta[:, :, 0, 0] = theta[:, :, 1, 1] = zoom
    theta[:, :, :, 2] = -zoom * centres
    grid = F.affine_grid(
        theta.flatten(0, 1), [len(images) * frames, 1, FRAME_SIZE, FRAME_SIZE], align_corners=False
    )
    # At half the size, so that the zoom out does not alias; 0 is the background, around it too.
    garments = F.avg_pool2d(images + 1, 2).repeat_interleave(frames, 0)
    moved = F.grid_sample(garments, grid, align_corners=False) - 1
    return moved.unflatten(0, (len(images), frames)).transpose(1, 2)
