"""The matching losses against slow, obvious ones, and what they do to a generator that collapses."""

from __future__ import annotations

import math

import pytest
import torch

from dim.distillation.losses import choose_group_size, energy_distance, paper_loss


def naive_energy_distance(real: torch.Tensor, fake: torch.Tensor, n: int) -> float:
    """The definition, in loops over Python floats."""
    values = []
    for start in range(0, len(real), n):
        x, y = real[start : start + n].tolist(), fake[start : start + n].tolist()
        across = sum(math.dist(a, b) for a in x for b in y) / n**2
        within_x = sum(math.dist(a, b) for a in x for b in x) / (n * (n - 1))
        within_y = sum(math.dist(a, b) for a in y for b in y) / (n * (n - 1))
        values.append((2 * across - within_x - within_y) / within_x)
    return sum(values) / len(values)


@pytest.mark.parametrize("groups, n, dim", [(1, 2, 1), (3, 4, 5), (2, 16, 7)])
def test_energy_distance_is_its_definition(groups: int, n: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(groups)
    real = torch.randn(groups * n, dim, generator=generator)
    fake = torch.randn(groups * n, dim, generator=generator) * 2 + 1
    assert float(energy_distance(real, fake, n)) == pytest.approx(naive_energy_distance(real, fake, n), rel=1e-3)


def test_paper_loss_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    total = 0.0
    for row_r, row_f in zip(real.tolist(), fake.tolist(), strict=True):
        log_r = [v - math.log(sum(map(math.exp, row_r))) for v in row_r]
        log_f = [v - math.log(sum(map(math.exp, row_f))) for v in row_f]
        total += sum((a - b) ** 2 for a, b in zip(log_r, log_f, strict=True))
    assert float(paper_loss(real, fake)) == pytest.approx(total / 24, rel=1e-5)


def test_collapse_lowers_the_papers_loss_and_raises_ours() -> None:
    generator = torch.Generator().manual_seed(1)
    real = torch.randn(4096, 10, generator=generator) * 2
    equal = torch.randn(4096, 10, generator=generator) * 2
    collapsed = torch.zeros(4096, 10)
    assert paper_loss(real, collapsed) < 0.8 * paper_loss(real, equal)
    assert energy_distance(real, collapsed, 64) > 0.2
    assert abs(float(energy_distance(real, equal, 64))) < 0.01


def test_groups_are_compared_by_themselves() -> None:
    generator = torch.Generator().manual_seed(2)
    real = torch.cat([torch.randn(32, 3, generator=generator) + 9, torch.randn(32, 3, generator=generator)])
    swapped = torch.cat([real[32:], real[:32]])
    assert energy_distance(real, swapped, 32) > 5
    assert energy_distance(real, swapped, 64) < 0.01


def test_a_class_of_one_image_does_not_outweigh_all_others() -> None:
    """Without augmentation its real points are one point, and a distance relative to their spread has no bound."""
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(8, 5, generator=generator) for _ in range(2))
    single = torch.cat([real[:4], real[4:5].expand(4, -1)])
    assert 0 < float(energy_distance(single, fake, 4)) < 500


def test_gradients_are_finite_where_points_coincide() -> None:
    real = torch.zeros(4, 3)
    fake = torch.zeros(4, 3, requires_grad=True)
    energy_distance(real, fake, 4).backward()
    assert fake.grad is not None and bool(torch.isfinite(fake.grad).all())


@pytest.mark.parametrize(
    "batch, classes, discriminator_group, expected",
    [(128, 4, 4, 32), (128, 8, 4, 16), (64, 4, 4, 16), (24, 4, 4, 4), (128, 1000, 4, 4), (6, 3, 1, 2), (4, 4, 4, 4)],
)
def test_group_sizes(batch: int, classes: int, discriminator_group: int, expected: int) -> None:
    size = choose_group_size(batch, classes, discriminator_group)
    assert size == expected and batch % size == 0 and size % discriminator_group == 0
