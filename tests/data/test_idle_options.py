"""Options that do nothing for a source are refused, whatever kind of source it is."""

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_samples import image_file, npz, random_images, tarred, write_folder, write_mnist, zipped
from PIL import Image
from tiny_bundle import build_tiny_bundle

import dim.data.images.decoded
import dim.data.images.pictures
from dim.data.load import load_data
from dim.data.options import DataOptions
from dim.runtime.errors import BadValueError, DimError

datasets = pytest.importorskip("datasets")

IMAGES = random_images(8, 8, 3)
PNGS = [image_file(image) for image in IMAGES]
LABELS = np.arange(8) % 2
DEEP = np.arange(8 * 64, dtype=np.uint16).reshape(8, 8, 8)
VALUES: dict[str, Any] = {
    "skip_unreadable": True,
    "layout": "classes",
    "bits": 12,
    "follow_links": True,
    "image_column": "image",
    "label_column": "label",
    "split": "train",
    "sha256": "0" * 64,
    "replay_ipc": 2,
}
WHY = {
    "skip_unreadable": "has no image files, so --skip-unreadable does nothing",
    "layout": "takes no classes from folders, so --layout does nothing",
    "bits": "has no images of more than 8 bits, so --bits does nothing",
    "follow_links": "is no folder of images, so --follow-links does nothing",
    "image_column": "takes no images from a column, so --image-column does nothing",
    "label_column": "takes no labels from a column, so --label-column does nothing",
    "split": "names no splits, so --split does nothing",
    "sha256": "is no https:// archive, so --sha256 does nothing",
    "replay_ipc": "is no bundle, so --replay-ipc does nothing",
}


def _deep(folder: Path) -> Path:
    for label in "ab":
        (folder / "train" / label).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(DEEP[number]).save(folder / "train" / label / f"{number}.png")
    return folder


def _make(kind: str, folder: Path) -> Any:
    """A source of a kind, with a split called `train` where it may name one."""
    if kind in ("classes", "zip"):
        files = {f"train/{'ab'[n % 2]}/{n}.png": data for n, data in enumerate(PNGS)}
        if kind == "classes":
            return write_folder(folder / "x", files)
        (folder / "x.zip").write_bytes(zipped(files))
        return folder / "x.zip"
    if kind == "table":
        rows = "".join(f"{n},{'ab'[n % 2]},train\n" for n in range(8))
        files = {f"{n}.png": data for n, data in enumerate(PNGS)}
        return write_folder(folder / "x", files | {"t.csv": f"image,label,split\n{rows}".encode()})
    if kind == "stylegan":
        labels = ", ".join(f'["{n}.png", {n % 2}]' for n in range(8))
        files = {f"train/{n}.png": data for n, data in enumerate(PNGS)}
        return write_folder(folder / "x", files | {"dataset.json": f'{{"labels": [{labels}]}}'.encode()})
    if kind == "deep":
        return _deep(folder / "x")
    if kind in ("npz", "deep npz"):
        pixels = IMAGES if kind == "npz" else DEEP
        (folder / "x.npz").write_bytes(npz(train_images=pixels, train_labels=LABELS))
        return folder / "x.npz"
    if kind == "npy":
        (folder / "x").mkdir()
        np.save(folder / "x" / "images.npy", IMAGES)
        np.save(folder / "x" / "labels.npy", LABELS)
        return folder / "x"
    if kind == "parquet":
        pq.write_table(pa.table({"image": PNGS, "label": LABELS.tolist()}), folder / "train.parquet")
        return folder / "train.parquet"
    if kind in ("cls", "json"):
        text = "{}" if kind == "cls" else '{{"label": {}}}'
        pairs = {f"{n}.png": data for n, data in enumerate(PNGS)}
        pairs |= {f"{n}.{kind}": text.format(n % 2).encode() for n in range(8)}
        (folder / "train-0.tar").write_bytes(tarred(pairs))
        return folder / "train-0.tar"
    if kind == "datasets":
        images = datasets.Dataset.from_dict({"image": [Image.fromarray(image) for image in IMAGES], "label": LABELS})
        return datasets.DatasetDict({"train": images})
    if kind == "bundle":
        return build_tiny_bundle(folder / "x.dim")
    return "mnist" if kind == "known" else (IMAGES, LABELS)


ARRAYS = {"split", "image_column", "label_column"}
COLUMNS = {"image_column", "label_column", "split", "skip_unreadable"}
HEEDED = {
    "classes": {"layout", "split", "skip_unreadable", "follow_links"},
    "zip": {"layout", "split", "skip_unreadable"},
    "table": COLUMNS | {"follow_links"},
    "stylegan": {"split", "skip_unreadable", "follow_links"},
    "deep": {"layout", "split", "skip_unreadable", "follow_links", "bits"},
    "npz": ARRAYS,
    "deep npz": ARRAYS | {"bits"},
    "npy": set(),
    "parquet": COLUMNS,
    "cls": {"split", "skip_unreadable"},
    "json": {"split", "skip_unreadable", "label_column"},
    "datasets": COLUMNS,
    "bundle": {"replay_ipc"},
    "known": set(),
    "memory": set(),
}
"""Which options have a say, by kind of source."""


@pytest.mark.parametrize("kind", HEEDED)
def test_every_reader_declares_the_options_that_it_heeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    write_mnist(tmp_path / "files")
    monkeypatch.setenv("DIM_DATA", str(tmp_path / "files"))
    source = _make(kind, tmp_path)
    name = {"parquet": "train", "cls": "train-0", "json": "train-0", "known": "mnist"}.get(kind, "x")
    name = "data" if kind in ("memory", "datasets") else name
    for option, value in VALUES.items():
        value = "splits/classes" if option == "layout" else value
        if kind in ("npz", "deep npz") and option.endswith("_column"):
            value = f"train_{option.removesuffix('_column')}s"
        if option in HEEDED[kind]:
            load_data(source, DataOptions(**{option: value}))
            continue
        if kind == "stylegan" and option == "layout":  # the folders are read
            continue
        with pytest.raises(DimError) as caught:
            load_data(source, DataOptions(**{option: value}))
        expected = f"{name} {WHY[option]}: leave it out."
        if option == "image_column" and kind == "stylegan":
            expected = (
                f"{source}: dataset.json: JSON of another form; expected a list of objects with file and label, or one "
                "object of labels by file."
            )
        assert str(caught.value) == expected.replace("--sha256", "--sha256 (in dim eval --data-sha256)")


def test_every_option_but_size_channels_and_seed_may_be_idle() -> None:
    assert {*VALUES, "size", "channels", "seed"} == {field.name for field in fields(DataOptions)}


def test_all_idle_options_are_told_at_once(tmp_path: Path) -> None:
    source = _make("npz", tmp_path)
    with pytest.raises(BadValueError) as caught:
        load_data(source, DataOptions(replay_ipc=3, bits=10, seed=3, size=8, channels=1))
    assert str(caught.value) == f"x {WHY['bits']}; it {WHY['replay_ipc']}: leave them out."


def test_of_several_sources_one_that_heeds_is_enough(tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "tiny.dim")
    source = _make("npz", tmp_path)
    for places in ([bundle, source], [source, bundle]):
        assert len(load_data(places, DataOptions(replay_ipc=2, size=8, channels=1)).train_labels) > 8
        with pytest.raises(
            BadValueError, match=r"^(tiny\+x|x\+tiny) has no images of more than 8 bits, so --bits does"
        ):
            load_data(places, DataOptions(bits=9, size=8, channels=1))


def test_a_value_that_was_given_counts_though_it_is_the_default(tmp_path: Path) -> None:
    source = _make("npz", tmp_path)
    with pytest.raises(BadValueError, match=r"^x is no bundle, so --replay-ipc does nothing: leave it out\.$"):
        load_data(source, DataOptions(replay_ipc=1000), asked=("replay_ipc", "layout"))
    assert load_data(source, DataOptions(replay_ipc=3), asked=()).classes == ("0", "1")


def test_a_decoded_set_remembers_which_options_had_a_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dim.data.images.pictures, "KEPT_FROM_BYTES", 1)
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    bundle, folder = build_tiny_bundle(tmp_path / "tiny.dim"), _make("classes", tmp_path)
    options = DataOptions(replay_ipc=2, size=8, channels=1)
    load_data([bundle, folder], options)
    assert len(os.listdir(tmp_path / "cache" / "decoded")) == 1
    with pytest.raises(BadValueError, match=r"^x is no bundle, so --replay-ipc does nothing: leave it out\.$"):
        load_data(folder, options)
    load_data([folder, bundle], options)
