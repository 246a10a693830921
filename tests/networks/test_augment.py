"""Augmentation: against slow loops over images, per-image draws, gradients, determinism."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dim.augment import augment, shift
from dim.policy import STEP_NAMES, default_policy, parse_policy
from dim.runtime.errors import BadValueError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shift_slowly(images: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor, fill: float) -> torch.Tensor:
    moved = torch.full_like(images, fill)
    n, channels, height, width = images.shape
    for i in range(n):
        for c in range(channels):
            for y in range(height):
                for x in range(width):
                    from_y, from_x = y - int(dy[i]), x - int(dx[i])
                    if 0 <= from_y < height and 0 <= from_x < width:
                        moved[i, c, y, x] = images[i, c, from_y, from_x]
    return moved


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([0.0, -1.0]),
    st.integers(0, 1000),
)
def test_shift_agrees_with_a_loop_over_pixels(n: int, c: int, height: int, width: int, fill: float, seed: int) -> None:
    rng = generator(seed)
    images = torch.rand(n, c, height, width, generator=rng)
    dy, dx = (torch.randint(-7, 8, (n,), generator=rng) for _ in range(2))
    assert torch.equal(shift(images, dy, dx, fill), shift_slowly(images, dy, dx, fill))


def test_shift_takes_bytes() -> None:
    images = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    moved = shift(images, torch.tensor([1]), torch.tensor([-1]))
    assert moved.tolist() == [[[[0, 0, 0], [1, 2, 0], [4, 5, 0]]]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("step", STEP_NAMES)
def test_every_step_is_repeatable_per_image_and_differentiable(step: str, channels: int) -> None:
    one = torch.rand(1, channels, 16, 16, generator=generator())
    images = one.repeat(64, 1, 1, 1).requires_grad_()
    first = augment(images, step, generator(1))
    assert first.shape == images.shape and first.dtype == images.dtype
    assert torch.equal(first, augment(images, step, generator(1)))
    changes = not (step == "saturation" and channels == 1)
    assert (len({tuple(row.flatten().tolist()) for row in first.detach()}) > 1) == changes
    first.sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().sum() > 0


def test_none_returns_the_batch_itself() -> None:
    images = torch.rand(2, 3, 8, 8)
    assert augment(images, "none") is images and augment(images, "") is images


def test_cutout_removes_a_square_of_half_the_side() -> None:
    holes = augment(torch.ones(200, 3, 8, 8), "cutout", generator()) == 0
    areas = holes[:, 0].sum(dim=(1, 2))
    assert areas.max() == 16 and (holes[:, 0] == holes[:, 2]).all()


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = torch.arange(4.0).repeat(1000, 1, 4, 1)
    flipped = augment(images, "flip", generator())[:, 0, 0, 0] == 3
    assert 440 < int(flipped.sum()) < 560
    assert torch.equal(augment(images, "flip=1"), images.flip(3))


@pytest.mark.slow
def test_rotation_by_nothing_and_zoom_by_one_change_nothing() -> None:
    images = torch.rand(5, 3, 9, 9, generator=generator())
    for policy in ["rotate=0", "scale=1", "crop=0"]:
        torch.testing.assert_close(augment(images, policy, generator(), fill=-1.0), images)


def test_policies_are_parsed_and_bad_ones_are_named() -> None:
    colour = (("brightness", 1.0), ("saturation", 2.0), ("contrast", 0.5))
    assert parse_policy("color_crop=0.07") == ((*colour, ("crop", 0.07)),)
    assert parse_policy("color|flip_crop") == (colour, (("flip", 0.5), ("crop", 0.125)))
    assert parse_policy("none") == parse_policy("") == ((),) and parse_policy("none|flip") == ((), (("flip", 0.5),))
    with pytest.raises(
        BadValueError, match=r"^Unknown augmentation step 'blur' in policy 'crop_blur': join steps from "
    ):
        parse_policy("crop_blur")
    for bad in ["|crop", "crop||flip", "crop_|flip"]:
        with pytest.raises(BadValueError, match=rf"^Unknown augmentation step '' in policy '{re.escape(bad)}': join "):
            parse_policy(bad)
    for bad in ["crop=0.9", "crop=x", "crop=", "flip=nan"]:
        with pytest.raises(BadValueError, match=rf"^The strength of '{bad}' in augmentation policy '{bad}' must be"):
            parse_policy(bad)


def test_of_alternatives_every_batch_gets_one_drawn_evenly() -> None:
    images = torch.arange(8.0).reshape(2, 1, 4).repeat(3, 1, 4, 1).requires_grad_()
    grey = images.mean(dim=1, keepdim=True).expand_as(images)
    draws = generator()
    counts = [0, 0, 0]
    for _ in range(300):
        seen = augment(images, "flip=1|saturation=0|crop=0", draws)
        kinds = [torch.equal(seen, other) for other in (images.flip(3), grey, images)]
        assert sum(kinds) == 1
        counts[kinds.index(True)] += 1
    assert min(counts) > 70, counts
    once, again = (augment(images, "color|crop_flip|cutout", generator()) for _ in range(2))
    assert torch.equal(once, again)
    once.sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.any()


def test_digits_and_unknown_folders_are_never_mirrored() -> None:
    assert "flip" in default_policy("cifar10") and "flip" in default_policy("fashion-mnist")
    for name in ["digits", "mnist", "svhn", "my-photos", "data/letters.npz"]:
        assert "flip" not in default_policy(name)
