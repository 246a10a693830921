"""What the tests of training sets share: asking for sets by their counts, and comparing folders."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dim.runtime.bundle import Bundle
from dim.runtime.sets.dry_run import SetEstimate
from dim.runtime.sets.dry_run import estimate_set as estimate
from dim.runtime.sets.generate import GenerateSummary
from dim.runtime.sets.generate import generate as write_set
from dim.runtime.sets.request import SetRequest

_OF_THE_CALL = ("shard", "overwrite", "check", "say", "progress", "workers")


def generate(bundle: Bundle, out: str | Path, *, counts: Sequence[int], **more: Any) -> GenerateSummary:
    """Call `dim.runtime.sets.generate.generate` with a request for these images per class; `more` goes to either."""
    call = {name: more.pop(name) for name in _OF_THE_CALL if name in more}
    return write_set(bundle, SetRequest(per_class=counts, **more), out, **call)


def estimate_set(bundle: Bundle, out: str | Path, *, counts: Sequence[int], **more: Any) -> SetEstimate:
    """As `generate`, for `dim.runtime.sets.dry_run.estimate_set`."""
    call = {name: more.pop(name) for name in _OF_THE_CALL if name in more}
    return estimate(bundle, SetRequest(per_class=counts, **more), out, **call)


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
