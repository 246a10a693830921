"""Runs that begin with the finished stage 1 of another run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from quick_runs import FRESH, Stop, quick, same, stop_at, weights
from small_images import make_images

from dim.data.load import ImageSet
from dim.distillation.distill import distill
from dim.runtime.errors import BadValueError, RunError

RESULTS = ["generator.safetensors", "generator-stage1.safetensors", "metrics.jsonl", "config.json"]


CHOSEN = ["pool.safetensors", "pool.json", "latents.npz", "deployment.json"]
UNMATCHED = {"matching.loss": "none"}
STAGE1_ALONE = {"stage2.steps": 0}
# Several latent standard deviations need a hold-out, which stage 1 then does without.
NOTHING_CHOSEN = {**STAGE1_ALONE, "deployment.latent_stds": (), "deployment.fixed_latents": 0}


@pytest.fixture
def quick_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a checkpoint's time; here a picture is what would be drawn."""
    for module in ("distillation.session", "runs.take_over"):
        monkeypatch.setattr(
            f"dim.{module}.draw_curves",
            lambda run_dir: (run_dir / "curves.png").write_bytes((run_dir / "metrics.jsonl").read_bytes()),
        )


def begun_from(source: Path, run_dir: Path, **changes: object) -> list[str]:
    """Distil with the stage 1 of `source`; returns the stages that were trained and what was said of it."""
    stages: dict[str, None] = {}
    said: list[str] = []

    def note(what: str, done: float, total: float | None, note: str) -> None:
        stages[what] = None

    config = quick(**changes)
    assert distill(make_images(), config, run_dir, from_stage1=source, progress=note, say=said.append).finished
    return [line for line in said if "taken from" in line] + [s for s in stages if s in ("stage1", "pool", "stage2")]


def left_in(run_dir: Path) -> set[str]:
    return {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.parent.name != "checkpoints"}


@pytest.mark.slow
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


@pytest.mark.slow
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
        "SOURCE has not finished stage 1: finish it with  dim distill --resume --out SOURCE  or take another run."
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
