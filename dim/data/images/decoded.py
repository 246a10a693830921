"""Large sets are decoded once: their images stay in the cache as a memory-mapped file, and the next command opens it.

An entry is known by what the source holds (paths, sizes and times of change of its files), by the options that it was
read with and by the version of Pillow, so a changed source is decoded again. It appears in the cache only when it is
whole. Entries lie in `decoded` beside the downloads and may be deleted at any time.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dim.data.files.official_files import default_data_folder
from dim.data.image_set import Images, RawSet, Source

KEPT_FROM_BYTES = 64 * 2**20
"""Smaller sets are decoded faster than they are worth keeping."""

_VERSION = 1
_IMAGES, _LABELS, _FACTS = "images.npy", "labels.npy", "set.json"


def decoded_folder() -> Path:
    """Return where decoded sets are kept."""
    return default_data_folder().parent / "decoded"


def find_key(source: Source) -> str | None:
    """Return what an entry of this source is called; None for a source that is not on disk."""
    from PIL import __version__ as pillow

    if not source.path.exists():
        return None
    options = vars(replace(source.options, sha256=None, seed=0))  # the split is cut later
    digest = hashlib.sha256(json.dumps([_VERSION, pillow, str(source.path.resolve()), options]).encode())
    with suppress(OSError):
        for line in _list_files(source.path):
            digest.update(line)
        return digest.hexdigest()[:32]
    return None


def _list_files(path: Path) -> Iterator[bytes]:
    if not path.is_dir():
        for file in (path, *(path.parent / name for name in ("classes.json", "dataset.json"))):  # names of classes
            if file.is_file():
                yield _describe(file.name, file.stat())
        return
    for folder, folders, files in os.walk(path, followlinks=True):
        folders.sort()
        if len(Path(folder).relative_to(path).parts) > 20:
            raise OSError("too deep")
        for name in sorted(files):
            yield _describe(os.path.join(folder, name), os.stat(os.path.join(folder, name)))


def _describe(name: str, status: os.stat_result) -> bytes:
    return f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape")


def open_decoded(key: str, source: Source) -> RawSet | None:
    """Open an entry, and say again what was said of it; None where there is none."""
    folder = decoded_folder() / key
    try:
        facts = json.loads((folder / _FACTS).read_text())
        images = np.load(folder / _IMAGES, mmap_mode="c", allow_pickle=False)
        labels = np.load(folder / _LABELS, allow_pickle=False)
        num_train, classes, notes = int(facts["num_train"]), tuple(facts["classes"]), tuple(facts["notes"])
        said = [str(sentence) for sentence in facts["said"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
        return None
    for sentence in said:
        source.say(f"{source.name}: {sentence}")
    source.say(f"{source.name}: its {len(images)} images were decoded before; they lie in {folder}")
    has_test = num_train < len(labels)
    return RawSet(
        name=source.name,
        classes=classes,
        train_images=images[:num_train],
        train_labels=labels[:num_train],
        test_images=images[num_train:] if has_test else None,
        test_labels=labels[num_train:] if has_test else None,
        notes=notes,
    )


@dataclass
class NewEntry:
    """An entry in the making."""

    folder: Path
    key: str

    def make_images(self, shape: tuple[int, int, int, int]) -> Images | None:
        """Make the array to decode into, on disk; None where the disk has no room or refuses."""
        path = self.folder / _IMAGES
        try:
            self.folder.mkdir(parents=True)
            images: Any = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
            with open(path, "r+b") as file:  # a mapped file that meets a full disk later would end the process
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError:
            return None
        return np.asarray(images)

    def publish(self, raw: RawSet, said: list[str]) -> None:
        """Put the finished entry into its place; another process may have done so meanwhile."""
        labels = [part for part in (raw.train_labels, raw.test_labels) if part is not None]
        facts = {"num_train": len(raw.train_labels), "classes": raw.classes, "notes": raw.notes, "said": said}
        with suppress(OSError):  # a set that cannot be kept is decoded again
            np.save(self.folder / _LABELS, np.concatenate(labels))
            (self.folder / _FACTS).write_text(json.dumps(facts))
            shutil.rmtree(self.folder.parent / self.key, ignore_errors=True)  # damaged, or another process was faster
            self.folder.rename(self.folder.parent / self.key)


@contextmanager
def new_entry(key: str) -> Iterator[NewEntry]:
    """Begin an entry; what is half-made is removed at the end."""
    folder = decoded_folder() / f".{key}.{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield NewEntry(folder, key)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
