"""What students are trained on: sets and streams, generated and real."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dim.data.load import ImageSet
from dim.evaluation.drawn import keep_drawn
from dim.evaluation.images import (
    draw_in_chunks,
    generated_set,
    generated_stream,
    keep_percent,
    mix_batches,
    real_set,
    real_stream,
)
from dim.execution.device_data import DeviceImages
from dim.runtime.bundle import open_bundle
from dim.runtime.errors import OutputError
from dim.students.train import Batch

CPU = torch.device("cpu")


def test_the_stream_shows_what_the_bundle_streams_whatever_the_chunk(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        expected = list(opened.stream(ipc=7, batch_size=8, seed=3, epochs=5))
        found = list(generated_stream(opened, 7, 8, 5, 3, CPU, None))
    assert len(found) == len(expected) == 15
    for (images, labels, _), (their_images, their_labels) in zip(found, expected, strict=True):
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), their_images)
        assert np.array_equal(labels.numpy(), their_labels)


def test_students_of_one_seed_share_what_was_drawn(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dim.evaluation.drawn._ROWS", 20)
    with open_bundle(bundle) as opened:
        streams = [(2, 3, 30), (7, 3, 105), (1, 3, 105), (2, 4, 135)]  # images per class, seed, images drawn so far
        expected = [list(opened.stream(ipc=ipc, batch_size=8, seed=seed, epochs=5)) for ipc, seed, _ in streams]
        drawn: list[int] = []
        sample = opened.sample

        def count(labels: np.ndarray, *rest: Any, **options: Any) -> np.ndarray:
            drawn.append(len(labels))
            return sample(labels, *rest, **options)

        monkeypatch.setattr(opened, "sample", count)
        for (ipc, seed, total), batches in zip(streams, expected, strict=True):
            found = list(generated_stream(opened, ipc, 8, 5, seed, CPU, None, tmp_path))
            assert sum(drawn) == total
            for (images, labels, _), (their_images, their_labels) in zip(found, batches, strict=True):
                assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), their_images)
                assert np.array_equal(labels.numpy(), their_labels)
        (kept,) = tmp_path.glob("*-3")
        whole = kept.read_bytes()
        kept.write_bytes(whole[:1000])  # in the middle of an image
        list(generated_stream(opened, 7, 8, 5, 3, CPU, None, tmp_path))
        assert kept.read_bytes() == whole


def test_images_are_kept_while_students_share_them_and_the_disk_has_room(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with keep_drawn([("a", 20), ("a", 100)], data, tmp_path / "out") as folder:
        assert folder is not None and folder.is_dir() and folder.parent == tmp_path / "out"
    assert not folder.exists()
    with keep_drawn([("a", 20), ("b", 100)], data, tmp_path) as folder:
        assert folder is None
    monkeypatch.setattr("dim.evaluation.drawn.disk_usage", lambda path: SimpleNamespace(free=1000))
    with keep_drawn([("a", 20), ("a", 100)], data, tmp_path) as folder:
        assert folder is None
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match=r"^Drawn images cannot be kept in .*file"),
        keep_drawn([("a", 20), ("a", 100)], data, tmp_path / "file"),
    ):
        pass


def test_chunks_change_nothing_but_the_number_of_draws() -> None:
    pairs = [(np.full(n, n), np.arange(n)) for n in (3, 5, 1, 2, 4)]
    drawn: list[int] = []

    def draw(labels: np.ndarray, indices: np.ndarray) -> torch.Tensor:
        drawn.append(len(labels))
        return torch.from_numpy(indices).view(-1, 1, 1, 1)

    batches = list(draw_in_chunks(iter(pairs), draw, None, 8))
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
    images = DeviceImages(np.arange(90, dtype=np.uint8).reshape(-1, 1, 1, 1), CPU)
    training = real_stream(data, images, 10, 16, 6, 0, None)
    seen = [next(training.batches) for _ in range(12)]  # six epochs of thirty images: 16 and 14
    assert [len(labels) for _, labels, _ in seen] == [16, 14] * 6
    rows = torch.cat([batch.flatten() for batch, _, _ in seen]).tolist()
    assert sorted(rows[:90]) == sorted(rows[90:]) == list(range(90)) and rows[:90] != rows[90:]
    for epoch in range(6):
        labels = torch.cat([seen[2 * epoch][1], seen[2 * epoch + 1][1]])
        assert torch.bincount(labels).tolist() == [10, 10, 10]
    assert training.distinct_images == 90
    assert real_stream(data, images, 1, 16, 6, 0, None).distinct_images == 18
    few = keep_percent(data, 10, 0)
    assert np.bincount(few.train_labels).tolist() == [3, 3, 3]
    assert np.array_equal(few.train_images, real_set(data, 3, 0)[0])
    assert len(keep_percent(data, 0.1, 0).train_labels) == 3  # never fewer than one of each class


def test_mixed_batches_are_half_real_and_show_every_image() -> None:
    def batches(first: int) -> Iterator[Batch]:
        for size in (6, 5):
            images = torch.arange(first, first + size)
            yield images, images + 100, None
            first += size

    mixed = list(mix_batches(batches(0), batches(50)))
    assert [len(labels) for _, labels, _ in mixed] == [6, 6, 5, 5]
    assert [int((images < 50).sum()) for images, _, _ in mixed] == [3, 3, 2, 3]
    shown = sorted(int(number) for images, _, _ in mixed for number in images)
    assert shown == [*range(11), *range(50, 61)]
    assert all((labels == images + 100).all() and logits is None for images, labels, logits in mixed)
