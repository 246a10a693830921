"""Numbers and versions that no release writes, in every kind of record: one sentence, and never "a newer dim"."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dim.evaluation.cells import parse_result
from dim.runs.checkpoint import read_checkpoint
from dim.runs.record import read_run_record
from dim.runtime.bundle_format.locate import SHIPPED
from dim.runtime.bundle_format.manifest import parse_manifest
from dim.runtime.errors import DimError, RunError
from dim.runtime.sets.journal import SetFile
from dim.runtime.storage.records import refuse_newer
from dim.runtime.trt.sidecar import parse_sidecar
from dim.version import __version__

GOLDEN = Path(__file__).parents[1] / "golden"
ABSURD = {
    "30 digits": "9" * 30,
    "5,000 digits": "9" * 5000,
    "64 bits": "18446744073709551616",
    "a million": "1000000",
    "negative": "-1",
    "negative, 30 digits": "-" + "9" * 30,
    "zero": "0",
    "minus zero": "-0",
    "a float": "1.0",
    "a float of one digit": "1e0",
    "an infinity": "1e400",
    "NaN": "NaN",
    "true": "true",
    "null": "null",
    "text": '"1"',
    "newer text": '"2"',
    "a list": "[1]",
    "an object": "{}",
}


def read_run(data: bytes, folder: Path) -> Any:
    (folder / "config.json").write_bytes(data)
    return read_run_record(folder)


def read_newest_checkpoint(data: bytes, folder: Path) -> Any:
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "stage1-00000002.json").write_bytes(data)
    try:
        return read_checkpoint(folder, "checkpoints/stage1-00000002.json")
    except ValueError as error:  # it is passed over, and what was before is taken
        raise RunError(f"Checkpoint stage1-00000002.json is damaged: {error}") from None


SIDECAR = "generator.fp16.trt.sm89.engine"
READERS: dict[str, tuple[Path, Callable[[bytes, Path], Any]]] = {
    "manifest": (SHIPPED / "manifest.json", lambda data, folder: parse_manifest(data)),
    "run": (GOLDEN / "run" / "config.json", read_run),
    "checkpoint": (GOLDEN / "run" / "checkpoints" / "stage1-00000002.json", read_newest_checkpoint),
    "set": (GOLDEN / "set" / "dataset.json", lambda data, folder: SetFile.from_json(data, "set")),
    "sidecar": (GOLDEN / "generator.fp16.trt.sm89.engine.json", lambda data, folder: parse_sidecar(data, SIDECAR)),
    "result": (next((GOLDEN / "evaluation").glob("*.json")), lambda data, folder: parse_result(data, "The result")),
}


@pytest.mark.parametrize("value", ABSURD)
@pytest.mark.parametrize("record", READERS)
def test_a_version_that_cannot_be_is_no_newer_dim(tmp_path: Path, record: str, value: str) -> None:
    sample, read = READERS[record]
    block = json.loads(sample.read_bytes())
    assert block["format_version"] == 1
    block["format_version"] = "@"
    with pytest.raises(DimError) as caught:
        read(json.dumps(block).replace('"@"', ABSURD[value]).encode(), tmp_path)
    sentence = str(caught.value)
    assert sentence.isprintable() and len(sentence) < 400 and "newer" not in sentence
    assert ": " in sentence  # what to do


def test_only_a_later_release_is_called_newer() -> None:
    for maker, named in (("dim 9.1.0", True), ("9.1.0", True), (f"dim {__version__}", False), ("dim 0.0.1", False)):
        with pytest.raises(DimError) as caught:
            refuse_newer(2, "The record", version=1, maker=maker)
        assert ("(" in str(caught.value)) is named
