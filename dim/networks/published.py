"""The published pair of networks (DiM, arXiv 2303.04707; reference code vimar-gu/DiM), for any number of classes.

They are unchanged, because they are the baseline. At 32x32 and 3 channels, with the published 196 channels inside, the
generator has 3,559,363 parameters and the discriminator 3,137,971 with ten classes.

Shapes: N batch, Z latent dimension, K classes, C channels, H = W image_px.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dim.networks.batch_norm import BatchNorm

PAPER_WIDTH = 196


class PaperGenerator(nn.Module):
    """Latents whose first K values are overwritten by the one-hot label; three transposed, four plain convolutions.

    Args:
        latent_dim: Z, larger than K; the paper's is 100.
        num_classes: K.
        image_px: H = W, a multiple of 4; 28 and 32 in the paper.
        channels: C.
        width: channels inside; the paper's is 196.
    """

    def __init__(
        self, *, latent_dim: int, num_classes: int, image_px: int, channels: int, width: int = PAPER_WIDTH
    ) -> None:
        super().__init__()
        if latent_dim <= num_classes:
            raise ValueError(f"latent_dim {latent_dim} leaves no noise beside {num_classes} one-hot labels")
        if image_px % 8 and image_px != 28:
            raise ValueError(f"the published generator draws multiples of 8 and 28 pixels, not {image_px}")
        self.latent_dim, self.num_classes = latent_dim, num_classes
        self.image_px, self.channels, self.width = image_px, channels, width
        # Three doublings from image_px / 8; at 28 pixels 4 becomes 7 by a kernel of 3, as published.
        self.first_px = 4 if image_px == 28 else image_px // 8
        kernel = 3 if image_px == 28 else 4
        self.first = nn.Linear(latent_dim, width * self.first_px**2)
        self.first_norm = BatchNorm(width * self.first_px**2)
        up, flat = nn.ConvTranspose2d, nn.Conv2d
        self.convs = nn.ModuleList(
            [
                up(width, width, kernel, stride=2, padding=1),
                flat(width, width, 3, padding=1),
                flat(width, width, 3, padding=1),
                flat(width, width, 3, padding=1),
                up(width, width, 4, stride=2, padding=1),
                flat(width, width, 3, padding=1),
                up(width, width, 4, stride=2, padding=1),
            ]
        )
        self.norms = nn.ModuleList(BatchNorm(width) for _ in self.convs)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, latents_NZ: Tensor, labels_N: Tensor) -> Tensor:
        """Draw images_NCHW, -1 to 1, from latents_NZ and labels_N."""
        one_hot = F.one_hot(labels_N, self.num_classes).to(latents_NZ.dtype)
        hidden = self.first(torch.cat([one_hot, latents_NZ[:, self.num_classes :]], dim=1))
        hidden = F.relu(self.first_norm(hidden)).view(-1, self.width, self.first_px, self.first_px)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = F.relu(norm(conv(hidden)))
        return torch.tanh(self.last(hidden))


class PaperDiscriminator(nn.Module):
    """Eight convolutions with layer normalisation, and two heads: critic and classes.

    Args:
        num_classes: K.
        image_px: H = W.
        channels: C.
        width: channels inside; the paper's is 196.
    """

    def __init__(self, *, num_classes: int, image_px: int, channels: int, width: int = PAPER_WIDTH) -> None:
        super().__init__()
        strides = (1, 2, 1, 2, 1, 1, 1, 2)
        px, layers, before = image_px, [], channels
        for stride in strides:
            px = (px + stride - 1) // stride
            layers += [nn.Conv2d(before, width, 3, stride=stride, padding=1), nn.LayerNorm([width, px, px])]
            layers += [nn.LeakyReLU(0.01)]
            before = width
        self.layers = nn.Sequential(*layers)
        self.critic = nn.Linear(width, 1)
        self.classes = nn.Linear(width, num_classes)

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The critic's values, `[N]`, and class logits, `[N, K]`, of images_NCHW."""
        hidden = self.layers(images_NCHW).amax(dim=(2, 3))
        return self.critic(hidden)[:, 0], self.classes(hidden)
