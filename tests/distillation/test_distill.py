"""Distillation: presets, resuming bit for bit, kills, time limits, divergence, and what a run directory may be."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from quick_runs import FRESH, QUICK, Stop, quick, same, stop_at, weights
from set_tools import generate
from small_images import make_images

from dim.config import (
    AdversarialConfig,
    DistillConfig,
    MatchingConfig,
    PoolConfig,
    StageConfig,
    from_dict,
    to_dict,
)
from dim.data.load import ImageSet, load_data
from dim.distillation.adversarial import AdversarialTraining, Draws
from dim.distillation.distill import DistillResult, describe_run, distill
from dim.distillation.session import COLLAPSE_LINES, Progress
from dim.execution.device import choose_device
from dim.export.export_run import export_run
from dim.presets import PRESETS, preset
from dim.runs.checkpoint import CheckpointFolder, read_tensors
from dim.runtime.bundle import Bundle
from dim.runtime.errors import BadValueError, DeviceError, DivergedError, MissingExtraError, RunError
from dim.runtime.inspection.verify import verify


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert distill(make_images(), quick(), run_dir) == DistillResult(run_dir=run_dir, finished=True)
    return run_dir


def test_a_run_leaves_everything_that_export_and_people_need(undisturbed: Path) -> None:
    names = {p.name for p in undisturbed.iterdir()}
    assert names >= {
        "config.json",
        "generator.safetensors",
        "generator-stage1.safetensors",
        "pool.safetensors",
        "pool.json",
        "latents.npz",
        "deployment.json",
        "metrics.jsonl",
        "curves.png",
        "grids",
        "checkpoints",
    }
    record = json.loads((undisturbed / "config.json").read_text())
    assert record["data"]["classes"] == ["bar0", "bar1", "bar2"] and record["generator"]["image_px"] == 8
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert [(x["stage"], x["step"]) for x in lines] == [(s, n) for s in ("stage1", "stage2") for n in (2, 4, 6)]
    assert "matching_loss" in lines[-1] and "matching_loss" not in lines[0]
    pool = json.loads((undisturbed / "pool.json").read_text())
    assert [p["arch"] for p in pool] == ["convnet3", "convnet3", "mlp", "mlp"]
    assert sorted(p.name for p in (undisturbed / "grids").iterdir()) == ["stage1-000006.png", "stage2-000006.png"]


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(undisturbed: Path, tmp_path: Path) -> None:
    distill(make_images(), quick(), tmp_path / "again")
    distill(make_images(), quick(seed=1), tmp_path / "other")
    assert same(weights(undisturbed), weights(tmp_path / "again"))
    assert not same(weights(undisturbed), weights(tmp_path / "other"))


RESULTS = ["generator.safetensors", "generator-stage1.safetensors", "metrics.jsonl", "config.json"]
CHOSEN = ["pool.safetensors", "pool.json", "latents.npz", "deployment.json"]
UNMATCHED = {"matching.loss": "none"}
STAGE1_ALONE = {"stage2.steps": 0}
# Several spreads of the latents need a hold-out, which stage 1 then does without.
NOTHING_CHOSEN = {**STAGE1_ALONE, "deployment.latent_stds": (), "deployment.fixed_latents": 0}


@pytest.fixture
def quick_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a checkpoint's time; here a picture is what would be drawn."""
    for module in ("distillation.session", "runs.take_over"):
        monkeypatch.setattr(f"dim.{module}.draw_curves", lambda metrics, path: path.write_bytes(metrics.read_bytes()))


def begun_from(source: Path, run_dir: Path, **changes: object) -> list[str]:
    """Distil with the stage 1 of `source`; returns the stages that were trained and what was said of it."""
    stages: dict[str, None] = {}
    said: list[str] = []

    def note(report: Progress) -> None:
        stages[report.stage] = None

    config = quick(**changes)
    assert distill(make_images(), config, run_dir, from_stage1=source, progress=note, say=said.append).finished
    return [line for line in said if "taken from" in line] + [s for s in stages if s in ("stage1", "pool", "stage2")]


def left_in(run_dir: Path) -> set[str]:
    return {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.parent.name != "checkpoints"}


@pytest.mark.parametrize(
    ("first", "second", "trained"),
    [
        (UNMATCHED, {}, ["Stage 1 and the pool are", "stage2"]),
        (STAGE1_ALONE, {"matching.loss": "paper"}, ["Stage 1 and the pool are", "stage2"]),
        ({}, STAGE1_ALONE, ["Stage 1 and the pool are"]),
        (NOTHING_CHOSEN, {"deployment.latent_stds": (1.2,)}, ["Stage 1 is", "pool", "stage2"]),
        (UNMATCHED, {"pool.ages": (2, 3)}, ["Stage 1 is", "pool", "stage2"]),
        (NOTHING_CHOSEN, FRESH, ["Stage 1 is", "stage2"]),
    ],
)
@pytest.mark.usefixtures("quick_curves")
def test_a_run_that_begins_with_the_stage_1_of_another_is_a_run_from_scratch(
    first: dict[str, object], second: dict[str, object], trained: list[str], tmp_path: Path
) -> None:
    source, run_dir = tmp_path / "source", tmp_path / "run"
    distill(make_images(), quick(**first), source)
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    assert begun_from(source, run_dir, **second) == [f"{trained[0]} taken from {source}.", *trained[1:]]
    distill(make_images(), quick(**second), tmp_path / "whole")
    kept = [name for name in CHOSEN if (tmp_path / "whole" / name).exists()]
    for name in RESULTS + kept:
        assert (run_dir / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert left_in(run_dir) == left_in(tmp_path / "whole")
    assert before == {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stage, step", [("pool", 3), ("stage2", 3)])
@pytest.mark.usefixtures("quick_curves")
def test_a_run_that_began_with_the_stage_1_of_another_goes_on_alone(
    undisturbed: Path, stage: str, step: int, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    distill(make_images(), quick(**{**UNMATCHED, "pool.width": 4}), source)
    with pytest.raises(Stop):
        distill(make_images(), quick(), tmp_path / "run", from_stage1=source, progress=stop_at(stage, step))
    shutil.rmtree(source)
    assert distill(make_images(), quick(), tmp_path / "run", from_stage1=source, resume=True).finished
    for name in RESULTS + CHOSEN:
        assert (tmp_path / "run" / name).read_bytes() == (undisturbed / name).read_bytes(), name


@pytest.mark.usefixtures("quick_curves")
def test_a_chain_of_runs_shares_one_stage_1(undisturbed: Path, tmp_path: Path) -> None:
    assert begun_from(undisturbed, tmp_path / "between", **UNMATCHED)[1:] == ["stage2"]
    assert begun_from(tmp_path / "between", tmp_path / "run")[1:] == ["stage2"]
    for name in RESULTS + CHOSEN:
        assert (tmp_path / "run" / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_a_finished_run_keeps_the_end_of_stage_1_and_its_pool_once(undisturbed: Path) -> None:
    names = sorted(p.name for p in (undisturbed / "checkpoints").glob("*.json"))
    assert names == ["stage1-00000006.json", "stage2-00000004.json", "stage2-00000006.json"]
    assert not list((undisturbed / "checkpoints").glob("pool*"))


def test_a_stage_1_that_cannot_be_taken_over(undisturbed: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    def refused(
        source: Path, error: type[Exception] = RunError, data: ImageSet | None = None, **changes: object
    ) -> str:
        config = quick(**changes)
        with pytest.raises(error) as caught:
            distill(data or make_images(), config, run_dir, from_stage1=source)
        assert not run_dir.exists()
        return str(caught.value).replace(str(source), "SOURCE")

    other = "SOURCE has another stage 1 ({} differ): take it from a run with the same settings, or train it."
    assert refused(undisturbed, seed=3) == other.format("seed")
    changes = {"generator.width": 4, "discriminator.width": 4, "stage1.batch_size": 12, "autocast": "off"}
    assert refused(undisturbed, **changes) == other.format("autocast, generator, discriminator, stage1")
    assert refused(undisturbed, **{"deployment.latent_stds": (1.0,)}) == other.format("deployment.holdout")
    assert refused(undisturbed, **{"deployment.holdout": 0.2}) == other.format("deployment.holdout")
    here, there = (data.fingerprint()[:12] for data in (make_images(seed=5), make_images()))
    assert refused(undisturbed, data=make_images(seed=5)) == (
        f"SOURCE was distilled from other data (SHA-256 {there}, here {here}): "
        "take stage 1 from a run of the same images."
    )
    assert refused(undisturbed, BadValueError, **{"stage1.steps": 0}) == (
        "stage1.steps is 0, so there is no stage 1 to take from SOURCE."
    )
    assert refused(tmp_path / "missing") == ("There is no run at SOURCE to take stage 1 from: it has no config.json.")
    with pytest.raises(Stop):
        distill(make_images(), quick(), tmp_path / "begun", progress=stop_at("stage1", 5))
    assert refused(tmp_path / "begun") == (
        "SOURCE has not finished stage 1: finish it with --resume, or take another run."
    )
    shutil.copytree(undisturbed, tmp_path / "copy")
    end = tmp_path / "copy" / "checkpoints" / "stage1-00000006.safetensors"
    end.write_bytes(end.read_bytes()[:-1])
    assert refused(tmp_path / "copy") == (
        "SOURCE/checkpoints/stage1-00000006.json is damaged (its bytes have changed): "
        "take stage 1 from another run, or train it."
    )
    end.with_suffix(".json").unlink()
    assert refused(tmp_path / "copy") == (
        "SOURCE has lost the end of its stage 1, stage1-00000006.json: take it from another run, or train it."
    )
    for content in ("{", "[]", "{}"):
        (tmp_path / "copy" / "config.json").write_text(content)
        assert refused(tmp_path / "copy") == (
            "SOURCE/config.json is damaged or of another version of dim: take stage 1 from another run."
        )


@pytest.mark.usefixtures("quick_curves")
def test_a_pool_that_is_half_taken_over_is_trained(undisturbed: Path, tmp_path: Path) -> None:
    for name in CHOSEN[:2]:
        source = tmp_path / name
        shutil.copytree(undisturbed, source)
        (source / name).unlink()
        assert begun_from(source, tmp_path / f"run-{name}")[1:] == ["pool", "stage2"]
        assert same(weights(undisturbed), weights(tmp_path / f"run-{name}"))


@pytest.mark.parametrize("stage, step", [("stage1", 1), ("stage1", 5), ("stage1", 6), ("pool", 6), ("stage2", 3)])
@pytest.mark.parametrize("kind", ["kept", "fresh"])
def test_an_interrupted_run_resumes_to_the_same_bits(kind: str, stage: str, step: int, tmp_path: Path) -> None:
    if (kind, stage) == ("fresh", "pool"):
        stage, step = "stage2", 5
    config = quick(**(FRESH if kind == "fresh" else {}))
    data = make_images()
    distill(data, config, tmp_path / "whole")

    def interrupt(report: Progress) -> None:
        if (report.stage, report.step) == (stage, step):
            raise Stop

    with pytest.raises(Stop):
        distill(data, config, tmp_path / "run", progress=interrupt)
    assert distill(data, config, tmp_path / "run", resume=True).finished
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    names = ["metrics.jsonl", "pool.safetensors", "generator-stage1.safetensors"]
    for name in names + (["latents.npz", "deployment.json"] if kind == "kept" else []):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_a_killed_process_resumes_to_the_same_bits(undisturbed: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from quick_runs import quick;"
        "from small_images import make_images;"
        "from dim.distillation.distill import distill; print('go', flush=True);"
        "distill(make_images(), quick(), Path(sys.argv[1]), resume=True, progress=lambda r: print(r.step, flush=True))"
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


def test_a_damaged_checkpoint_falls_back_to_the_one_before(undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        distill(make_images(), quick(), tmp_path / "run", progress=stop_at("stage1", 5))
    newest = max((tmp_path / "run" / "checkpoints").glob("stage1-*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    said: list[str] = []
    distill(make_images(), quick(), tmp_path / "run", resume=True, say=said.append)
    assert any("is damaged" in line for line in said) and "Resuming at step 2 of stage1." in said
    assert same(weights(undisturbed), weights(tmp_path / "run"))


def checkpoints_of(config: DistillConfig, run_dir: Path) -> CheckpointFolder:
    return CheckpointFolder(run_dir / "checkpoints", describe_run(config, make_images()).fingerprint())


@pytest.mark.parametrize("what", ["loss", "weight"])
def test_what_is_not_finite_is_told_and_not_kept(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teach = AdversarialTraining.train_discriminator

    def poisoned(gan: AdversarialTraining, *args: Any) -> tuple[Draws, dict[str, torch.Tensor]]:
        draws, report = teach(gan, *args)
        if args[-1] < 8:
            return draws, report
        if what == "loss":
            return draws, {**report, "discriminator_loss": torch.tensor(torch.nan)}
        with torch.no_grad():
            gan.ema.last.bias.fill_(torch.nan)  # in no loss: only the checkpoint meets it
        return draws, report

    monkeypatch.setattr(AdversarialTraining, "train_discriminator", poisoned)
    config = quick(**{"stage1.steps": 20, "checkpoint_steps": 4})
    message = "discriminator_loss is not finite" if what == "loss" else "the tensor ema.last.bias is not finite"
    with pytest.raises(DivergedError, match=f"{message}. The last good checkpoint, step 8 of stage1, is kept in "):
        distill(make_images(), config, tmp_path / "run")
    kept = checkpoints_of(config, tmp_path / "run").newest(print)
    assert kept is not None and kept.step == 8
    assert all(bool(torch.isfinite(t).all()) for t in kept.tensors.values())


def test_divergence_before_any_checkpoint_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        AdversarialTraining, "discriminator_step", lambda *args: {"discriminator_loss": torch.tensor(torch.inf)}
    )
    with pytest.raises(
        DivergedError, match="at step 2 of stage1: .* There had been no good checkpoint yet; try a lower"
    ):
        distill(make_images(), quick(), tmp_path / "run")


def win(monkeypatch: pytest.MonkeyPatch, first: int, last: int = 10**6, loss: float = 0.001) -> None:
    """Let the discriminator's loss look as if it had won, or be another, from the step `first` of a stage to `last`."""
    teach = AdversarialTraining.train_discriminator

    def winning(gan: AdversarialTraining, *args: Any) -> tuple[Draws, dict[str, torch.Tensor]]:
        draws, report = teach(gan, *args)
        won = {"discriminator_loss": torch.tensor(loss)} if first <= args[-1] + 1 <= last else {}
        return draws, report | won

    monkeypatch.setattr(AdversarialTraining, "train_discriminator", winning)
    monkeypatch.setattr("dim.distillation.session.draw_curves", lambda *args: None)  # most of a checkpoint's time


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("log_steps", [1, 2])
def test_a_discriminator_that_has_won_is_told_and_the_checkpoint_before_is_kept(
    interrupted: bool, log_steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(**{"stage1.steps": 80, "log_steps": log_steps, "checkpoint_steps": 3})
    win(monkeypatch, 11)
    if interrupted:  # while it is suspected: what was counted is not lost
        with pytest.raises(Stop):
            distill(make_images(), config, tmp_path / "run", progress=stop_at("stage1", 25))
        assert checkpoints_of(config, tmp_path / "run").newest_good() == ("stage1", 9)
    said: list[str] = []
    told = 10 + COLLAPSE_LINES * log_steps
    message = (
        f"at step {told} of stage1: the discriminator has won and gives no gradient. "
        "The last good checkpoint, step 9 of stage1, is kept in "
    )
    with pytest.raises(DivergedError, match=message):
        distill(make_images(), config, tmp_path / "run", resume=interrupted, say=said.append)
    assert ("Resuming at step 24 of stage1." in said) == interrupted
    kept = checkpoints_of(config, tmp_path / "run").newest(print)
    assert kept is not None and (kept.step, kept.quiet_lines) == (9, 0)
    names = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"stage1-00000009.json", "stage1-00000009.safetensors"}


def test_a_suspicion_that_passes_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = quick(**{"stage1.steps": 40, "log_steps": 1, "checkpoint_steps": 3})
    win(monkeypatch, 11, 29)
    with pytest.raises(Stop):
        distill(make_images(), config, tmp_path / "run", progress=stop_at("stage1", 38))
    folder = checkpoints_of(config, tmp_path / "run")
    assert folder.newest_good() == ("stage1", 36)
    assert sorted(p.name for p in folder.folder.glob("*.json")) == ["stage1-00000033.json", "stage1-00000036.json"]


def test_a_discriminator_that_guesses_is_told_once_per_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = quick(**{"stage1.steps": 50, "stage2.steps": 24, "log_steps": 1, "checkpoint_steps": 100})
    win(monkeypatch, 1, loss=1.38)
    said: list[str] = []
    assert distill(make_images(), config, tmp_path / "run", say=said.append).finished
    told = [line for line in said if "one at chance has 1.39" in line]
    assert len(told) == 2
    assert told[0].startswith("Step ") and "of stage1: the discriminator's loss was 1.38 over the last 20" in told[0]
    assert f"newest picture in {tmp_path / 'run' / 'grids'} looks poor" in told[0]
    assert "(stage2.adversarial.augment)" in told[1]


def test_a_run_in_pieces_is_told_of_a_guessing_discriminator_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(**{"stage1.steps": 24, "log_steps": 1, "checkpoint_steps": 1})
    win(monkeypatch, 1, loss=1.38)
    said: list[str] = []
    for step in (12, 18):  # neither piece has twenty log lines
        with pytest.raises(Stop):
            distill(
                make_images(), config, tmp_path / "run", resume=True, say=said.append, progress=stop_at("stage1", step)
            )
    assert not [line for line in said if "at chance" in line]
    distill(make_images(), config, tmp_path / "run", resume=True, say=said.append)
    assert [line.split(":")[0] for line in said if "at chance" in line and "stage1" in line] == ["Step 20 of stage1"]


def test_a_discriminator_that_tells_some_things_apart_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    win(monkeypatch, 1, loss=1.36)  # as that of the digits, which teach well
    said: list[str] = []
    config = quick(**{"stage1.steps": 40, "log_steps": 1, "checkpoint_steps": 100})
    assert distill(make_images(), config, tmp_path / "run", say=said.append).finished
    assert not [line for line in said if "at chance" in line]


def test_the_critic_of_wgan_has_no_loss_by_which_it_has_won(tmp_path: Path) -> None:
    overrides = {
        **QUICK,
        "stage1.adversarial.loss": "wgan-gp-ac",
        "stage2.adversarial.loss": "wgan-gp-ac",
        "discriminator.kind": "paper",
        "stage1.steps": 24,
        "stage2.steps": 0,
        "log_steps": 1,
        "deployment.latent_stds": (),
        "deployment.fixed_latents": 0,
    }
    with pytest.MonkeyPatch.context() as patch:
        win(patch, 1)
        config = preset("tiny", data=make_images(), overrides=overrides)
        assert distill(make_images(), config, tmp_path / "run").finished


def test_a_finished_run_is_left_alone(undisturbed: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*")}
    said: list[str] = []
    assert distill(make_images(), quick(), undisturbed, resume=True, say=said.append).finished
    assert before == {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*")}
    assert said == [f"{undisturbed} is finished already."]


def test_run_directories_that_cannot_be_used(undisturbed: Path, tmp_path: Path) -> None:
    data = make_images()
    with pytest.raises(RunError, match="already holds a run: add --resume"):
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


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_fit_digits_and_survive_json(name: str) -> None:
    config = preset(name, data=load_data("digits"))
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert config.preset == name and config.name == "digits"


@pytest.mark.parametrize(
    ("name", "channels", "per_class", "small", "best"),
    [
        ("mnist", 1, 6000, "", ""),
        ("scans", 1, 999, "crop=0.07", "crop=0.07"),
        ("scans", 1, 1000, "", ""),
        ("photos", 3, 6000, "", ""),
        ("photos", 3, 999, "crop=0.07", "crop=0.07"),
        ("cifar10", 3, 5000, "flip", "flip"),
        ("cifar100", 3, 500, "flip_crop=0.07", "flip_crop"),
        ("fashion-mnist", 1, 6000, "flip", "flip"),
    ],
)
def test_the_discriminator_sees_many_images_less_augmented(
    name: str, channels: int, per_class: int, small: str, best: str
) -> None:
    data: Any = SimpleNamespace(
        name=name, classes=("a", "b"), class_counts=(per_class - 9, per_class + 9), height=28, channels=channels
    )
    for preset_name, expected in (("small", small), ("best", best)):
        config = preset(preset_name, data=data)
        assert {config.stage1.adversarial.augment, config.stage2.adversarial.augment} == {expected}
        assert config.generator.mirrored == expected.startswith("flip")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_published_loss_has_its_published_weight_unless_it_is_set(name: str) -> None:
    def weight(**overrides: object) -> float:
        return preset(name, data=load_data("digits"), overrides=overrides).matching.weight

    assert weight() == (0.01 if name == "paper" else 1.0)
    assert weight(**{"matching.loss": "paper"}) == 0.01
    for order in (("matching.loss", "matching.weight"), ("matching.weight", "matching.loss")):
        assert weight(**{field: {"matching.loss": "paper", "matching.weight": 0.5}[field] for field in order}) == 0.5
    assert preset(name, data=load_data("digits"), overrides={"matching.loss": "none"}).matching.weight == weight()


def test_a_generator_that_mirrors_is_told_in_the_record_and_goes_on(tmp_path: Path) -> None:
    config = quick(**{"generator.mirrored": True, "stage1.steps": 4, "stage2.steps": 2})
    with pytest.raises(Stop):
        distill(make_images(), config, tmp_path / "run", progress=stop_at("stage1", 3))
    assert distill(make_images(), config, tmp_path / "run", resume=True).finished
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["generator"]["mirrored"] is True
    with pytest.raises(RunError, match=r"another configuration \(generator differ\)"):
        distill(make_images(), quick(**{"stage1.steps": 4, "stage2.steps": 2}), tmp_path / "run", resume=True)


def test_matching_can_be_turned_off_or_be_the_papers(tmp_path: Path) -> None:
    for loss in ("none", "paper"):
        distill(make_images(), quick(**{"matching.loss": loss}), tmp_path / loss)
        assert (tmp_path / loss / "latents.npz").exists()
        lines = (tmp_path / loss / "metrics.jsonl").read_text().splitlines()
        assert ("matching_loss" in json.loads(lines[-1])) == (loss == "paper")


def test_stage_2_can_be_left_out(tmp_path: Path) -> None:
    nothing = {"deployment.latent_stds": (), "deployment.fixed_latents": 0}
    assert distill(make_images(), quick(**{"stage2.steps": 0, **nothing}), tmp_path / "run").finished
    run_dir = tmp_path / "run"
    assert same(weights(run_dir), read_tensors(run_dir / "generator-stage1.safetensors"))
    assert not (run_dir / "pool.json").exists()


def test_the_published_recipe_runs_with_its_own_networks(tmp_path: Path) -> None:
    data = make_images(image_px=8, per_class=16)
    small = {"stage1.steps": 1, "stage2.steps": 1, "pool.steps_between": 1, "stage1.batch_size": 4}
    config = preset("paper", data=data, overrides={**small, "stage2.batch_size": 4, "pool.batch_size": 4})
    assert config.matching.loss == "paper" and config.stage1.adversarial.loss == "wgan-gp-ac"
    distill(data, config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "pool.json").read_text())[0]["arch"] in config.pool.architectures


def test_colour_unbalanced_and_many_classes(tmp_path: Path) -> None:
    data = make_images(num_classes=30, per_class=3, image_px=12, channels=3)
    keep = [i for i, label in enumerate(data.train_labels) if label != 7 or i % 3 == 0]
    data = replace(data, train_images=data.train_images[keep], train_labels=data.train_labels[keep])
    config = preset("tiny", data=data, overrides={**QUICK, "generator.conditioning": "norm"})
    assert distill(data, config, tmp_path / "run").finished


@pytest.mark.parametrize(
    ("num_classes", "per_class", "image_px", "channels"), [(2, 8, 8, 1), (1000, 1, 8, 3), (2, 4, 128, 3), (3, 4, 61, 1)]
)
def test_every_size_and_number_of_classes(
    num_classes: int, per_class: int, image_px: int, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Batch statistics over 4,096 large images would take most of the time.
    monkeypatch.setattr(
        AdversarialTraining,
        "copy_ema_generator",
        partialmethod(AdversarialTraining.copy_ema_generator, batches=1, batch_size=8),
    )
    data = make_images(num_classes=num_classes, per_class=per_class, image_px=image_px, channels=channels)
    data = replace(data, name="cifar-bars" if channels == 3 else data.name)
    if per_class > 1:  # unbalanced
        most = np.array([1, per_class // 2, *[per_class] * (num_classes - 2)])
        keep = np.arange(len(data.train_labels)) % per_class < most[data.train_labels]
        data = replace(data, train_images=data.train_images[keep], train_labels=data.train_labels[keep])
        assert data.class_counts == tuple(most)
    few = {"stage1.steps": 1, "stage2.steps": 1, "stage1.batch_size": 8, "stage2.batch_size": 8, "pool.ages": (1,)}
    chosen = {"deployment.latent_stds": (), "deployment.fixed_latents": 1, "deployment.candidates": 2}
    chosen |= {"generator.conditioning": "input" if image_px > 8 else "norm"}
    config = preset("best", data=data, overrides={**QUICK, **few, **chosen, "pool.architectures": ("convnet3",)})
    assert config.generator.mirrored == (channels == 3) and config.stage1.adversarial.discriminator_steps == 2
    assert distill(data, config, tmp_path / "run").finished
    with np.load(tmp_path / "run" / "latents.npz") as archive:
        assert archive["latents"].shape == (num_classes, 1, 8) and np.isfinite(archive["latents"]).all()
    bundle = export_run(tmp_path / "run")
    assert verify(bundle).ok
    with Bundle(bundle) as opened:
        assert generate(opened, tmp_path / "set", counts=(1,) * num_classes, format="npz").complete
    with np.load(tmp_path / "set" / "train.npz") as drawn:
        assert drawn["images"].shape == (num_classes, image_px, image_px, channels)
        assert np.array_equal(drawn["labels"], np.arange(num_classes))


def test_all_that_best_does_ends_in_a_bundle_that_holds(tmp_path: Path) -> None:
    """As small as can be, with every ingredient: ages, spreads, refining by learners, mirroring, a teacher."""
    data = replace(make_images(num_classes=4, per_class=20, image_px=16, channels=3), name="cifar-bars")
    names = ("generator.width", "generator.max_width", "discriminator.width", "discriminator.max_width", "pool.width")
    sizes = {name: QUICK[name] for name in (*names, "stage1.steps", "stage2.steps", "deployment.candidates")}
    sizes |= {"stage1.batch_size": 16, "stage2.batch_size": 16, "pool.batch_size": 16, "pool.ages": (1, 2, 3, 4)}
    sizes |= {"deployment.fixed_latents": 12, "deployment.refine_steps": 2, "log_steps": 2, "deployment.candidates": 20}
    teacher = {"deployment.teacher": "convnet3", "deployment.teacher_steps": 2, "deployment.teacher_width": 8}
    config = preset("best", data=data, overrides={**sizes, **teacher})
    plain = to_dict(preset("best", data=data))
    assert config.generator.mirrored and len(config.pool.architectures) == 5
    assert {**to_dict(config)["deployment"], **plain["deployment"]} == plain["deployment"]
    with pytest.raises(Stop):
        distill(data, config, tmp_path / "run", progress=stop_at("refining", 1))
    assert distill(data, config, tmp_path / "run", resume=True).finished
    pool = json.loads((tmp_path / "run" / "pool.json").read_text())
    assert len(pool) == 5 * 4
    bundle = export_run(tmp_path / "run", precisions=("fp32", "fp16"))
    assert verify(bundle).ok
    with Bundle(bundle) as opened:
        assert "teacher.onnx" in opened.manifest.files
        latents = opened.latents([0, 3], [0, 11])
        drawn, mirrored = (
            opened.engine.run(
                np.concatenate([latents[:, :-1], np.full((2, 1), last, np.float32)], axis=1), np.array([0, 3])
            )
            for last in (-1e-6, 1e-6)
        )
        assert np.abs(drawn[:, :, ::-1].astype(int) - mirrored).max() <= 1 < np.abs(drawn.astype(int) - mirrored).max()
        assert generate(opened, tmp_path / "set", counts=(13,) * 4, format="npz", soft_labels=True).complete


def test_values_that_cannot_be(tmp_path: Path) -> None:
    data = make_images()
    with pytest.raises(BadValueError, match="no preset named 'huge': choose one of"):
        preset("huge", data=data)
    with pytest.raises(BadValueError, match="no field 'stage1.stepz'"):
        preset("tiny", data=data, overrides={"stage1.stepz": 3})
    with pytest.raises(BadValueError, match="StageConfig.steps is -1"):
        quick(**{"stage1.steps": -1})
    with pytest.raises(BadValueError, match=r"stage1.batch_size is 22; it must be a multiple of 4"):
        distill(data, quick(**{"stage1.batch_size": 22}), tmp_path / "run")
    with pytest.raises(
        BadValueError, match=r"stage2.batch_size is 5; it must be a multiple of 2 \(1 processes, matched"
    ):
        distill(data, quick(**{"stage2.batch_size": 5, "discriminator.group_size": 1}), tmp_path / "run")
    with pytest.raises(BadValueError, match="multiples of 8 and 28 pixels, not 12"):
        images = make_images(image_px=12)
        distill(images, preset("paper", data=images), tmp_path / "run")
    with pytest.raises(BadValueError, match="belong together"):
        DistillConfig(
            name="x",
            preset="x",
            stage1=StageConfig(steps=1, batch_size=4, adversarial=AdversarialConfig(loss="wgan-gp-ac")),
            stage2=StageConfig(steps=1, batch_size=4),
        )
    with pytest.raises(BadValueError, match="must be one of distribution, paper, none"):
        MatchingConfig(loss="sinkhorn")
    with pytest.raises(
        BadValueError, match=r"^AdversarialConfig.augment: Unknown augmentation step 'typo' in policy 'crop_typo': join"
    ):
        AdversarialConfig(augment="crop_typo")
    for config in (AdversarialConfig, MatchingConfig, PoolConfig):
        bars = rf"^{config.__name__}.augment is 'flip\|crop'; alternatives, joined by bars, are for students alone\.$"
        with pytest.raises(BadValueError, match=bars):
            config(augment="flip|crop")
    with pytest.raises(BadValueError, match="The configuration has the unknown field colour"):
        from_dict({**to_dict(quick()), "colour": 1})
    assert not (tmp_path / "run").exists()


class FakeWriter:
    """TensorBoard's writer as far as we use it, with lines of JSON in its event file."""

    def __init__(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.file = open(Path(folder) / f"events.out.tfevents.{time.monotonic_ns()}.fake", "w")

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.file.write(json.dumps([name, step, value]) + "\n")

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def fake_events(folder: Path) -> list[tuple[str, int, float]]:
    return [tuple(json.loads(line)) for path in folder.iterdir() for line in path.read_text().splitlines()]


def real_events(folder: Path) -> list[tuple[str, int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return [(tag, e.step, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]


@pytest.mark.parametrize("read", [fake_events, real_events])
def test_tensorboard_gets_what_the_metrics_hold_and_nothing_twice_after_a_resume(
    read: Callable[[Path], list[tuple[str, int, float]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if read is fake_events:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=FakeWriter))
    config = quick(**{"stage1.steps": 6, "stage2.steps": 3, "log_steps": 1, "checkpoint_steps": 4})
    with pytest.raises(Stop):  # two log lines after its last checkpoint
        distill(make_images(), config, tmp_path / "run", tensorboard=True, progress=stop_at("stage1", 6))
    assert distill(make_images(), config, tmp_path / "run", resume=True, tensorboard=True).finished
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        *(("stage1", step) for step in range(1, 7)),
        *(("stage2", step) for step in range(1, 4)),
    ]
    assert sorted(read(tmp_path / "run" / "tensorboard")) == sorted(
        (f"{line['stage']}/{name}", line["step"], pytest.approx(value, rel=1e-6))
        for line in lines
        for name, value in line.items()
        if name not in ("stage", "step")
    )


def test_a_missing_tensorboard_is_told_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match="tensorboard"):
        distill(make_images(), quick(), tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(BadValueError, match="choose auto, cpu or gpu"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="torch sees no CUDA GPU here"):
            choose_device("gpu")


def test_a_full_disk_is_one_sentence_and_the_old_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stop):
        distill(make_images(), quick(), tmp_path / "run", progress=stop_at("stage1", 3))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"cannot be written \(No space left on device\): mend it"):
            distill(make_images(), quick(), tmp_path / "run", resume=True)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("*.json")] == ["stage1-00000002.json"]
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert distill(make_images(), quick(), tmp_path / "run", resume=True).finished
