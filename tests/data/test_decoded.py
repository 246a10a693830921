"""Large sets are decoded once and opened from the cache afterwards."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import class_folders, image_file, random_images, tarred, without_cautions, write_folder

from dim.data.images.decoded import list_entries
from dim.data.load import ImageSet, load_data
from dim.data.options import DataOptions
from dim.execution.large_images import MappedRows, free_memory_bytes, select_images
from dim.runtime.errors import BadValueError, DataError

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


@pytest.mark.parametrize("what", ["folders", "contents"])
def test_files_that_change_places_are_decoded_again(tmp_path: Path, load: Load, what: str) -> None:
    images = random_images(10, 8, 3)  # of equal sizes as BMP
    files = {name: image_file(image, "BMP") for name, image in zip(class_folders(), images, strict=True)}
    path = write_folder(tmp_path / "set", files)
    for name in files:
        os.utime(path / name, (1, 1))
    before = load(path)[0]
    cat, dog = path / "train" / "cat", path / "train" / "dog"
    if what == "folders":
        cat.rename(path / "aside")
        dog.rename(cat)
        (path / "aside").rename(dog)
    else:
        (cat / "0000.png").write_bytes((dog / "0000.png").read_bytes())
        os.utime(cat / "0000.png", (1, 1))
    after, _, decoded = load(path)
    assert decoded and after.fingerprint() != before.fingerprint()


def test_an_entry_that_was_written_to_is_decoded_again(tmp_path: Path, load: Load) -> None:
    path = write_folder(tmp_path / "set", class_folders())
    first = load(path)[0].fingerprint()
    images = _entries(tmp_path)[0] / "images.npy"
    status = images.stat()
    with open(images, "r+b") as file:
        file.seek(status.st_size // 2)
        file.write(b"\xaa" * 40)
    os.utime(images, ns=(status.st_atime_ns, status.st_mtime_ns))
    again, said, decoded = load(path)
    assert decoded and again.fingerprint() == first and not load(path)[2]
    assert said[0] == (
        f"{again.name}: {images.parent} was written to after it was finished, so its set is decoded again"
    )


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
    assert _entries(tmp_path) == []
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


def test_rows_that_cannot_be_decoded_are_left_out_of_the_entry(tmp_path: Path, load: Load) -> None:
    files = class_folders()
    path = write_folder(
        tmp_path / "set",
        files | {f"{split}/cat/0000a.png": files["train/cat/0000.png"][:-30] for split in ("train", "test")},
    )
    first, said, _ = load(path, skip_unreadable=True)
    again, said_again, decoded = load(path, skip_unreadable=True)
    assert not decoded and again.fingerprint() == first.fingerprint() and said_again[:-1] == said
    assert first.note.endswith("2 unreadable images were left out")
    assert first.fingerprint() == load(write_folder(tmp_path / "clean", files))[0].fingerprint()


@pytest.mark.parametrize("form", ["folder", "tar.xz"])
def test_an_interrupted_command_goes_on(tmp_path: Path, form: str, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    import dim.data.images.pictures as pictures

    monkeypatch.setattr("dim.data.images.decode.count_threads", lambda: 1)
    monkeypatch.setattr("dim.data.images.decode._FILES_PER_TASK", 1)
    files = class_folders(train=8)
    path = write_folder(tmp_path / "set", files) if form == "folder" else tmp_path / "set.tar.xz"
    if form != "folder":
        path.write_bytes(tarred(files, "w:xz"))
    calls: list[str] = []
    real = pictures.decode_image

    def stop_at_seven(data: bytes, name: str, **form: Any) -> Any:
        calls.append(name)
        if len(calls) >= 7:
            raise KeyboardInterrupt
        return real(data, name, **form)

    said: list[str] = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pictures, "decode_image", stop_at_seven)
        load_data(path, say=said.append)
    count = sum(name.endswith(".png") for name in files)
    assert f"set: 6 of {count} images are decoded and kept; the same command goes on" in said
    (entry,) = list_entries()
    assert not entry.finished

    def go_on(data: bytes, name: str, **form: Any) -> Any:
        calls.append(name)
        return real(data, name, **form)

    calls, resumed = [], []
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "decode_image", go_on)
        found = load_data(path, say=resumed.append)
    assert len(calls) == count - 6 and f"set: 6 of {count} images were decoded by an earlier command" in resumed
    (entry,) = list_entries()
    assert entry.finished
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "other"))
    assert found.fingerprint() == load(path)[0].fingerprint()


@pytest.mark.slow
def test_a_killed_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    images = random_images(400, 64, 3)
    path = write_folder(
        tmp_path / "set", {f"{'ab'[n % 2]}/{n}.png": image_file(image) for n, image in enumerate(images)}
    )
    script = """
import sys, time
import dim.data.images.pictures as pictures
import dim.data.images.decode as decode
import dim.data.images.decoded as decoded
pictures.KEPT_FROM_BYTES, decoded.SAVE_EVERY_S, decode._FILES_PER_TASK = 1, 0.0, 4
real = pictures.decode_image
def slow(*arguments, **form):
    time.sleep(0.02)
    return real(*arguments, **form)
pictures.decode_image = slow
from dim.data.load import load_data
load_data(sys.argv[1])
"""
    started = subprocess.Popen([sys.executable, "-c", script, str(path)])
    noted = None
    for _ in range(600):
        noted = next(iter((tmp_path / "cache" / "decoded").glob(".*.part/done.npy")), None)
        if noted is not None and np.unpackbits(np.frombuffer(noted.read_bytes(), np.uint8)).sum() > 20:
            break
        time.sleep(0.05)
    started.send_signal(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL and noted is not None
    said: list[str] = []
    monkeypatch.setattr("dim.data.images.pictures.KEPT_FROM_BYTES", 1)
    resumed = load_data(path, say=said.append)
    kept = next(int(line.split()[1]) for line in said if line.endswith("images were decoded by an earlier command"))
    assert 20 < kept < 400
    monkeypatch.setattr("dim.data.images.pictures.KEPT_FROM_BYTES", 2**40)
    assert resumed.fingerprint() == load_data(path).fingerprint()


def test_two_commands_at_once_decode_a_set_once(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    import dim.data.images.pictures as pictures

    path = write_folder(tmp_path / "set", class_folders())
    calls: list[str] = []
    real = pictures.decode_image

    def slow(data: bytes, name: str, **form: Any) -> Any:
        calls.append(name)
        time.sleep(0.05)
        return real(data, name, **form)

    monkeypatch.setattr(pictures, "decode_image", slow)
    said: list[str] = []
    found: list[ImageSet] = []
    threads = [threading.Thread(target=lambda: found.append(load_data(path, say=said.append))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 10 and len({images.fingerprint() for images in found}) == 1 and len(found) == 3
    assert "set: another process decodes this set; waiting for it" in said
    (entry,) = list_entries()
    assert entry.finished


def test_sets_not_used_for_longest_make_room(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_folder(tmp_path / name, class_folders()) for name in ("first", "second", "third")]
    for path in paths[:2]:
        load(path)
    first, second = list_entries()
    os.utime(second.path, (1, 1))
    monkeypatch.setenv("DIM_DECODED_GB", str((first.num_bytes * 2 + 100) / 10**9))
    load(paths[2])
    assert first.path in [entry.path for entry in list_entries()] and len(list_entries()) == 2
    assert not load(paths[0])[2] and load(paths[1])[2]
    monkeypatch.setenv("DIM_DECODED_GB", "0")
    assert load(paths[1], channels=1)[2] and load(paths[1], channels=1)[2]
    monkeypatch.setenv("DIM_DECODED_GB", "much")
    with pytest.raises(BadValueError, match="^DIM_DECODED_GB is 'much'; it must be a number of gigabytes, 0 or more.$"):
        load(paths[1], channels=1)


def test_a_set_too_large_for_memory_and_cache_is_refused(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_folder(tmp_path / "set", class_folders())
    monkeypatch.setattr("dim.data.images.sizes.MAX_SET_BYTES", 1000)
    assert load(path)[0].train_images.nbytes < 1920  # it is held on disk
    monkeypatch.setenv("DIM_DECODED_GB", "0")
    message = (
        r"^set: 10 images of 8 x 8 x 3 need 1920 bytes, more than the limit of 1000: use a smaller size or fewer "
        r"images, or let the cache of decoded sets have more room \(\$DIM_DECODED_GB, and space on its disk\)\.$"
    )
    with pytest.raises(DataError, match=message):
        load(path, channels=3)
    with pytest.raises(DataError, match=message):
        load(path, skip_unreadable=True)


def test_images_larger_than_memory_stay_on_disk(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {k.removeprefix("train/"): v for k, v in class_folders(train=9, test=0).items()}
    path = write_folder(tmp_path / "set", files)
    usual = load(path)[0]
    expected, moments = usual.fingerprint(), (usual.mean, usual.std)
    assert type(usual.train_images) is np.ndarray
    monkeypatch.setattr("dim.execution.large_images.free_memory_bytes", lambda: 0)
    large = load(path)[0]
    assert type(large.train_images) is type(large.test_images) is MappedRows
    assert (large.fingerprint(), (large.mean, large.std)) == (expected, moments)
    assert (np.asarray(large.train_images) == usual.train_images).all()
    assert (large.train_images[3] == usual.train_images[3]).all()
    assert (large.train_images[[5, 1]] == usual.train_images[[5, 1]]).all()
    held = large.train_labels == 1
    part = select_images(large.train_images, held)
    assert type(part) is MappedRows and (part[:] == usual.train_images[held]).all() and part.nbytes == part[:].nbytes
    assert len(pickle.dumps(large)) < 20_000 and (pickle.loads(pickle.dumps(part))[:] == part[:]).all()
    monkeypatch.setattr(ImageSet, "_compute_fingerprint", lambda self: "computed")
    assert load(path)[0].fingerprint() == expected  # noted beside the images
    assert replace(large, test_labels=large.test_labels[::-1]).fingerprint() == "computed"


def test_the_memory_that_is_free_is_bounded_by_the_machine() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_memory_bytes() <= total
