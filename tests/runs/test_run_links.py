"""Links in a run lead nowhere: each is refused, whatever would be read or written through it, at every open."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dim.runs import files
from dim.runs.checkpoint import CheckpointFolder, list_checkpoints
from dim.runs.curves import draw_curves
from dim.runs.folder import describe_kept, lock_run, prepare_run_folder
from dim.runs.record import read_run_record
from dim.runs.report import write_run_report
from dim.runs.tensorboard import TensorBoardLog
from dim.runs.tensors import read_tensors
from dim.runtime.errors import RunError

GOLDEN_RUN = Path(__file__).parents[1] / "golden" / "run"


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "checkpoints/stage1-1.json", "grids/x.png"])
def test_a_link_inside_a_run_is_refused(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    (run / name).parent.mkdir(parents=True)
    (run / "config.json").write_bytes((GOLDEN_RUN / "config.json").read_bytes())
    (run / name).symlink_to(tmp_path)
    with pytest.raises(RunError, match=f"run/{name} is a link, which a run does not follow: remove it"):
        prepare_run_folder(run, read_run_record(run), resume=True)


def test_the_run_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    with lock_run(tmp_path / "run"):
        files.write_file(tmp_path / "run", "x", b"1")
    assert (tmp_path / "disk" / "x").read_bytes() == b"1"


def save(run: Path) -> object:
    return CheckpointFolder(run, "c" * 64).save("stage1", 5, {"w": torch.zeros(2)}, metrics_bytes=0)


def report(run: Path) -> object:
    return write_run_report(run, read_run_record(GOLDEN_RUN), finished=True)


CALLS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "read": ("file", lambda run: files.read_file(run, "file")),
    "read in a folder": ("checkpoints", lambda run: read_tensors(run, "checkpoints/file")),
    "read tensors": ("file", lambda run: read_tensors(run, "file")),
    "read the record": ("config.json", read_run_record),
    "write in a folder": ("grids", lambda run: files.write_file(run, "grids/file", b"1")),
    "append": ("file", lambda run: files.append_to_file(run, "file", "1")),
    "cut": ("file", lambda run: files.cut_file(run, "file", 0)),
    "flush": ("file", lambda run: files.flush_file(run, "file")),
    "remove in a folder": ("grids", lambda run: files.remove_file(run, "grids/file")),
    "make a folder": ("grids", lambda run: files.make_folder(run, "grids")),
    "list a folder": ("grids", lambda run: files.list_names(run, "grids")),
    "save a checkpoint": ("checkpoints", save),
    "prune checkpoints": ("checkpoints", lambda run: CheckpointFolder(run, "").prune()),
    "forget checkpoints": ("checkpoints", lambda run: CheckpointFolder(run, "").forget_suspects()),
    "list checkpoints": ("checkpoints", list_checkpoints),
    "describe what is kept": ("checkpoints", describe_kept),
    "draw curves": ("metrics.jsonl", draw_curves),
    "report the grids": ("grids", report),
    "report the curves": ("curves.png", report),
    "report the metrics": ("metrics.jsonl", report),
    "TensorBoard": ("tensorboard", lambda run: TensorBoardLog(run)("stage1", 1, {})),
}


@pytest.mark.parametrize("what", CALLS)
def test_no_call_on_a_run_goes_through_a_link(tmp_path: Path, what: str) -> None:
    """A folder outside of the run, and every file in it, stay what they are."""
    name, call = CALLS[what]
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    victim.mkdir()
    for each in ("file", "stage1-00000001.json", "stage1-00000001.safetensors", "events.out.tfevents.1"):
        (victim / each).write_bytes(b"{}")
    if name != "config.json":
        (run / "config.json").write_text("{}")
    is_folder = name in ("checkpoints", "grids", "tensorboard")
    (run / name).symlink_to(victim if is_folder else victim / "file")
    with pytest.raises(RunError, match=rf"run/{name} is a link, which dim does not follow there: remove it, or choose"):
        call(run)
    assert {path.name: path.read_bytes() for path in victim.iterdir()} == dict.fromkeys(
        ("file", "stage1-00000001.json", "stage1-00000001.safetensors", "events.out.tfevents.1"), b"{}"
    )


def test_a_file_in_place_of_a_link_replaces_it(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").symlink_to(tmp_path / "victim")
    files.write_file(tmp_path / "run", "file", b"new")
    assert (tmp_path / "victim").read_bytes() == b"mine" and not (tmp_path / "run" / "file").is_symlink()
    assert os.listdir(tmp_path / "run") == ["file"]


def test_a_pipe_in_a_run_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "generator.safetensors")
    with pytest.raises(RunError, match="cannot be read as safetensors"):
        read_tensors(tmp_path, "generator.safetensors")
