"""A checkpoint whose JSON is nested, mistyped or no file is damaged, in one sentence; the one before is taken."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from dim.runs.checkpoint import CheckpointFolder
from dim.runtime.errors import RunError

CONFIG = "c" * 64


def folder_with_two(path: Path) -> CheckpointFolder:
    path.mkdir(exist_ok=True)
    folder = CheckpointFolder(path, CONFIG)
    for step in (5, 10):
        folder.save("stage1", step, {"weight": torch.full((2,), float(step))}, metrics_bytes=step)
    return folder


def changed(record: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps(record | fields).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b'"text"',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b'{"step": NaN}',
        b'{"step": ' + b"9" * 10_000 + b"}",
        b" " * 2**20,
        {"step": "10"},
        {"step": [10]},
        {"step": 1.5},
        {"step": -1},
        {"step": True},
        {"metrics_bytes": None},
        {"suspect": "no"},
        {"suspect": 0},
        {"file": {"name": "x"}},
        {"file": 3},
        {"file": "../../etc/passwd"},
        {"sha256": []},
        {"config_sha256": 1},
        {"stage": {"a": {"b": []}}},
        {"quiet_lines": "many"},
        {"format_version": "1"},
        {"format_version": [1]},
        {"unknown": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_record_is_one_sentence(tmp_path: Path, content: bytes | dict[str, Any]) -> None:
    folder = folder_with_two(tmp_path)
    path = tmp_path / "checkpoints" / "stage1-00000010.json"
    path.write_bytes(content if isinstance(content, bytes) else changed(json.loads(path.read_bytes()), **content))
    said: list[str] = []
    checkpoint = folder.newest(said.append)
    assert checkpoint is not None and checkpoint.step == 5
    (line,) = said
    assert line.startswith("Checkpoint stage1-00000010.json is damaged (") and line.isprintable() and len(line) < 500
    assert folder.newest_good() in (("stage1", 5), ("stage1", 10))
    folder.prune()


@pytest.mark.parametrize("name", ["stage1-00000010.json", "stage1-00000010.safetensors"])
@pytest.mark.parametrize("what", ["pipe", "link", "folder"])
def test_what_is_no_plain_file_is_not_read(tmp_path: Path, name: str, what: str) -> None:
    folder = folder_with_two(tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / name
    path.rename(tmp_path / name)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "link":
        path.symlink_to(tmp_path / name)
    else:
        path.mkdir()
    checkpoint = folder.newest(lambda line: None)
    assert checkpoint is not None and checkpoint.step == 5


def test_a_newer_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = folder_with_two(tmp_path)
    path = tmp_path / "checkpoints" / "stage1-00000010.json"
    path.write_bytes(changed(json.loads(path.read_bytes()), format_version=2, dim_version="9.1.0"))
    with pytest.raises(RunError, match=r"has format version 2 and was made by a newer dim \(9\.1\.0\)"):
        folder.newest(lambda line: None)
