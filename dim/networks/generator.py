"""The generator: latents and labels in, images out.

Resize and convolution instead of transposed convolution: int8 gains little on the latter, and the former makes no
checkerboard patterns (Odena et al. 2016).

Shapes: N batch, Z latent dimension, K classes, C channels, H = W image_px.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dim.config import GeneratorConfig
from dim.networks.batch_norm import BatchNorm, ClassBatchNorm
from dim.networks.published import PaperGenerator

MAX_FIRST_PX = 7
"""The first feature map is at most this wide and at least half of it."""


def resolutions(image_px: int) -> list[int]:
    """Side lengths of the feature maps from the smallest to `image_px`: 28 gives 7, 14, 28.

    Halving rounds up, so that every size is reached by resizing to a fixed size.
    """
    sizes = [image_px]
    while sizes[0] > MAX_FIRST_PX:
        sizes.insert(0, (sizes[0] + 1) // 2)
    return sizes


class ResizeGenerator(nn.Module):
    """A residual conditional generator made of resizes and convolutions.

    Args:
        latent_dim: Z.
        num_classes: K.
        image_px: H = W, 8 to 128.
        channels: C, 1 or 3.
        width: channels at full resolution, doubled at every halving.
        max_width: upper bound on the channels.
        conditioning: `input` or `norm`; see `GeneratorConfig`.
        mirrored: whether an image whose last latent is positive is flipped horizontally.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        num_classes: int,
        image_px: int,
        channels: int,
        width: int,
        max_width: int,
        conditioning: str,
        mirrored: bool = False,
    ) -> None:
        super().__init__()
        self.latent_dim, self.num_classes = latent_dim, num_classes
        self.image_px, self.channels, self.mirrored = image_px, channels, mirrored
        sizes = resolutions(image_px)
        widths = [min(width * 2 ** (len(sizes) - 1 - i), max_width) for i in range(len(sizes))]
        classes = num_classes if conditioning == "norm" else 0
        self.embed = nn.Embedding(num_classes, latent_dim)
        self.first_px, self.first_width = sizes[0], widths[0]
        self.first = nn.Linear(2 * latent_dim, widths[0] * sizes[0] ** 2)
        self.blocks = nn.ModuleList(
            _Block(before, after, px, classes)
            for before, after, px in zip(widths[:-1], widths[1:], sizes[1:], strict=True)
        )
        self.last_norm = _Norm(widths[-1], classes)
        self.last = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, latents_NZ: Tensor, labels_N: Tensor) -> Tensor:
        """Draw images.

        Args:
            latents_NZ: float32, standard normal times the bundle's `latent_std`.
            labels_N: int64, 0 to K-1.

        Returns:
            images_NCHW, float, -1 to 1.
        """
        images = self.draw(latents_NZ, labels_N)
        if not self.mirrored:
            return images
        return torch.where(latents_NZ[:, -1, None, None, None] > 0, images.flip(3), images)

    def draw(self, latents_NZ: Tensor, labels_N: Tensor) -> Tensor:
        """The images before any horizontal flip, which is the part that `dim.export` has torch convert."""
        condition = F.normalize(self.embed(labels_N), dim=1) * self.latent_dim**0.5
        hidden = self.first(torch.cat([latents_NZ, condition.to(latents_NZ.dtype)], dim=1))
        hidden = hidden.view(-1, self.first_width, self.first_px, self.first_px)
        for block in self.blocks:
            hidden = block(hidden, labels_N)
        return torch.tanh(self.last(F.relu(self.last_norm(hidden, labels_N))))


class _Norm(nn.Module):
    """Batch normalisation, per class where `num_classes` is not 0."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm: nn.Module = ClassBatchNorm(width, num_classes) if num_classes else BatchNorm(width)
        self.per_class = num_classes > 0

    def forward(self, hidden: Tensor, labels_N: Tensor) -> Tensor:
        output: Tensor = self.norm(hidden, labels_N) if self.per_class else self.norm(hidden)
        return output


class _Block(nn.Module):
    """norm, relu, conv, norm, relu, resize, conv, added to a resized 1x1 convolution of the input.

    Everything that can runs before the resize: half the multiplications of the usual order (resize first).
    """

    def __init__(self, before: int, after: int, px: int, num_classes: int) -> None:
        super().__init__()
        self.px = px
        self.norm1, self.norm2 = _Norm(before, num_classes), _Norm(after, num_classes)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1, bias=False)

    def forward(self, hidden: Tensor, labels_N: Tensor) -> Tensor:
        size = (self.px, self.px)
        skip = F.interpolate(self.skip(hidden), size=size, mode="nearest")
        hidden = self.conv1(F.relu(self.norm1(hidden, labels_N)))
        hidden = F.interpolate(F.relu(self.norm2(hidden, labels_N)), size=size, mode="nearest")
        output: Tensor = skip + self.conv2(hidden)
        return output


Generator = ResizeGenerator | PaperGenerator
"""`(latents_NZ, labels_N) -> images_NCHW`, with `latent_dim`, `num_classes`, `image_px` and `channels`."""


def build_generator(config: GeneratorConfig, *, num_classes: int, image_px: int, channels: int) -> Generator:
    """Build a generator with fresh weights from torch's global random state.

    Args:
        config: kind and widths.
        num_classes: K.
        image_px: H = W; 8 to 128, of the kind `paper` a multiple of 8, or 28.
        channels: C, 1 or 3.

    Raises:
        ValueError: the published generator cannot draw such images, or has no latent beside the labels.
    """
    if config.kind == "paper":
        return PaperGenerator(
            latent_dim=config.latent_dim,
            num_classes=num_classes,
            image_px=image_px,
            channels=channels,
            width=config.width,
        )
    return ResizeGenerator(
        latent_dim=config.latent_dim,
        num_classes=num_classes,
        image_px=image_px,
        channels=channels,
        width=config.width,
        max_width=config.max_width,
        conditioning=config.conditioning,
        mirrored=config.mirrored,
    )


def generator_from_dict(values: Mapping[str, Any]) -> Generator:
    """Build the generator that a run's `config.json` or a bundle's manifest describes under `generator`.

    Args:
        values: the fields of `GeneratorConfig`, with `num_classes`, `image_px` and `channels`.

    Raises:
        KeyError, TypeError, ValueError: a field is missing, unknown or out of range.
    """
    config = dict(values)
    sizes = {name: int(config.pop(name)) for name in ("num_classes", "image_px", "channels")}
    return build_generator(GeneratorConfig(**config), **sizes)
