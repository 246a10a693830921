"""`dim verify SET`: every file of a set is hashed again, and what differs is named."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_tools import dim
from set_tools import generate
from teacher_graphs import teacher_graph
from tiny_bundle import build_tiny_bundle

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.errors import OutputError
from dim.runtime.inspection.verify import verify
from dim.runtime.set_formats.plan import FORMATS

COUNTS = (3, 2, 0)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, engine="fake") as opened:
        yield opened


def failures(out: Path) -> list[tuple[str, str, str]]:
    return [(row.subject, row.check, row.found) for row in verify(out).rows if not row.ok]


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("format", FORMATS)
def test_a_set_as_it_was_written_passes(bundle: Bundle, tmp_path: Path, format: str) -> None:
    generate(bundle, tmp_path, counts=COUNTS, format=format)
    (tmp_path / "notes.txt").write_text("mine")
    report = verify(tmp_path)
    assert report.ok and report.manifest is None
    assert report.rows[0].found == "5 images in 1 parts"
    assert [row.found for row in report.rows if row.check == "beside the set"] == ["notes.txt"]


@pytest.mark.parametrize("format", FORMATS)
def test_every_file_that_differs_is_named(bundle: Bundle, tmp_path: Path, format: str) -> None:
    """One flipped bit, wherever it is, fails one row; a file that went missing fails its row."""
    generate(bundle, tmp_path, counts=COUNTS, format=format)
    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file() and path.name != "dataset.json"]
    for path in files:
        whole, name = path.read_bytes(), path.relative_to(tmp_path).as_posix()
        subject = "part 0, zero/00000000.png to zero/00000002.png" if path.suffix == ".png" else name
        flip(path, len(whole) // 2)
        [(found, check, _)] = failures(tmp_path)
        assert (found, check) == (subject, "hash")
        path.unlink()
        [(found, check, said)] = failures(tmp_path)
        assert (found, check) == (subject, "hash") and said.endswith("missing")
        path.symlink_to("/etc/hostname")
        [(found, check, said)] = failures(tmp_path)
        assert (found, check) == (subject, "hash") and "is a link" in said
        path.unlink()
        path.write_bytes(whole)
    assert failures(tmp_path) == []


@pytest.mark.parametrize(
    "format,name,subject",
    [
        ("imagefolder", "zero/x.png", "zero"),
        ("imagefolder", "zero/00000003.png", "zero"),
        ("imagefolder", "zero/000000001.png", "zero"),
        ("imagefolder", "two/00000000.png", "."),
        ("parquet", "data/train-00001-of-00001.parquet", "data"),
        ("webdataset", "train-x.tar", "."),
        ("npz", "train-2.npz", "."),
    ],
)
def test_files_that_a_reader_would_take_for_the_sets_fail(
    bundle: Bundle, tmp_path: Path, format: str, name: str, subject: str
) -> None:
    generate(bundle, tmp_path, counts=COUNTS, format=format)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"poison")
    said = name.partition("/")[0] if subject == "." else name.partition("/")[2]
    assert failures(tmp_path) == [(subject, "not of this set", said)]


def test_soft_labels_are_of_the_set(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with open_bundle(
        build_tiny_bundle(tmp_path / "t.dim", extra_files={"teacher.onnx": teacher_graph()}), engine="fake"
    ) as opened:
        generate(opened, tmp_path / "set", counts=COUNTS, soft_labels=True)
    assert verify(tmp_path / "set").ok
    flip(tmp_path / "set" / "logits.npy")
    assert [row[0] for row in failures(tmp_path / "set")] == ["part 0, zero/00000000.png to logits.npy"]


def test_an_unfinished_set_is_said_to_be_one(bundle: Bundle, tmp_path: Path) -> None:
    generate(bundle, tmp_path, counts=COUNTS, format="npy", shard_images=2, shard=(0, 2))
    [(subject, check, said)] = failures(tmp_path)
    assert (subject, check) == ("dataset.json", "complete") and said.startswith("not finished")


def test_a_malformed_set_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(OutputError, match="lacks the field format_version"):
        verify(tmp_path)


def test_the_command(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(bundle, tmp_path / "set", counts=COUNTS)
    monkeypatch.chdir(tmp_path)
    ran = dim("verify", "set")
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "4 checks passed.")
    (tmp_path / "set" / "zero" / "\x1b[2J.png").write_bytes(b"")
    ran = dim("verify", "set")
    assert ran.code == 1 and "FAILED" in ran.out and "\x1b" not in ran.out
    report = json.loads(dim("verify", tmp_path / "set", "--json").out)
    assert report["ok"] is False and report["rows"][-1]["found"] == "?[2J.png"
    refused = dim("verify", "set", "--sha256", "0" * 64)
    assert refused.code == 1 and "--sha256 pins a bundle, and this is a training set" in refused.err


def test_a_set_in_an_object_store(bundle: Bundle) -> None:
    fsspec = pytest.importorskip("fsspec")
    generate(bundle, "memory://verified/set", counts=COUNTS, format="webdataset")
    assert verify("memory://verified/set").ok
    fsspec.filesystem("memory").pipe_file("/verified/set/README.md", b"other")
    assert [row.subject for row in verify("memory://verified/set").rows if not row.ok] == ["README.md"]
