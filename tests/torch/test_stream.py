"""A stream under PyTorch's loaders: every image of a pass once, new ones in the next, whoever shares them."""

import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loaders import Invert, act_as_rank, count_pictures, expected_pictures, take
from teacher_graphs import teacher_graph
from tiny_bundle import build_tiny_bundle
from torch.utils.data import DataLoader

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.errors import BadValueError, BundleError
from dim.students.train import Normalizer
from dim.torch import StreamDataset

IPC = 20
# A loader warns of more workers than cores, and Python of forks beside threads.
pytestmark = [pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:This process")]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    path = build_tiny_bundle(tmp_path_factory.mktemp("b") / "b.dim", extra_files={"teacher.onnx": teacher_graph()})
    with open_bundle(path, engine="onnxruntime-cpu", threads=1) as opened:
        yield opened


def make(bundle: Bundle | Path, ipc: int = IPC, **options: Any) -> StreamDataset:
    return StreamDataset(bundle, ipc, **{"normalize": False, **options})


def test_a_plain_loader_gets_the_epochs_of_the_bundle(bundle: Bundle) -> None:
    data = make(bundle, seed=3)
    loader = DataLoader(data, batch_size=16)
    for epoch in range(3):
        assert data.epoch == epoch
        batches = list(loader)
        assert [len(labels) for _, labels in batches] == [16, 16, 16, 12] and len(loader) == 4
        assert batches[0][0].shape == (16, 1, 8, 8) and batches[0][1].dtype == torch.int64
        expected = [
            (torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels))
            for images, labels in bundle.stream(IPC, 16, seed=3, epochs=1, start_epoch=epoch)
        ]
        for found, wanted in zip(batches, expected, strict=True):
            assert all(map(torch.equal, found, wanted))


def test_images_are_normalised_as_the_students_are(bundle: Bundle) -> None:
    source = bundle.manifest.source
    normalizer = Normalizer(source.mean, source.std, torch.device("cpu"))
    raw = next(iter(DataLoader(make(bundle), batch_size=60)))[0]
    for data in (StreamDataset(bundle, IPC), StreamDataset(bundle, IPC, transform=lambda image: image)):
        images, _ = next(iter(DataLoader(data, batch_size=60)))
        assert images.dtype == torch.float32 and torch.equal(images, normalizer(raw.float() / 255))
        assert torch.equal(data.normalize(raw), images) and torch.equal(data.normalize(raw[0]), images[0])
        assert torch.allclose(data.normalize(raw.double() / 255), images.double(), atol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 16])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_every_pass_has_new_images_and_each_of_them_once(
    bundle: Bundle, workers: int, persistent: bool, batch_size: int | None
) -> None:
    data = make(bundle, batch_size=batch_size)
    of_loader = 16 if batch_size is None else None
    loader = DataLoader(data, batch_size=of_loader, num_workers=workers, persistent_workers=persistent)
    for epoch in range(3):
        assert count_pictures(loader) == expected_pictures(bundle, IPC, epoch)


@pytest.mark.slow
@pytest.mark.parametrize(("context", "persistent"), [("spawn", False), ("forkserver", True)])
def test_workers_that_are_spawned_share_the_passes_too(bundle: Bundle, context: str, persistent: bool) -> None:
    data = make(bundle, transform=Invert())
    inverted = expected_pictures(bundle, IPC, 0, invert=True)
    assert count_pictures(DataLoader(data, batch_size=16)) == inverted  # opens an engine before there are workers
    loader = DataLoader(
        data, batch_size=16, num_workers=2, persistent_workers=persistent, multiprocessing_context=context
    )
    assert count_pictures(loader) == expected_pictures(bundle, IPC, 1, invert=True)
    data.set_epoch(9)
    assert count_pictures(loader) == expected_pictures(bundle, IPC, 9, invert=True) and data.epoch == 10


def test_whoever_sets_the_same_random_seed_before_each_pass_still_gets_new_images(bundle: Bundle) -> None:
    data = make(bundle)
    for epoch in range(3):
        torch.manual_seed(0)
        assert count_pictures(DataLoader(data, batch_size=16, num_workers=2)) == expected_pictures(bundle, IPC, epoch)
    loader = DataLoader(data, batch_size=16)
    assert count_pictures(loader) == expected_pictures(bundle, IPC, 3)
    assert count_pictures(DataLoader(data, batch_size=16, num_workers=3)) == expected_pictures(bundle, IPC, 4)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_after_a_pass_that_was_left_the_next_one_is_whole_and_new(
    bundle: Bundle, workers: int, persistent: bool
) -> None:
    data = make(bundle)
    loader = DataLoader(data, batch_size=8, num_workers=workers, persistent_workers=persistent and workers > 0)
    seen = count_pictures(take(loader, 2))
    for epoch in (1, 2):
        found = count_pictures(loader)
        assert found == expected_pictures(bundle, IPC, epoch) and not found & seen


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_set_epoch_repeats_a_pass(bundle: Bundle, workers: int, persistent: bool) -> None:
    data = make(bundle)
    loader = DataLoader(data, batch_size=16, num_workers=workers, persistent_workers=persistent and workers > 0)
    data.set_epoch(7)
    first = count_pictures(loader)
    assert first == expected_pictures(bundle, IPC, 7) and data.epoch == 8
    assert count_pictures(loader) == expected_pictures(bundle, IPC, 8)
    data.set_epoch(7)
    assert count_pictures(loader) == first
    data.set_epoch(0)
    assert count_pictures(loader) == expected_pictures(bundle, IPC, 0)


def test_ready_batches_do_not_depend_on_the_workers(bundle: Bundle) -> None:
    def batches(workers: int, drop_last: bool) -> list[Any]:
        data = make(bundle, batch_size=16, drop_last=drop_last)
        loader = DataLoader(data, batch_size=None, num_workers=workers)
        found = list(loader)
        assert len(loader) == len(data) == len(found) == 4 - drop_last
        return found

    for drop_last in (False, True):
        alone = batches(0, drop_last)
        assert {len(labels) for _, labels in alone} == ({16} if drop_last else {16, 12})
        for workers in (1, 2, 5):
            for found, wanted in zip(batches(workers, drop_last), alone, strict=True):
                assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("world", [2, 7])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_share_a_pass_in_equal_parts(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, workers: int, world: int, batch_size: int | None
) -> None:
    whole = expected_pictures(bundle, IPC, 5)
    found, steps, lengths = [], set(), set()
    for rank in range(world):
        act_as_rank(monkeypatch, rank, world)
        data = make(bundle, batch_size=batch_size)
        data.set_epoch(5)
        loader = DataLoader(data, batch_size=None if batch_size else 4, num_workers=workers)
        batches = list(loader)
        found.append(count_pictures(batches))
        steps.add(len(batches))
        lengths.add(len(data))
        alone = make(bundle, batch_size=batch_size, shard=(rank, world))
        alone.set_epoch(5)
        monkeypatch.undo()
        assert count_pictures(DataLoader(alone, batch_size=None if batch_size else 4)) == found[-1]
    together = sum(found[1:], found[0])
    assert len(steps) == len(lengths) == 1 and not together - whole
    assert sum(together.values()) == 60 - 60 % world and {sum(part.values()) for part in found} == {60 // world}


def test_a_rank_travels_to_workers_that_know_nothing_of_it(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    act_as_rank(monkeypatch, 1, 3)
    data = make(bundle)
    there = pickle.dumps(data)
    monkeypatch.undo()
    copy = pickle.loads(there)
    assert len(data) == 60 and len(copy) == 20
    assert copy.classes == bundle.classes and copy.epoch == 0


def test_more_ranks_than_images(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    act_as_rank(monkeypatch, 0, 8)
    with pytest.raises(BadValueError) as caught:
        iter(make(bundle, ipc=2))
    assert str(caught.value) == "A pass has 6 images for 8 ranks: raise ipc to 3 or more."


def test_a_transform_comes_before_normalisation(bundle: Bundle) -> None:
    raw = next(iter(DataLoader(make(bundle), batch_size=60)))[0]
    single, ready = Invert(), Invert()
    images, _ = next(iter(DataLoader(StreamDataset(bundle, IPC, transform=single), batch_size=60)))
    plain = StreamDataset(bundle, IPC)
    assert torch.equal(images, plain.normalize(255 - raw)) and set(single.shapes) == {(1, 8, 8)}
    [(images, _)] = StreamDataset(bundle, IPC, batch_size=60, transform=ready)
    assert torch.equal(images, plain.normalize(255 - raw)) and ready.shapes == [(60, 1, 8, 8)]
    two_views = make(bundle, transform=lambda image: (image, 255 - image))
    (first, second), _ = next(iter(DataLoader(two_views, batch_size=60)))
    assert torch.equal(first, raw) and torch.equal(second, 255 - raw)
    with pytest.raises(BadValueError) as caught:
        next(iter(StreamDataset(bundle, IPC, transform=lambda image: (image, image))))
    assert str(caught.value) == (
        "The transform returned a tuple, which cannot be normalised: return a tensor, or pass normalize=False."
    )
    with pytest.raises(BadValueError, match="transform is 'flip'; it must be a function of a tensor, or None."):
        StreamDataset(bundle, IPC, transform="flip")  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
def test_soft_labels_are_the_logits_of_the_teacher(bundle: Bundle, workers: int) -> None:
    weight = torch.from_numpy(np.random.default_rng(0).normal(0, 1.0, (64, 3)).astype("float32"))
    data = make(bundle, soft_labels=True)
    list(data)  # opens the teacher in this process, before workers are forked
    for images, labels, logits in DataLoader(data, batch_size=16, num_workers=workers):
        assert logits.dtype == torch.float32 and logits.shape == (len(labels), 3)
        assert torch.allclose(logits, images.flatten(1).float() @ weight, rtol=2e-3, atol=1)
    [(images, labels, logits), *_] = make(bundle, soft_labels=True, batch_size=16)
    assert torch.allclose(logits, images.flatten(1).float() @ weight, rtol=2e-3, atol=1)


def test_a_bundle_without_a_teacher(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError) as caught:
        StreamDataset(tiny_bundle, IPC, soft_labels=True)
    assert str(caught.value) == (
        f"The bundle {tiny_bundle} has no teacher.onnx to make soft labels; leave soft_labels out."
    )


def test_bundles_by_path_and_name_and_classes(tiny_bundle: Path) -> None:
    assert StreamDataset(str(tiny_bundle), 2).classes == ("zero", "one", "two")
    assert len(StreamDataset("mnist", 2)) == 20
    some = StreamDataset(tiny_bundle, 4, classes=["two", 0])
    assert sorted(label for _, label in some) == [0] * 4 + [2] * 4
    with pytest.raises(BundleError, match="There is no bundle named 'mnits'"):
        StreamDataset("mnits", 2)
    assert repr(some) == "<StreamDataset: single images of tiny, ipc 4, 2 classes, epoch 1>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ipc": 0}, "ipc is 0; it must be an integer, at least 1."),
        ({"batch_size": 0}, "batch_size is 0; it must be an integer, at least 1."),
        ({"shard": (2, 2)}, "shard is (2, 2); it must be (i, n), integers with 0 <= i < n."),
        ({"classes": ["three"]}, "'three'"),
    ],
)
def test_what_cannot_be_is_told_at_once(bundle: Bundle, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadValueError) as caught:
        StreamDataset(bundle, **{"ipc": IPC, **options})
    assert message in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_ready_batches_in_a_loader_that_makes_batches(bundle: Bundle, workers: int) -> None:
    data = make(bundle, batch_size=16)
    with pytest.raises(
        BadValueError, match="ready batches, because it has a batch_size: pass batch_size=None to DataL"
    ):
        next(iter(DataLoader(data, num_workers=workers)))
    images, labels = next(iter(data))
    assert (images.shape, labels.shape) == ((16, 1, 8, 8), (16,))


def test_an_epoch_that_cannot_be(bundle: Bundle) -> None:
    for epoch in (-1, 1.5, 2**32):
        with pytest.raises(BadValueError, match="it must be an integer from 0 to 4,294,967,294"):
            make(bundle).set_epoch(epoch)  # type: ignore[arg-type]


def test_a_pass_that_is_left_open_does_not_abort_the_interpreter(tiny_bundle: Path) -> None:
    code = f"""
from torch.utils.data import DataLoader
import dim
passes = iter(DataLoader(dim.torch.StreamDataset({str(tiny_bundle)!r}, ipc=20000, batch_size=64), batch_size=None))
images, labels = next(passes)
print(images.shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stdout, done.stderr) == (0, "torch.Size([64, 1, 8, 8])\n", "")


def test_a_pass_that_is_left_leaves_no_thread(bundle: Bundle) -> None:
    for batch_size in (None, 4):
        take(make(bundle, batch_size=batch_size), 2)
    assert not [thread for thread in threading.enumerate() if thread.name == "dim-prefetch"]


def test_workers_draw_with_one_thread_unless_told_otherwise(tiny_bundle: Path) -> None:
    with open_bundle(tiny_bundle, threads=2) as two, open_bundle(tiny_bundle) as free:
        found = [make(each)._source.open(in_worker=True)[0].engine_options.threads for each in (two, free)]
        assert found == [2, 1] and make(free)._source.open(in_worker=False)[0] is free
