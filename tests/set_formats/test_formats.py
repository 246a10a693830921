"""Every format is read back by the library that its users use."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from set_tools import generate, tree
from tiny_bundle import build_tiny_bundle

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.sampling.latents import index_major_order
from dim.runtime.set_formats.webdataset import tar_entry
from dim.runtime.sets.card import reads_as_split

COUNTS = (25, 12, 3)
# `datasets` and `webdataset` warn about their own insides.
pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    # `train` and `test` are names of classes (CIFAR-100 has a class `train`), and words for splits to Hugging Face.
    path = build_tiny_bundle(tmp_path_factory.mktemp("bundle") / "b.dim", classes=("train", "test", "cat"), channels=3)
    with open_bundle(path, engine="fake") as opened:
        yield opened


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def drawn(bundle: Bundle) -> tuple[Any, Any]:
    labels, indices = index_major_order(COUNTS)
    return bundle.sample(labels, indices), labels


def test_parquet_through_datasets_and_pyarrow(bundle: Bundle, tmp_path: Path) -> None:
    import datasets
    import pyarrow.parquet

    generate(bundle, tmp_path / "set", counts=COUNTS, format="parquet", shard_images=15)
    names = sorted(path.name for path in (tmp_path / "set" / "data").iterdir())
    assert names == [f"train-0000{part}-of-00003.parquet" for part in range(3)]
    images, labels = drawn(bundle)
    for where in ({"path": str(tmp_path / "set")}, {"path": "parquet", "data_dir": str(tmp_path / "set")}):
        loaded = datasets.load_dataset(**where, split="train", cache_dir=str(tmp_path / "hf"))
        assert loaded.features["label"].names == ["train", "test", "cat"]
        assert loaded["label"] == labels.tolist()
        assert np.array_equal(np.stack([np.asarray(image) for image in loaded["image"]]), images)
    table = pyarrow.parquet.read_table(tmp_path / "set" / "data")
    assert table.schema.field("image").type == pyarrow.struct([("bytes", "binary"), ("path", "string")])
    first = table.column("image")[0].as_py()
    assert first["path"] == "00000-00000000.png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(first["bytes"]))), images[0])


def test_row_groups_do_not_depend_on_the_engines_batch(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet

    from dim.runtime.set_formats import file_sizes as part_bytes
    from dim.runtime.sets import pipeline

    monkeypatch.setattr(part_bytes, "ROW_GROUP_IMAGES", 16)
    generate(bundle, tmp_path / "large", counts=COUNTS, format="parquet")
    monkeypatch.setattr(pipeline, "ENCODE_IMAGES", 7)
    generate(bundle, tmp_path / "small", counts=COUNTS, format="parquet")
    assert tree(tmp_path / "large") == tree(tmp_path / "small")
    file = pyarrow.parquet.ParquetFile(next((tmp_path / "large" / "data").iterdir()))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [16, 16, 8]


def test_imagefolder_through_datasets(bundle: Bundle, tmp_path: Path) -> None:
    import datasets

    said: list[str] = []
    generate(bundle, tmp_path / "set", counts=COUNTS, say=said.append)
    assert said == [
        "Hugging Face `imagefolder` takes the folder 'train' for a split: load the set by its path, "
        "load_dataset(PATH), which reads the card."
    ]
    loaded = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "hf"))
    assert list(loaded) == ["train"] and len(loaded["train"]) == sum(COUNTS)
    names = loaded["train"].features["label"].names
    assert names == ["cat", "test", "train"]
    found = dict.fromkeys(names, 0)
    for row in loaded["train"]:
        name = names[row["label"]]
        index = int(Path(row["image"].filename).stem)
        assert np.array_equal(np.asarray(row["image"]), bundle.sample([bundle.classes.index(name)], [index])[0])
        found[name] += 1
    assert found == dict(zip(bundle.classes, COUNTS, strict=True))


def test_imagefolder_of_plain_classes_through_the_packaged_reader(tiny_bundle: Path, tmp_path: Path) -> None:
    import datasets

    said: list[str] = []
    with open_bundle(tiny_bundle, engine="fake") as bundle:
        generate(bundle, tmp_path / "set", counts=COUNTS, say=said.append)
        loaded = datasets.load_dataset(
            "imagefolder", data_dir=str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "hf")
        )
        assert said == [] and len(loaded) == sum(COUNTS) and set(loaded.column_names) == {"image", "label"}
        names = loaded.features["label"].names
        assert names == sorted(bundle.classes)
        for row in loaded:
            label, index = bundle.classes.index(names[row["label"]]), int(Path(row["image"].filename).stem)
            assert np.array_equal(np.asarray(row["image"]), bundle.sample([label], [index])[0, :, :, 0])


def test_imagefolder_keeps_torchvisions_convention(bundle: Bundle, tmp_path: Path) -> None:
    # torchvision.datasets.ImageFolder takes every folder for a class and refuses one without an image.
    generate(bundle, tmp_path / "set", counts=(2, 0, 1))
    folders = sorted(path.name for path in (tmp_path / "set").iterdir() if path.is_dir())
    assert folders == ["cat", "train"]
    assert all(list((tmp_path / "set" / folder).glob("*.png")) for folder in folders)


@pytest.mark.slow
def test_webdataset_through_its_own_reader_and_tarfile(bundle: Bundle, tmp_path: Path) -> None:
    import webdataset

    generate(bundle, tmp_path / "set", counts=COUNTS, format="webdataset", shard_images=15)
    images, labels = drawn(bundle)
    [last] = (tmp_path / "set").glob("train-*-000002.tar")
    url = str(last).replace("000002", "{000000..000002}")
    rows = list(webdataset.WebDataset(url, shardshuffle=False).decode("rgb8").to_tuple("png", "cls", "__key__"))
    assert [row[1] for row in rows] == labels.tolist()
    assert np.array_equal(np.stack([row[0] for row in rows]), images)
    assert rows[0][2] == "00000000-00000" and len({row[2] for row in rows}) == 40
    assert json.loads((tmp_path / "set" / "classes.json").read_text()) == ["train", "test", "cat"]
    with tarfile.open(last) as archive:
        members = archive.getmembers()
        assert len(members) == 20 and {(member.mtime, member.uid, member.mode) for member in members} == {(0, 0, 0o644)}
    assert last.stat().st_size % 10_240 == 0


def test_tar_entries_are_tarfiles_own_bytes() -> None:
    for name, data in (("00000000-00000.cls", b"3"), ("k" * 99, b"x" * 512), ("a.png", bytes(5000))):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        ours, theirs = tar_entry(name, data), info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)
        assert ours == theirs


def test_webdataset_through_datasets(bundle: Bundle, tmp_path: Path) -> None:
    import datasets

    generate(bundle, tmp_path / "set", counts=COUNTS, format="webdataset")
    loaded = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "hf"))
    images, labels = drawn(bundle)
    assert [int(label) for label in loaded["cls"]] == labels.tolist()
    assert np.array_equal(np.asarray(loaded[7]["png"]), images[7])


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_shards_resume_to_the_same_bytes(bundle: Bundle, tmp_path: Path, format: str) -> None:
    def interrupt(what: str, done: float, total: float | None, note: str) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    generate(bundle, tmp_path / "one", counts=COUNTS, format=format, shard_images=10)
    with pytest.raises(KeyboardInterrupt):
        generate(bundle, tmp_path / "set", counts=COUNTS, format=format, shard_images=10, progress=interrupt)
    assert not tree(tmp_path / "set").keys() >= tree(tmp_path / "one").keys()
    assert generate(bundle, tmp_path / "set", counts=COUNTS, format=format, shard_images=10).images_drawn < 40
    assert tree(tmp_path / "set") == tree(tmp_path / "one")


def test_words_for_splits() -> None:
    assert all(reads_as_split(name) for name in ("train", "Train", "test_tube", "dev 2", "eval-1", "val"))
    assert not any(reads_as_split(name) for name in ("trainer", "valley", "cat", "testament", "9"))
