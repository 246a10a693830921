"""What the tests of training sets share: comparing folders, and interrupting runs."""

import os
from pathlib import Path


def tree(folder: Path) -> dict[str, bytes]:
    """Read every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and modification time of every file with a final name, `dataset.json` excepted."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(".dim/") and name != "dataset.json":
            stat = os.stat(path)
            found[name] = (stat.st_ino, stat.st_mtime_ns)
    return found
