"""Every version that the page of the formats names: a golden file is read, a newer one is refused in a sentence."""

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_tools import dim, one_line

from dim.evaluation.cells import parse_result
from dim.runs.checkpoint import CheckpointFolder
from dim.runs.record import read_run_record
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.bundle_format.manifest import parse_manifest
from dim.runtime.errors import DimError
from dim.runtime.sampling.philox import FILTERED_SAMPLING, PLAIN_SAMPLING
from dim.runtime.sets.journal import SetFile
from dim.runtime.trt.sidecar import parse_sidecar

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
(RESULT,) = (GOLDEN / "evaluation").glob("*.json")
CHECKPOINT = GOLDEN / "run" / "checkpoints" / "stage1-00000002.json"
ENGINE = GOLDEN / "generator.fp16.trt.sm89.engine.json"


def read_in_folder(data: bytes, source: Path, name: str, read: Callable[[Path], object]) -> None:
    """Read a file of `source` that has other bytes now."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(source, Path(folder) / source.name)
        (copy / name).write_bytes(data)
        read(copy)


def read_newest_checkpoint(run_dir: Path) -> None:
    config_sha256 = read_run_record(GOLDEN / "run").fingerprint()
    checkpoint = CheckpointFolder(run_dir, config_sha256).newest(say=print)
    assert checkpoint is not None and (checkpoint.stage, checkpoint.step) == ("stage1", 2)
    assert checkpoint.tensors["weights"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def read_table() -> dict[str, tuple[str, str]]:
    """Read the table: what a file is -> the version read, and the golden file."""
    text = (ROOT / "docs" / "reference" / "formats.md").read_text().split("\n## Versions\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    return {re.sub(r"\[(.+?)\]\(.+?\)", r"\1", row[0]): (row[2], row[3].strip("`")) for row in rows[1:]}


def newer(path: Path, field: str = "format_version", version: int = 2) -> bytes:
    """The file of a release to come, which says who made it."""
    text = path.read_text()
    assert f'"{field}": 1' in text
    text = text.replace(f'"{field}": 1', f'"{field}": {version}')
    return re.sub(r'"(created_by|dim_version)": "(dim )?[\d.]+"', r'"\1": "\g<2>9.8.7"', text).encode()


READERS: dict[str, tuple[Path, Callable[[bytes], object], str]] = {
    "bundle": (GOLDEN / "digits.dim" / "manifest.json", parse_manifest, "format version"),
    "sampling contract": (GOLDEN / "digits.dim" / "manifest.json", parse_manifest, "sampling version"),
    "compiled engine": (ENGINE, lambda data: parse_sidecar(data, ENGINE.name.removesuffix(".json")), "format version"),
    "set": (GOLDEN / "set" / "dataset.json", lambda data: SetFile.from_json(data, "set"), "format version"),
    "run": (
        GOLDEN / "run" / "config.json",
        lambda data: read_in_folder(data, GOLDEN / "run", "config.json", read_run_record),
        "format version",
    ),
    "checkpoint": (
        CHECKPOINT,
        lambda data: read_in_folder(data, GOLDEN / "run", f"checkpoints/{CHECKPOINT.name}", read_newest_checkpoint),
        "format version",
    ),
    "result of one student": (RESULT, lambda data: parse_result(data, "The result"), "format version"),
}


def test_the_table_names_every_format_with_its_version_and_file() -> None:
    table = read_table()
    assert list(table) == list(READERS)
    assert all((ROOT / golden).exists() for _, golden in table.values()), table
    assert all(table[name][0] == ("1, 2" if name == "sampling contract" else "1") for name in table), table
    assert list(json.loads((GOLDEN / "sampling.json").read_text())) == ["1", "2"]


@pytest.mark.parametrize("name", READERS)
def test_the_golden_file_is_read_and_a_newer_one_is_refused(name: str) -> None:
    path, read, kind = READERS[name]
    read(path.read_bytes())
    newest = FILTERED_SAMPLING if kind == "sampling version" else 1
    with pytest.raises(DimError) as refused:
        read(newer(path, kind.replace("format ", "format_").replace("sampling ", "sampling_"), newest + 1))
    assert str(refused.value).endswith(
        f" has {kind} {newest + 1} and was made by a newer dim (9.8.7); this one reads version {newest}: "
        "run  pip install --upgrade dim-distill"
    )


def test_the_golden_bundle_is_the_one_that_its_table_of_files_lists() -> None:
    assert load_manifest(GOLDEN / "digits.dim").sampling.sampling_version == PLAIN_SAMPLING


def test_the_golden_run_and_checkpoint_are_written_to_the_same_bytes(tmp_path: Path) -> None:
    record = read_run_record(GOLDEN / "run")
    assert record.to_dict() == json.loads((GOLDEN / "run" / "config.json").read_text())
    tensors = {"weights": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(2)}
    written = CheckpointFolder(tmp_path, record.fingerprint()).save("stage1", 2, tensors, 120, quiet_lines=1)
    assert written.read_bytes() == CHECKPOINT.with_suffix(".safetensors").read_bytes()
    found, golden = (json.loads(path.read_text()) for path in (written.with_suffix(".json"), CHECKPOINT))
    assert found | {"dim_version": golden["dim_version"]} == golden


def test_the_golden_set_is_complete_and_made_again_to_the_same_bytes(tmp_path: Path) -> None:
    command = (
        "generate",
        "--bundle",
        GOLDEN / "digits.dim",
        "--ipc",
        1,
        "--format",
        "npz",
        "--engine",
        "fake",
        "--out",
    )
    kept = shutil.copytree(GOLDEN / "set", tmp_path / "kept")
    assert "complete" in dim(*command, kept).out
    assert dim(*command, tmp_path / "new").code == 0
    for place in (kept, tmp_path / "new"):
        assert (place / "train.npz").read_bytes() == (GOLDEN / "set" / "train.npz").read_bytes()
        found, golden = (json.loads((folder / "dataset.json").read_text()) for folder in (place, GOLDEN / "set"))
        assert found["plan"] == golden["plan"] and found["written"]["parts"] == golden["written"]["parts"]
    (kept / "dataset.json").write_bytes(newer(kept / "dataset.json"))
    assert "a newer dim (9.8.7)" in one_line(dim(*command, kept))
