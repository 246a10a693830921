"""Files of a set that were altered behind its back: a part counts only if its hash fits, and nothing is overwritten."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from set_tools import generate, tree

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.errors import OutputError
from dim.runtime.set_formats.plan import FORMATS
from dim.runtime.sets import finished

COUNTS = (9, 6, 2)
FILES = {
    "imagefolder": ("zero/00000000.png", "zero/00000008.png"),
    "npz": ("train-00000-of-00003.npz", "train-00002-of-00003.npz"),
    "npy": ("images-00000-of-00003.npy", "labels-00002-of-00003.npy"),
    "parquet": ("data/train-00000-of-00003.parquet", "data/train-00002-of-00003.parquet"),
    "webdataset": ("train-*-000000.tar", "train-*-000002.tar"),
}
"""A file of the oldest part and one of the newest."""


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, engine="fake") as opened:
        yield opened


def name_of(out: Path, format: str, which: int) -> str:
    [path] = out.glob(FILES[format][which])
    return path.relative_to(out).as_posix()


def cut(format: str) -> dict[str, Any]:
    return {"format": format} | ({} if format == "imagefolder" else {"shard_images": 6})


def flip(path: Path) -> bytes:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return bytes(data)


@pytest.fixture(params=FORMATS)
def whole(request: pytest.FixtureRequest, bundle: Bundle, tmp_path: Path) -> tuple[str, Path]:
    generate(bundle, tmp_path / "set", counts=COUNTS, **cut(request.param))
    return request.param, tmp_path / "set"


def test_a_flipped_bit_in_the_newest_part_of_a_complete_set(bundle: Bundle, whole: tuple[str, Path]) -> None:
    format, out = whole
    name, expected = name_of(out, format, 1), tree(out)
    altered = flip(out / name)
    for _ in range(2):
        with pytest.raises(OutputError, match=rf"{name} is not what this set's plan draws: it was altered"):
            generate(bundle, out, counts=COUNTS, **cut(format))
        assert (out / name).read_bytes() == altered
    (out / name).unlink()
    assert generate(bundle, out, counts=COUNTS, **cut(format)).complete
    assert tree(out) == expected


def test_check_finds_a_flipped_bit_in_the_oldest_part(
    bundle: Bundle, whole: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    format, out = whole
    monkeypatch.setattr(finished, "NEWEST_BYTES", 1)
    name = name_of(out, format, 0)
    flip(out / name)
    if format != "imagefolder":  # whose images are one part here, which is the newest
        assert generate(bundle, out, counts=COUNTS, **cut(format)).images_drawn == 0
    with pytest.raises(OutputError, match=rf"{name} is not what this set's plan draws"):
        generate(bundle, out, counts=COUNTS, check=True, **cut(format))


def unfinish(out: Path, change: Callable[[list[dict[str, Any]]], object] = lambda parts: None) -> None:
    """Turn a complete set into one that was interrupted before its last step."""
    block = json.loads((out / "dataset.json").read_bytes())
    parts = block["written"]["parts"]
    block.update(complete=False, written=None)
    (out / "dataset.json").write_text(json.dumps(block))
    change(parts)
    (out / ".dim" / "parts").mkdir(parents=True, exist_ok=True)
    for at, record in enumerate(parts):
        (out / ".dim" / "parts" / f"{at:06d}.json").write_text(json.dumps(record))


def test_a_journalled_file_that_was_replaced_by_one_of_its_size(bundle: Bundle, whole: tuple[str, Path]) -> None:
    format, out = whole
    for name in (name_of(out, format, which) for which in (0, 1)):
        kept = (out / name).read_bytes()
        unfinish(out)
        (out / name).write_bytes(b"X" * len(kept))
        with pytest.raises(OutputError, match=rf"{name} is not what this set's plan draws"):
            generate(bundle, out, counts=COUNTS, check=True, **cut(format))
        assert (out / name).read_bytes() == b"X" * len(kept)
        (out / name).write_bytes(kept)
        assert generate(bundle, out, counts=COUNTS, check=True, **cut(format)).complete


FORGERIES: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "another file": lambda parts: parts[0].update(files=[{"path": "x", "bytes": 4, "sha256": "0" * 64}]),
    "no files": lambda parts: parts[0].update(files=[]),
    "fewer images": lambda parts: parts[0].update(images=1),
    "another hash": lambda parts: parts[0].update(sha256="0" * 64),
    "other bytes": lambda parts: parts[0].update(bytes=1),
    "two swapped": lambda parts: parts.reverse(),
    "a part too many": lambda parts: parts.append(parts[0] | {"part": len(parts)}),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_record_of_something_else_does_not_count(
    bundle: Bundle, whole: tuple[str, Path], forgery: str, tmp_path: Path
) -> None:
    format, out = whole
    expected = tree(out)
    (out / "x").write_bytes(b"mine")
    unfinish(out, FORGERIES[forgery])
    assert generate(bundle, out, counts=COUNTS, **cut(format)).complete
    assert tree(out) == expected | {"x": b"mine"}


@pytest.mark.parametrize("format", ["npz", "npy"])
def test_half_made_files_are_made_again(bundle: Bundle, tmp_path: Path, format: str) -> None:
    """What lies in the making when a process dies is never gone on with, whoever wrote it."""
    generate(bundle, tmp_path / "whole", counts=COUNTS, format=format)
    out = tmp_path / "set"
    shutil.copytree(tmp_path / "whole", out)
    unfinish(out, lambda parts: parts.clear())
    for path in out.glob("*.np?"):
        data = path.read_bytes()
        path.unlink()
        for folder in (".dim/partial", ".dim/work/host.1.2"):
            (out / folder).mkdir(parents=True, exist_ok=True)
            (out / folder / path.name).write_bytes(b"\0" * len(data))
            (out / folder / f"{path.name}.rows").write_text("9")
    assert generate(bundle, out, counts=COUNTS, format=format).images_drawn == sum(COUNTS)
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize("format", FORMATS)
def test_the_newest_objects_are_hashed_always_and_all_with_check(
    bundle: Bundle, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    place, root = f"memory://altered/{format}", f"/altered/{format}"
    monkeypatch.setattr(finished, "NEWEST_OBJECT_BYTES", 1)
    generate(bundle, place, counts=COUNTS, **cut(format))
    whole = {path: memory.cat_file(path) for path in memory.find(root)}
    oldest, newest = (sorted(memory.glob(f"{root}/{FILES[format][which]}"))[0] for which in (0, 1))
    for path, check in ((newest, False), (newest, True), (oldest, True)):
        memory.pipe_file(path, whole[path][:-1] + bytes([whole[path][-1] ^ 1]))
        with pytest.raises(OutputError, match=rf"{path.rpartition('/')[2]} is not what this set's plan draws"):
            generate(bundle, place, counts=COUNTS, check=check, **cut(format))
        memory.pipe_file(path, whole[path])
    if format != "imagefolder":  # whose images are one part here, which is the newest
        memory.pipe_file(oldest, b"X")
        assert generate(bundle, place, counts=COUNTS, **cut(format)).images_drawn == 0
        memory.pipe_file(oldest, whole[oldest])
    memory.rm_file(newest)  # what went missing is made again
    assert generate(bundle, place, counts=COUNTS, **cut(format)).complete
    assert {path: memory.cat_file(path) for path in memory.find(root)} == whole
