"""Large sets are decoded once and opened from the cache afterwards."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_samples import class_folders, tarred, without_cautions, write_folder

from dim.data.load import ImageSet, load_data
from dim.data.options import DataOptions
from dim.runtime.errors import DataError

Load = Callable[..., tuple[ImageSet, list[str], bool]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a set; also what was said, and whether images were decoded."""
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dim.data.images.pictures.KEPT_FROM_BYTES", 1)

    def load_counted(path: Path, **options: Any) -> tuple[ImageSet, list[str], bool]:
        import dim.data.images.pictures as pictures

        said: list[str] = []
        calls: list[str] = []
        real = pictures.decode_image

        def counted(data: bytes, name: str, **form: Any) -> Any:
            calls.append(name)
            return real(data, name, **form)

        with monkeypatch.context() as patch:
            patch.setattr(pictures, "decode_image", counted)
            found = load_data(path, DataOptions(**options), say=said.append)
        return found, without_cautions(said), bool(calls)

    return load_counted


def _entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "decoded").glob("*")) + sorted((tmp_path / "cache" / "decoded").glob(".*"))


@pytest.mark.parametrize("form", ["folder", "tar.xz"])
def test_a_set_is_decoded_once(tmp_path: Path, form: str, load: Load) -> None:
    path = tmp_path / f"set.{form}"
    files = class_folders() | {"train/cat/notes.txt": b"x"}
    if form == "folder":
        write_folder(path, files)
    else:
        path.write_bytes(tarred(files, "w:xz"))
    first, said, decoded = load(path)
    assert decoded and len(_entries(tmp_path)) == 1
    again, said_again, decoded = load(path)
    assert not decoded and again.fingerprint() == first.fingerprint() and again.note == first.note
    assert said_again == [
        *said,
        f"{again.name}: its 10 images were decoded before; they lie in {_entries(tmp_path)[0]}",
    ]
    assert again.train_images.base is not None and again.train_images.flags.c_contiguous
    again.train_images[:] = 0  # private to the process
    assert load(path)[0].fingerprint() == first.fingerprint()


def test_a_changed_source_or_another_wish_is_decoded_again(tmp_path: Path, load: Load) -> None:
    path = write_folder(tmp_path / "set", class_folders())
    load(path)
    assert load(path, size=16)[2] and load(path, channels=1)[2] and not load(path, size=16)[2]
    file = path / "train" / "cat" / "0000.png"
    os.utime(file, ns=(1, 1))
    assert load(path)[2] and not load(path)[2]
    file.write_bytes((path / "train" / "dog" / "0000.png").read_bytes())
    changed, _, decoded = load(path)
    assert decoded and (changed.train_images[0] == changed.train_images[3]).all()


def test_a_set_without_a_test_split_is_cut_alike(tmp_path: Path, load: Load) -> None:
    path = write_folder(
        tmp_path / "set", {k.removeprefix("train/"): v for k, v in class_folders(train=9, test=0).items()}
    )
    first = [load(path, seed=seed)[0].fingerprint() for seed in (0, 1)]
    assert [load(path, seed=seed)[0].fingerprint() for seed in (0, 1)] == first and len(_entries(tmp_path)) == 1


def test_nothing_half_made_stays_and_a_damaged_entry_is_not_used(tmp_path: Path, load: Load) -> None:
    path = write_folder(
        tmp_path / "set", class_folders() | {"train/cat/9.png": class_folders()["train/cat/0000.png"][:-30]}
    )
    with pytest.raises(DataError, match="the image cannot be read"):
        load(path)
    assert load(path, skip_unreadable=True)[2] and _entries(tmp_path) == []
    (path / "train" / "cat" / "9.png").unlink()
    first = load(path)[0].fingerprint()
    for name in ("set.json", "labels.npy"):
        (_entries(tmp_path)[0] / name).write_bytes(b"{}")
        again, _, decoded = load(path)
        assert decoded and again.fingerprint() == first and not load(path)[2]


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path, load: Load) -> None:
    path = write_folder(tmp_path / "set", class_folders())
    (tmp_path / "cache").write_bytes(b"a file")
    first, _, decoded = load(path)
    assert decoded and load(path)[0].fingerprint() == first.fingerprint()
