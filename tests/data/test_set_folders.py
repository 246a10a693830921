"""Every set that `dim generate` writes is read by naming its folder."""

from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import build_tiny_bundle

from dim.data.image_set import RawSet
from dim.data.load import load_data
from dim.data.options import DataOptions
from dim.runtime.bundle import open_bundle
from dim.runtime.errors import BadValueError, DataError
from dim.runtime.sets.generate import generate
from dim.runtime.sets.request import SetRequest

CLASSES = ("zebra", "ant", "emu")
"""Not in the order of the alphabet, which folders have."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.dim", classes=CLASSES)


@pytest.mark.parametrize("part_images", [None, 10])
@pytest.mark.parametrize("kind", ["imagefolder", "npz", "npy", "parquet", "webdataset"])
def test_a_set_is_read_by_its_folder(
    bundle: Path, tmp_path: Path, kind: str, part_images: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RawSet] = []

    def keep(raw: RawSet, *others: object) -> RawSet:
        seen.append(raw)
        raise DataError("kept")

    monkeypatch.setattr("dim.data.load.make_image_set", keep)
    with open_bundle(bundle) as opened:
        generate(
            opened,
            SetRequest(ipc=10, format=kind, shard_images=None if kind == "imagefolder" else part_images),
            tmp_path / "set",
        )
        images, labels = opened.arrays(ipc=10)
    with pytest.raises(DataError, match="^kept$"):
        load_data(str(tmp_path / "set"))
    (raw,) = seen
    assert sorted(raw.classes) == sorted(CLASSES) and raw.test_images is None
    assert raw.classes == CLASSES or kind == "imagefolder"
    for label, name in enumerate(CLASSES):
        found = raw.train_images[raw.train_labels == raw.classes.index(name)]
        assert np.array_equal(found, images[labels == label])


def test_a_bundle_is_a_source_at_a_chosen_size(bundle: Path) -> None:
    said: list[str] = []
    data = load_data(bundle, DataOptions(replay_ipc=25), say=said.append)
    assert data.classes == CLASSES and data.class_counts == (25,) * 3 and len(data.test_labels) == 60
    with open_bundle(bundle) as opened:
        assert np.array_equal(data.train_images[25:50], opened.draw("ant", 25, use="stream"))
        assert np.array_equal(data.test_images[:20], opened.draw("zebra", 20, start=25, use="stream"))
    assert said[0].endswith("25 images per class, and 20 as test images; none of them is real")
    with pytest.raises(BadValueError, match="^replay_ipc is 0: it must be between 1 and 1000000.$"):
        DataOptions(replay_ipc=0)


def test_classes_are_added_to_a_bundle_without_its_images(bundle: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    more = tmp_path / "more.npz"
    names = np.array(["gnu", "ant"])
    images = rng.integers(0, 255, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(more, images=images, labels=np.arange(40) % 2, classes=names)
    said: list[str] = []
    data = load_data([str(bundle), str(more)], DataOptions(replay_ipc=30), say=said.append)
    assert data.name == "tiny+more" and data.classes == (*CLASSES, "gnu")
    assert data.class_counts == (30, 30 + 16, 30, 16)
    assert any(line.startswith("1 classes are in several sources and become one each: ant; ") for line in said)
    alone = load_data(str(more))
    assert np.array_equal(data.train_images[data.train_labels == 3], alone.train_images[alone.train_labels == 0])
    assert "replayed from the bundle" in data.note and "arrays of more.npz" in data.note and data.split_seed == 0
    np.savez(more, images=np.repeat(images, 3, axis=3), labels=np.arange(40) % 2)
    with pytest.raises(
        DataError, match="^tiny has images of 8 x 8 x 1 and more of 8 x 8 x 3: say --channels 1 or 3 to bring"
    ):
        load_data([str(bundle), str(more)])
    assert load_data([str(bundle), str(more)], DataOptions(channels=3)).channels == 3
    np.savez(more, images=np.zeros((40, 16, 16, 1), np.uint8), labels=np.arange(40) % 2)
    with pytest.raises(
        DataError, match="^tiny has images of 8 x 8 x 1 and more of 16 x 16 x 1: say --size 8 or 16 to bring"
    ):
        load_data([str(bundle), str(more)])
