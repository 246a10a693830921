"""Files in parts of a limited size, and back: every part names all files, and every file is checked by its hash."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INDEX, STREAM = "index.json", "stream.bin"
INDEX_BYTES = 100_000
"""Room for the index in every part."""


def write_parts(
    groups: Mapping[str, tuple[Mapping[str, Any], Mapping[str, bytes]]], out: Path, part_bytes: int
) -> list[Path]:
    """Write files one after the other into the folders `out/1`, `out/2`, ..., each of at most `part_bytes`.

    Args:
        groups: by name, facts about a group of files, and its files by path.
        out: must not exist.
        part_bytes: of a folder, the index included.

    Returns:
        the folders.
    """
    out.mkdir(parents=True)
    stream = b"".join(content for _, files in groups.values() for content in files.values())
    index: dict[str, Any] = {"groups": {}, "parts": []}
    at = 0
    for name, (facts, files) in groups.items():
        rows = {}
        for path, content in files.items():
            rows[path] = {"at": at, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            at += len(content)
        index["groups"][name] = {"facts": facts, "files": rows}
    step = part_bytes - INDEX_BYTES
    pieces = [stream[start : start + step] for start in range(0, len(stream), step)]
    index["parts"] = [{"bytes": len(piece), "sha256": hashlib.sha256(piece).hexdigest()} for piece in pieces]
    text = json.dumps(index)
    if len(text) > INDEX_BYTES:
        raise ValueError(f"The index takes {len(text)} bytes, more than the {INDEX_BYTES} kept for it.")
    folders = [out / str(number + 1) for number in range(len(pieces))]
    for folder, piece in zip(folders, pieces, strict=True):
        folder.mkdir()
        (folder / INDEX).write_text(text)
        (folder / STREAM).write_bytes(piece)
    return folders


@dataclass
class Arrived:
    """The parts that have come so far."""

    index: dict[str, Any]
    kept: Path
    """Folder with a copy of every good part, so that none need come twice."""
    damaged: list[int]
    """Numbers of parts whose hash is wrong; send them again."""

    @property
    def missing(self) -> list[int]:
        """Numbers of the parts that have not come, from 1."""
        return [number for number in range(1, len(self.index["parts"]) + 1) if not self._part(number).exists()]

    def _part(self, number: int) -> Path:
        return self.kept / f"{number}.bin"

    def missing_for(self, group: str) -> list[int]:
        """Numbers of the parts that a group still waits for."""
        rows = self.index["groups"][group]["files"].values()
        wanted = {number for row in rows for number, _, _ in self._spans(row)}
        return sorted(wanted & set(self.missing))

    def _spans(self, row: Mapping[str, Any]) -> Iterator[tuple[int, int, int]]:
        """Part, first and last byte in it, of everything that makes up a file."""
        start, at, end = 0, int(row["at"]), int(row["at"]) + int(row["bytes"])
        for number, part in enumerate(self.index["parts"], 1):
            low, high = max(at, start), min(end, start + part["bytes"])
            if low < high:
                yield number, low - start, high - start
            start += part["bytes"]

    def files(self, group: str) -> dict[str, bytes]:
        """The files of a group, by path.

        Raises:
            ValueError: a file is not the one that was packed.
        """
        found = {}
        for path, row in self.index["groups"][group]["files"].items():
            content = b"".join(self._part(n).read_bytes()[low:high] for n, low, high in self._spans(row))
            if hashlib.sha256(content).hexdigest() != row["sha256"]:
                raise ValueError(f"{path} in {group} is not the file that was packed.")
            found[path] = content
        return found


def collect_parts(folder: Path, kept: Path, say: Callable[[str], None]) -> Arrived | None:
    """Keep every good part below a folder.

    Args:
        folder: with the folders that `write_parts` made, or some of them.
        kept: where good parts are kept; another set of parts replaces them.
        say: is told about damaged parts.

    Returns:
        what there is so far; None if nothing ever came.
    """
    kept.mkdir(parents=True, exist_ok=True)
    texts = [path.read_text() for path in sorted(folder.glob(f"*/{INDEX}"))]
    if len(set(texts)) > 1:
        raise ValueError(f"{folder} holds parts of two packings; keep one.")
    if not texts and not (kept / INDEX).exists():
        return None
    if texts and (not (kept / INDEX).exists() or (kept / INDEX).read_text() != texts[0]):
        shutil.rmtree(kept)
        kept.mkdir()
        (kept / INDEX).write_text(texts[0])
    arrived = Arrived(json.loads((kept / INDEX).read_text()), kept, [])
    for number in arrived.missing:
        source = folder / str(number) / STREAM
        if not source.exists():
            continue
        content = source.read_bytes()
        if hashlib.sha256(content).hexdigest() == arrived.index["parts"][number - 1]["sha256"]:
            (kept / f"{number}.tmp").write_bytes(content)
            (kept / f"{number}.tmp").replace(kept / f"{number}.bin")
        else:
            arrived.damaged.append(number)
            say(f"part {number} is damaged: its hash differs; send it again")
    return arrived
