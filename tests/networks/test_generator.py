"""The networks: shapes for every size, the published parameter counts, and what conditions what."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from torch import nn

from dim.config import DiscriminatorConfig, GeneratorConfig
from dim.data.load import load_data
from dim.networks.discriminator import build_discriminator
from dim.networks.generator import generator_from_dict, resolutions
from dim.networks.published import PaperDiscriminator, PaperGenerator
from dim.presets import preset
from dim.runtime.errors import BadValueError

RESIZE = {"kind": "resize", "latent_dim": 12, "width": 4, "max_width": 8, "conditioning": "input"}


@pytest.mark.parametrize("image_px", [8, 9, 13, 28, 31, 32, 64, 127, 128])
@pytest.mark.parametrize("conditioning, channels", [("input", 1), ("norm", 3)])
def test_every_size_comes_out(image_px: int, conditioning: str, channels: int) -> None:
    shape = {"num_classes": 5, "image_px": image_px, "channels": channels}
    generator = generator_from_dict({**RESIZE, **shape, "conditioning": conditioning})
    labels = torch.arange(4).repeat_interleave(2)
    images = generator(torch.randn(8, 12), labels)
    assert images.shape == (8, channels, image_px, image_px)
    assert float(images.detach().abs().max()) <= 1.0
    for patch_px in (1, 2):
        config = DiscriminatorConfig(width=4, max_width=8, group_size=2, patch_px=patch_px)
        logits = build_discriminator(config, **shape)(images, labels)
        assert logits.shape == (8,) and logits.dtype == torch.float32


def test_resolutions_start_small_and_end_at_the_image() -> None:
    assert resolutions(28) == [7, 14, 28] and resolutions(32) == [4, 8, 16, 32] and resolutions(8) == [4, 8]
    for px in range(8, 129):
        sizes = resolutions(px)
        assert sizes[-1] == px and 4 <= sizes[0] <= 7
        assert all(b in (2 * a, 2 * a - 1) for a, b in zip(sizes, sizes[1:], strict=False))


@pytest.mark.slow
def test_the_published_parameter_counts() -> None:
    def count(network: torch.nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    assert count(PaperGenerator(latent_dim=100, num_classes=10, image_px=32, channels=3)) == 3_559_363
    assert count(PaperDiscriminator(num_classes=10, image_px=32, channels=3)) == 3_137_971
    config = preset("paper", data=load_data("digits"))
    assert (config.generator.width, config.discriminator.width) == (196, 196)


def test_the_published_pair_is_as_wide_as_it_is_configured() -> None:
    shape = {"num_classes": 10, "image_px": 32, "channels": 3}
    generator = generator_from_dict({**asdict(GeneratorConfig(kind="paper", latent_dim=100, width=8)), **shape})
    discriminator = build_discriminator(DiscriminatorConfig(kind="paper", width=4), **shape)
    assert {m.out_channels for m in generator.modules() if isinstance(m, nn.Conv2d)} == {8, 3}
    assert {m.out_channels for m in discriminator.modules() if isinstance(m, nn.Conv2d)} == {4}
    critic, logits = discriminator(generator(torch.randn(2, 100), torch.tensor([0, 9])))
    assert (critic.shape, logits.shape) == ((2,), (2, 10))


@pytest.mark.parametrize("image_px, channels", [(28, 1), (32, 3), (64, 3), (8, 1)])
def test_the_published_pair_fits_together(image_px: int, channels: int) -> None:
    generator = PaperGenerator(latent_dim=100, num_classes=10, image_px=image_px, channels=channels)
    images = generator(torch.randn(2, 100), torch.tensor([0, 9]))
    assert images.shape == (2, channels, image_px, image_px)
    critic, classes = PaperDiscriminator(num_classes=10, image_px=image_px, channels=channels)(images)
    assert critic.shape == (2,) and classes.shape == (2, 10)


def test_the_published_generator_ignores_the_latents_that_the_label_replaces() -> None:
    generator = PaperGenerator(latent_dim=20, num_classes=10, image_px=8, channels=1).eval()
    latents = torch.randn(3, 20)
    changed = latents.clone()
    changed[:, :10] += 1
    labels = torch.tensor([1, 2, 3])
    with torch.no_grad():
        assert torch.equal(generator(latents, labels), generator(changed, labels))
        changed[:, 10:] += 1
        assert not torch.equal(generator(latents, labels), generator(changed, labels))


@pytest.mark.parametrize("conditioning", ["input", "norm"])
def test_labels_and_latents_both_matter(conditioning: str) -> None:
    torch.manual_seed(0)
    shape = {"num_classes": 3, "image_px": 8, "channels": 1}
    generator = generator_from_dict({**RESIZE, **shape, "conditioning": conditioning}).eval()
    latents = torch.randn(1, 12)
    with torch.no_grad():
        a = generator(latents, torch.tensor([0]))
        assert not torch.equal(a, generator(latents, torch.tensor([1])))
        assert not torch.equal(a, generator(latents + 1, torch.tensor([0])))


def test_the_last_latent_mirrors_and_the_others_learn_through_it() -> None:
    torch.manual_seed(0)
    shape = {"num_classes": 3, "image_px": 8, "channels": 3}
    generator = generator_from_dict({**RESIZE, **shape, "mirrored": True}).eval()
    latents = torch.randn(6, RESIZE["latent_dim"], requires_grad=True)
    labels = torch.arange(6) % 3
    images, as_drawn = generator(latents, labels), generator.draw(latents, labels)
    positive = latents[:, -1] > 0
    assert 0 < positive.sum() < 6
    assert torch.equal(images[positive], as_drawn[positive].flip(3))
    assert torch.equal(images[~positive], as_drawn[~positive])
    images[:, :, :, :4].sum().backward()
    assert latents.grad is not None and bool((latents.grad[:, :-1] != 0).any(dim=1).all())


def test_the_published_generator_mirrors_nothing() -> None:
    with pytest.raises(BadValueError, match=r"^generator.mirrored is for the kind resize; the published generator"):
        GeneratorConfig(kind="paper", latent_dim=100, mirrored=True)


def test_a_discriminator_on_patches_sees_every_pixel_and_has_a_block_fewer() -> None:
    torch.manual_seed(0)
    shape = {"num_classes": 2, "image_px": 9, "channels": 3}
    pixels, patches = (
        build_discriminator(DiscriminatorConfig(width=4, max_width=16, group_size=1, patch_px=px), **shape)
        for px in (1, 2)
    )
    assert len(patches.blocks) == len(pixels.blocks) - 1 == 0
    assert patches.first.weight.shape == (8, 12, 3, 3) and patches.head.in_features == pixels.head.in_features
    images = torch.randn(2, 3, 9, 9, requires_grad=True)
    (gradient,) = torch.autograd.grad(patches(images, torch.tensor([0, 1])).sum(), images)
    assert (gradient != 0).all()
    with pytest.raises(BadValueError, match=r"^discriminator.patch_px is for the kind projection; the published"):
        DiscriminatorConfig(kind="paper", patch_px=2)


def test_the_discriminator_sees_variety_within_a_group() -> None:
    torch.manual_seed(0)
    config = DiscriminatorConfig(width=4, max_width=8, group_size=4)
    network = build_discriminator(config, num_classes=2, image_px=8, channels=1)
    image = torch.randn(1, 1, 8, 8)
    others = torch.randn(3, 1, 8, 8)
    labels = torch.zeros(4, dtype=torch.int64)
    with torch.no_grad():
        alone = network(image.expand(4, -1, -1, -1), labels)[0]
        varied = network(torch.cat([image, others]), labels)[0]
    assert not torch.equal(alone, varied)


def test_networks_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="leaves no noise beside 10 one-hot labels"):
        PaperGenerator(latent_dim=10, num_classes=10, image_px=32, channels=3)
    with pytest.raises(ValueError, match="multiples of 8 and 28 pixels, not 30"):
        PaperGenerator(latent_dim=100, num_classes=10, image_px=30, channels=3)
