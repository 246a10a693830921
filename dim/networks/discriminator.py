"""The discriminator of both stages.

With a flattened head instead of a mean-pooled one, the standard deviation over groups of one class as a feature, and
the logistic loss with R1, the classes of MNIST do not collapse to one or two digits. A classifier trained on fifty
images per class then reaches 96.7 %, against 67.9 % without these three changes (lab/LOG.md).

Shapes: N batch, G group, K classes, C channels, H = W image_px.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dim.config import DiscriminatorConfig
from dim.networks.generator import resolutions
from dim.networks.published import PaperDiscriminator

LEAKY_SLOPE = 0.2


class ProjectionDiscriminator(nn.Module):
    """Residual blocks, standard deviation over groups, a flattened head, and a projection on the class.

    Args:
        num_classes: K.
        image_px: H = W.
        channels: C.
        width: channels at full resolution, doubled at every halving.
        max_width: upper bound on the channels.
        group_size: consecutive images of one class that share a standard deviation; must divide N.
        patch_px: 2 begins at half the resolution, with patches of 2x2 pixels as channels.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_px: int,
        channels: int,
        width: int,
        max_width: int,
        group_size: int,
        patch_px: int = 1,
    ) -> None:
        super().__init__()
        self.group_size = group_size
        sizes = resolutions(image_px)[::-1]
        widths = [min(width * 2**i, max_width) for i in range(len(sizes))]
        sizes, widths = sizes[patch_px - 1 :], widths[patch_px - 1 :]
        self.first = _PatchConv(channels, widths[0], patch_px)
        self.blocks = nn.ModuleList(
            _Block(before, after, px) for before, after, px in zip(widths[:-1], widths[1:], sizes[1:], strict=True)
        )
        self.last = nn.Conv2d(widths[-1] + (group_size > 1), widths[-1], 3, padding=1)
        self.head = nn.Linear(widths[-1] * sizes[-1] ** 2, widths[-1])
        self.critic = nn.Linear(widths[-1], 1)
        self.embed = nn.Embedding(num_classes, widths[-1])
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.critic.weight, std=widths[-1] ** -0.5)
        nn.init.normal_(self.embed.weight, std=widths[-1] ** -0.5)

    def forward(self, images_NCHW: Tensor, labels_N: Tensor) -> Tensor:
        """One logit per image, `[N]`: positive for real.

        Args:
            images_NCHW: -1 to 1; every run of `group_size` images has one class.
            labels_N: int64.
        """
        hidden = _leaky(self.first(images_NCHW))
        for block in self.blocks:
            hidden = block(hidden)
        if self.group_size > 1:
            hidden = torch.cat([hidden, self._group_deviation(hidden)], dim=1)
        hidden = _leaky(self.last(hidden))
        hidden = _leaky(self.head(hidden.flatten(1)))
        logits: Tensor = self.critic(hidden)[:, 0] + (hidden * self.embed(labels_N)).sum(dim=1)
        return logits.float()

    def _group_deviation(self, hidden: Tensor) -> Tensor:
        """Mean standard deviation within each group, as one constant channel `[N, 1, h, w]` (arXiv 1710.10196)."""
        count, _, height, width = hidden.shape
        groups = hidden.float().unflatten(0, (count // self.group_size, self.group_size))  # type: ignore[no-untyped-call]
        # Five times as fast as Tensor.var on channels_last memory.
        variance = (groups - groups.mean(dim=1, keepdim=True)).square().mean(dim=1)
        deviation = (variance + 1e-8).sqrt().mean(dim=(1, 2, 3))
        deviation = deviation.repeat_interleave(self.group_size)
        channel: Tensor = deviation.view(count, 1, 1, 1).expand(count, 1, height, width).to(hidden.dtype)
        return channel


def _leaky(hidden: Tensor) -> Tensor:
    """LeakyReLU in place, which nothing else reads: a step with R1 takes 0.93 of its time."""
    return F.leaky_relu(hidden, LEAKY_SLOPE, inplace=True)


class _PatchConv(nn.Conv2d):
    """A 3x3 convolution of patches, whose pixels are channels; a last half patch is filled up with zeros."""

    def __init__(self, inputs: int, outputs: int, patch_px: int) -> None:
        super().__init__(inputs * patch_px**2, outputs, 3, padding=1)
        self.patch_px = patch_px

    def forward(self, images_NCHW: Tensor) -> Tensor:
        if self.patch_px > 1:
            height, width = images_NCHW.shape[2:]
            images_NCHW = F.pad(images_NCHW, (0, -width % self.patch_px, 0, -height % self.patch_px))
            images_NCHW = F.pixel_unshuffle(images_NCHW, self.patch_px)
        return super().forward(images_NCHW)


class _Block(nn.Module):
    """Two convolutions and a shrinking average, added to a 1x1 convolution of the shrunk input."""

    def __init__(self, before: int, after: int, px: int) -> None:
        super().__init__()
        self.px = px
        self.conv1 = nn.Conv2d(before, before, 3, padding=1)
        self.conv2 = nn.Conv2d(before, after, 3, padding=1, stride=2)
        self.skip = nn.Conv2d(before, after, 1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        skip = self.skip(F.adaptive_avg_pool2d(hidden, self.px))
        hidden = _leaky(self.conv1(hidden))
        output: Tensor = (skip + _leaky(self.conv2(hidden))) * 0.5**0.5
        return output


def build_discriminator(config: DiscriminatorConfig, *, num_classes: int, image_px: int, channels: int) -> nn.Module:
    """The discriminator of a configuration.

    Returns:
        `projection`: `(images_NCHW, labels_N) -> logits_N`; `paper`: `images_NCHW -> (critic_N, class_logits_NK)`.
    """
    shape = {"num_classes": num_classes, "image_px": image_px, "channels": channels}
    if config.kind == "paper":
        return PaperDiscriminator(**shape, width=config.width)
    return ProjectionDiscriminator(
        **shape,
        width=config.width,
        max_width=config.max_width,
        group_size=config.group_size,
        patch_px=config.patch_px,
    )
