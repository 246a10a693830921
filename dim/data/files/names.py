"""Recognises by name which files are images, and which a file manager or a storage device left behind."""

import re
from collections.abc import Iterable
from pathlib import Path

EXTENSIONS = frozenset(
    (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".pbm") + (".tif", ".tiff")
)
"""Names by which image files are known."""

_PASSED_OVER = frozenset(
    ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "@recycle", "$recycle.bin")
    + ("lost+found", "system volume information")
)

_CIFAR = {
    **dict.fromkeys(("data_batch_1", "data_batch_1.bin", "test_batch", "test_batch.bin"), "cifar10"),
    **dict.fromkeys(("fine_label_names.txt", "meta"), "cifar100"),
}


_SHARD = re.compile(r"(.*-)([0-9]{5})-of-([0-9]{5})([.].+)")
_MAX_SHARDS = 100_000


def extension_of(path: str) -> str:
    """Return a file's extension in small letters with its dot, "" where it has none."""
    stem, dot, suffix = path.rpartition("/")[2].rpartition(".")
    return "." + suffix.lower() if dot and stem else ""


def list_missing_shards(files: Iterable[Path]) -> list[str]:
    """List the names of files that are not there, of sets whose files are named as 00000-of-00002."""
    found = [(file.parent, match) for file in files if (match := _SHARD.fullmatch(file.name))]
    there = {(folder, match[1], int(match[2]), int(match[3]), match[4]) for folder, match in found}
    return [
        f"{stem}{number:05d}-of-{count:05d}{suffix}"
        for folder, stem, count, suffix in sorted({(item[0], item[1], item[3], item[4]) for item in there})
        for number in range(min(count, _MAX_SHARDS))
        if (folder, stem, number, count, suffix) not in there
    ]


def is_passed_over(path: str) -> bool:
    """Whether a path is hidden, or what a file manager or a storage device left behind."""
    return any(part.startswith(".") or part.casefold() in _PASSED_OVER for part in path.split("/"))


def suggest_format(files: Iterable[str]) -> str:
    """Say how the first known files that are no images are read, as the end of a sentence; "" where none is known."""
    for file in files:
        name = file.rpartition("/")[2].casefold()
        if "-ubyte" in name:
            return f"; IDX files such as {file} are read where --data names the unpacked folder that holds them"
        if name in _CIFAR:
            return (
                f"; {file} is of CIFAR's official files: write --data {_CIFAR[name]}, and --data-dir for the folder "
                "that holds their archive, or its folder under the name that unpacking gave it"
            )
        if name.endswith(".npy"):
            return (
                f"; arrays such as {file} are read as images.npy and labels.npy in one folder, or in one file by "
                "numpy.savez(FILE, images=..., labels=...)"
            )
    return ""
