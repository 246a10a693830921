"""What students are trained on: sets and streams, generated and real."""

from pathlib import Path

import numpy as np
import torch

from dim.data.load import ImageSet
from dim.evaluation.images import draw_in_chunks, generated_set, generated_stream, real_set, real_stream
from dim.runtime.bundle import open_bundle

CPU = torch.device("cpu")


def test_the_stream_shows_what_the_bundle_streams_whatever_the_chunk(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        expected = list(opened.stream(ipc=7, batch_size=8, seed=3, epochs=5))
        found = list(generated_stream(opened, 7, 8, 5, 3, CPU, None))
    assert len(found) == len(expected) == 15
    for (images, labels, _), (their_images, their_labels) in zip(found, expected, strict=True):
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), their_images)
        assert np.array_equal(labels.numpy(), their_labels)


def test_chunks_change_nothing_but_the_number_of_draws() -> None:
    pairs = [(np.full(n, n), np.arange(n)) for n in (3, 5, 1, 2, 4)]
    drawn: list[int] = []

    def draw(labels: np.ndarray, indices: np.ndarray) -> torch.Tensor:
        drawn.append(len(labels))
        return torch.from_numpy(indices).view(-1, 1, 1, 1)

    batches = list(draw_in_chunks(iter(pairs), draw, None, 8, CPU))
    assert drawn == [8, 7]
    assert [images.flatten().tolist() for images, _, _ in batches] == [list(range(n)) for n in (3, 5, 1, 2, 4)]


def test_fixed_images_are_those_that_the_bundle_numbers(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        images, labels = generated_set(opened, 2, 5)
        assert labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert np.array_equal(images[4:5], opened.sample([1], [1], 5))


def test_real_sets_are_balanced_prefixes_of_larger_ones(data: ImageSet) -> None:
    small, large = real_set(data, 3, 0), real_set(data, 20, 0)
    assert np.bincount(small[1]).tolist() == [3, 3, 3]
    for label in range(3):
        assert np.array_equal(small[0][small[1] == label], large[0][large[1] == label][:3])
    assert not np.array_equal(small[0], real_set(data, 3, 1)[0])
    assert len(real_set(data, 1000, 0)[1]) == 90


def test_a_real_stream_shows_every_image_once_before_any_twice(data: ImageSet) -> None:
    images = torch.arange(90).view(-1, 1, 1, 1)
    training = real_stream(data, images, 10, 16, 6, 0, CPU, None)
    seen = [next(training.batches) for _ in range(12)]  # six epochs of thirty images: 16 and 14
    assert [len(labels) for _, labels, _ in seen] == [16, 14] * 6
    rows = torch.cat([batch.flatten() for batch, _, _ in seen]).tolist()
    assert sorted(rows[:90]) == sorted(rows[90:]) == list(range(90)) and rows[:90] != rows[90:]
    for epoch in range(6):
        labels = torch.cat([seen[2 * epoch][1], seen[2 * epoch + 1][1]])
        assert torch.bincount(labels).tolist() == [10, 10, 10]
    assert training.distinct_images == 90
    assert real_stream(data, images, 1, 16, 6, 0, CPU, None).distinct_images == 18
    limited = real_stream(data, images, 10, 16, 6, 0, CPU, None, limit=4)
    shown = {int(row) for _ in range(12) for row in next(limited.batches)[0].flatten()}
    assert len(shown) == limited.distinct_images == 12
