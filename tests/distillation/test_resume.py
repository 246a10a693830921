"""Resuming bit for bit after interruptions, kills, time limits, damage and a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from quick_runs import FRESH, Stop, quick, same, stop_at, weights
from small_images import make_images

from dim.distillation.distill import distill
from dim.runtime.errors import RunError


@pytest.mark.slow
@pytest.mark.parametrize("stage, step", [("stage1", 1), ("stage1", 5), ("stage1", 6), ("pool", 6), ("stage2", 3)])
@pytest.mark.parametrize("kind", ["kept", "fresh"])
def test_an_interrupted_run_resumes_to_the_same_bits(kind: str, stage: str, step: int, tmp_path: Path) -> None:
    if (kind, stage) == ("fresh", "pool"):
        stage, step = "stage2", 5
    config = quick(**(FRESH if kind == "fresh" else {}))
    data = make_images()
    distill(data, config, tmp_path / "whole")

    def interrupt(what: str, done: float, total: float | None, note: str) -> None:
        if (what, done) == (stage, step):
            raise Stop

    with pytest.raises(Stop):
        distill(data, config, tmp_path / "run", progress=interrupt)
    assert distill(data, config, tmp_path / "run", resume=True).finished
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    names = ["metrics.jsonl", "pool.safetensors", "generator-stage1.safetensors"]
    for name in names + (["latents.npz", "deployment.json"] if kind == "kept" else []):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bits(undisturbed: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from quick_runs import quick;"
        "from small_images import make_images;"
        "from dim.distillation.distill import distill; print('go', flush=True);"
        "note = lambda what, done, total, note: print(done, flush=True);"
        "distill(make_images(), quick(), Path(sys.argv[1]), resume=True, progress=note)"
    )
    run_dir = tmp_path / "run"
    for lines in (3, 9):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(run_dir)],
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "OMP_NUM_THREADS": str(torch.get_num_threads()),
            },
        )
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    distill(make_images(), quick(), run_dir, resume=True)
    assert same(weights(undisturbed), weights(run_dir))


@pytest.mark.slow
def test_a_time_limit_stops_at_a_checkpoint_and_pieces_add_up(undisturbed: Path, tmp_path: Path) -> None:
    outcomes = [distill(make_images(), quick(), tmp_path / "run", time_limit_s=0.0).finished]
    while not outcomes[-1] and len(outcomes) < 40:
        outcomes.append(distill(make_images(), quick(), tmp_path / "run", resume=True, time_limit_s=0.0).finished)
    # A step a call, in both stages and in the two classifiers of the pool, then the spread of one of three classes, the
    # latents of one, and a step of the refinement of sets of one and of three; the last of each does not stop it, but
    # for that of the latents.
    assert outcomes == [False] * (5 + 6 + 5 + 2 + 3 + 5) + [True]
    assert same(weights(undisturbed), weights(tmp_path / "run"))
    for name in ("metrics.jsonl", "pool.safetensors", "generator-stage1.safetensors", "latents.npz", "deployment.json"):
        assert (undisturbed / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert not list((tmp_path / "run").rglob("*unfinished*"))


@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_one_before(undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        distill(make_images(), quick(), tmp_path / "run", progress=stop_at("stage1", 5))
    newest = max((tmp_path / "run" / "checkpoints").glob("stage1-*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    said: list[str] = []
    distill(make_images(), quick(), tmp_path / "run", resume=True, say=said.append)
    assert any("is damaged" in line for line in said) and "Resuming at step 2 of stage1." in said
    assert same(weights(undisturbed), weights(tmp_path / "run"))


def test_a_finished_run_is_left_alone(undisturbed: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*")}
    said: list[str] = []
    assert distill(make_images(), quick(), undisturbed, resume=True, say=said.append).finished
    assert before == {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*")}
    assert said == [f"{undisturbed} is finished already."]


def test_run_directories_that_cannot_be_used(undisturbed: Path, tmp_path: Path) -> None:
    data = make_images()
    with pytest.raises(RunError, match="already holds a run: choose another --out, or go on"):
        distill(data, quick(), undisturbed)
    with pytest.raises(RunError, match=r"another configuration \(seed differ\)"):
        distill(data, quick(seed=3), undisturbed, resume=True)
    with pytest.raises(RunError, match=r"another configuration \(data differ\)"):
        distill(make_images(seed=5), quick(), undisturbed, resume=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        distill(data, quick(), tmp_path)
    with pytest.raises(RunError, match="is a file"):
        distill(data, quick(), tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        distill(data, quick(), tmp_path / "damaged", resume=True)


def test_how_often_a_run_reports_may_change_when_it_resumes(undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        distill(make_images(), quick(), tmp_path / "run", progress=stop_at("stage1", 3))
    distill(make_images(), quick(checkpoint_steps=3, log_steps=1), tmp_path / "run", resume=True)
    assert same(weights(undisturbed), weights(tmp_path / "run"))


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_old_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stop):
        distill(make_images(), quick(), tmp_path / "run", progress=stop_at("stage1", 3))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"\(No space left on device\)\. .* --out .*/run$"):
            distill(make_images(), quick(), tmp_path / "run", resume=True)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("*.json")] == ["stage1-00000002.json"]
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert distill(make_images(), quick(), tmp_path / "run", resume=True).finished
