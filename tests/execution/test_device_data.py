"""Draws that depend on (seed, stage, step) alone, balanced labels, and images of the right class."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dim.execution.device_data import DeviceData, seed_of, step_generator, to_signed

CPU = torch.device("cpu")


def unbalanced() -> DeviceData:
    labels = np.array([2, 0, 1, 2, 2, 2, 0], dtype=np.int64)
    images = np.zeros((7, 8, 8, 1), np.uint8) + (labels * 10 + np.arange(7)).astype(np.uint8)[:, None, None, None]
    return DeviceData(images, labels, 3, CPU)


@given(st.integers(0, 2**32))
def test_images_are_of_the_class_asked_for(seed: int) -> None:
    data, generator = unbalanced(), step_generator(CPU, seed, "images")
    labels = data.draw_labels(24, 4, generator)
    values = data.draw_images(labels, generator)[:, 0, 0, 0]
    allowed = {0: {1, 6}, 1: {12}, 2: {20, 23, 24, 25}}
    assert all(int(v) in allowed[int(label)] for v, label in zip(values, labels, strict=True))


def test_every_image_of_a_class_is_drawn() -> None:
    data, generator = unbalanced(), step_generator(CPU, 0)
    drawn = data.draw_images(torch.full((200,), 2), generator)[:, 0, 0, 0]
    assert set(drawn.tolist()) == {20, 23, 24, 25}


def test_labels_are_balanced_and_grouped() -> None:
    data = unbalanced()
    labels = data.draw_labels(36, 4, step_generator(CPU, 0))
    assert torch.bincount(labels).tolist() == [12, 12, 12]
    assert bool((labels.view(9, 4) == labels.view(9, 4)[:, :1]).all())
    # Every three groups hold every class once.
    assert all(sorted(row.tolist()) == [0, 1, 2] for row in labels[::4].view(3, 3))


def test_natural_labels_follow_the_set() -> None:
    labels = unbalanced().draw_natural_labels(7000, step_generator(CPU, 0))
    assert np.allclose(torch.bincount(labels).numpy() / 7000, [2 / 7, 1 / 7, 4 / 7], atol=0.03)


def test_seeds_are_unrelated_and_stable() -> None:
    assert len({seed_of(0, "a", 1), seed_of(0, "a", 2), seed_of(1, "a", 1), seed_of(0, "b", 1), seed_of(0, "a1")}) == 5
    assert seed_of(0, "stage1", 5) == seed_of(0, "stage1", 5) < 2**63
    assert seed_of(0) == 2631537505891389924


def test_signed_images() -> None:
    assert to_signed(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
