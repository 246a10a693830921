"""Augmentation of whole batches on the device, differentiable with respect to the images.

A policy is a list of steps joined by underscores and applied in that order, as in DiffAugment (Zhao et al., 2020) and
the dataset condensation code; a step may have a strength: "color_crop", "flip_crop=0.0625_cutout". Several lists are
joined by bars, "color|crop_flip": every batch gets one of them, drawn uniformly, as in the Dataset Condensation code.
Students and the matching pool use it on normalised images, the GAN on images in [-1, 1].

| step | per image, strength s | default s |
|---|---|---|
| crop | shift by whole pixels, at most s of the side, in both directions | 0.125 |
| flip | flip horizontally with probability s | 0.5 |
| brightness | add U(-s/2, s/2) | 1.0 |
| saturation | scale the distance from the grey image by U(0, s); nothing for one channel | 2.0 |
| contrast | scale the distance from the image's mean by U(1 - s, 1 + s) | 0.5 |
| color | brightness, saturation, contrast | their own |
| cutout | fill a square of s of the side | 0.5 |
| scale | zoom both axes by U(1/s, s), bilinear | 1.2 |
| rotate | turn by U(-s, s) degrees, bilinear | 15 |

Shape legend: N images, C channels, H height, W width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dim.policy import Steps, parse_policy


def _uniform(images: Tensor, low: float, high: float, generator: torch.Generator | None) -> Tensor:
    """Return one draw per image, `[N, 1, 1, 1]` in [low, high)."""
    draws = torch.rand(images.shape[0], 1, 1, 1, device=images.device, generator=generator)
    return (low + (high - low) * draws).to(images.dtype)


def shift(images: Tensor, dy: Tensor, dx: Tensor, fill: float = 0.0) -> Tensor:
    """Move every image by its own whole number of pixels.

    Args:
        images: any dtype `[N, C, H, W]`.
        dy, dx: int64 `[N]`, how far down and right the content moves, in pixels.
        fill: the value of the pixels that come into view.

    Returns:
        A tensor like `images`.
    """
    n, c, height, width = images.shape
    rows = torch.arange(height, device=images.device) - dy[:, None] + 1
    columns = torch.arange(width, device=images.device) - dx[:, None] + 1
    padded = F.pad(images, (1, 1, 1, 1), value=fill)
    row_index = rows.clamp_(0, height + 1)[:, None, :, None].expand(n, c, height, width + 2)
    column_index = columns.clamp_(0, width + 1)[:, None, None, :].expand(n, c, height, width)
    return padded.gather(2, row_index).gather(3, column_index)


def _crop(images: Tensor, strength: float, generator: torch.Generator | None, fill: float) -> Tensor:
    n, _, height, width = images.shape
    reach_y, reach_x = int(height * strength + 0.5), int(width * strength + 0.5)
    dy = torch.randint(-reach_y, reach_y + 1, (n,), device=images.device, generator=generator)
    dx = torch.randint(-reach_x, reach_x + 1, (n,), device=images.device, generator=generator)
    return shift(images, dy, dx, fill)


def _flip(images: Tensor, strength: float, generator: torch.Generator | None, fill: float) -> Tensor:
    return torch.where(_uniform(images, 0, 1, generator) < strength, images.flip(3), images)


def _brightness(images: Tensor, strength: float, generator: torch.Generator | None, fill: float) -> Tensor:
    return images + _uniform(images, -strength / 2, strength / 2, generator)


def _saturation(images: Tensor, strength: float, generator: torch.Generator | None, fill: float) -> Tensor:
    if images.shape[1] == 1:
        return images
    grey = images.mean(dim=1, keepdim=True)
    return grey + (images - grey) * _uniform(images, 0, strength, generator)


def _contrast(images: Tensor, strength: float, generator: torch.Generator | None, fill: float) -> Tensor:
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * _uniform(images, 1 - strength, 1 + strength, generator)


def _cutout(images: Tensor, strength: float, generator: torch.Generator | None, fill: float) -> Tensor:
    n, _, height, width = images.shape

    def covered(side: int) -> Tensor:
        length = int(side * strength + 0.5)
        centre = torch.randint(0, side + 1 - length % 2, (n, 1), device=images.device, generator=generator)
        offset = torch.arange(side, device=images.device) - (centre - length // 2)
        return (offset >= 0) & (offset < length)

    cut = covered(height)[:, None, :, None] & covered(width)[:, None, None, :]
    return images.masked_fill(cut, fill)


def _resample(images: Tensor, matrices: Tensor, fill: float) -> Tensor:
    """Sample `images` where the 2x2 `matrices` `[N, 2, 2]` send the output's pixels."""
    theta = F.pad(matrices, (0, 1))
    grid = F.affine_grid(theta, list(images.shape), align_corners=False).to(images.dtype)
    return F.grid_sample(images - fill, grid, align_corners=False) + fill


def _scale(images: Tensor, strength: float, generator: torch.Generator | None, fill: float) -> Tensor:
    draws = torch.rand(images.shape[0], 2, device=images.device, generator=generator)
    return _resample(images, torch.diag_embed(1 / strength + (strength - 1 / strength) * draws), fill)


def _rotate(images: Tensor, strength: float, generator: torch.Generator | None, fill: float) -> Tensor:
    angles = (torch.rand(images.shape[0], device=images.device, generator=generator) * 2 - 1) * (
        strength * torch.pi / 180
    )
    cosine, sine = angles.cos(), angles.sin()
    matrices = torch.stack([torch.stack([cosine, -sine], dim=1), torch.stack([sine, cosine], dim=1)], dim=1)
    return _resample(images, matrices, fill)


_Step = Callable[[Tensor, float, torch.Generator | None, float], Tensor]
_STEPS: dict[str, _Step] = {
    "crop": _crop,
    "flip": _flip,
    "brightness": _brightness,
    "saturation": _saturation,
    "contrast": _contrast,
    "cutout": _cutout,
    "scale": _scale,
    "rotate": _rotate,
}


def augment(images_NCHW: Tensor, policy: str, generator: torch.Generator | None = None, *, fill: float = 0.0) -> Tensor:
    """Augment a batch, every image by its own draws; of alternatives, the whole batch gets one.

    Args:
        images_NCHW: float `[N, C, H, W]`, in whatever scale the network takes; gradients flow through.
        policy: what to do (see the module's table); "none" returns `images_NCHW` itself.
        generator: source of the draws, on the images' device; None takes torch's global one.
        fill: value for pixels that come into view or are cut out, in the images' scale.

    Returns:
        A tensor of the same shape and dtype; equal generators give equal results.

    Raises:
        BadValueError: a policy that cannot be parsed.
    """
    alternatives = parse_policy(policy)
    if len(alternatives) == 1:
        return _apply(images_NCHW, alternatives[0], generator, fill)
    # All are made and one is taken, because a CUDA graph cannot branch on what it drew.
    made = torch.stack([_apply(images_NCHW, steps, generator, fill) for steps in alternatives])
    drawn = torch.randint(len(alternatives), (1,), device=images_NCHW.device, generator=generator)
    return made.index_select(0, drawn).squeeze(0)


def _apply(images: Tensor, steps: Steps, generator: torch.Generator | None, fill: float) -> Tensor:
    for name, strength in steps:
        images = _STEPS[name](images, strength, generator, fill)
    return images
