"""lab/ablation.py: which rows there are, on which images they are judged, and that a folder goes on where it was."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dim.data.load import load_data
from dim.runtime.bundle_format.files import load_manifest
from lab.pages.distilling import ablation_text

ROOT = Path(__file__).parents[2]
SHORT = ["--data", "digits", "--preset", "tiny", "--seeds", "1", "--students", "1", "--epochs", "2", "--width", "4"]
SHORT += [
    word
    for setting in (
        "stage1.steps=6", "stage2.steps=3", "stage1.batch_size=16", "stage2.batch_size=16", "generator.width=8",
        "generator.max_width=8", "discriminator.width=8", "discriminator.max_width=8",
        'pool.architectures=["convnet3"]', "pool.width=4", "pool.ages=[2,4]", "deployment.candidates=6",
        "deployment.fixed_latents=4",
    )
    for word in ("--set", setting)
]  # fmt: skip


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablation_script", ROOT / "lab" / "ablation.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(
    bench: ModuleType, preset: str, name: str, *, full: bool, **changed: Any
) -> dict[str, tuple[str, dict[str, Any]]]:
    channels = 3 if name.startswith("cifar") else 1
    classes = tuple("0123456789")
    data = SimpleNamespace(name=name, classes=classes, class_counts=(5000,) * 10, height=32, channels=channels)
    common = (bench.QUIET if full else bench.BASE) | changed
    found: dict[str, tuple[str, dict[str, Any]]] = bench.list_variants(
        argparse.Namespace(preset=preset, full=full), data, common
    )
    return found


def test_every_choice_of_a_preset_has_a_row_and_no_row_repeats_it(bench: ModuleType) -> None:
    small = rows_of(bench, "small", "mnist", full=False)
    assert {"conditioning", "shown-color", "four-ages", "paper", "latents"} <= set(small)
    assert small["r1-light"][1]["stage1.adversarial.r1_gamma"] == small["r1-light"][1]["stage2.adversarial.r1_gamma"]
    assert small["paper-narrow"][1] == {
        **{f"generator.{field}": 64 for field in ("width", "max_width")},
        **{f"discriminator.{field}": 32 for field in ("width", "max_width")},
        "pool.width": 16,
    }
    assert small["base"][0] == "everything (the preset `small`, shortened)"
    assert small["four-ages"][1] == {"pool.ages": (50, 200, 800, 3200)}
    assert not {"unconditioned", "neither", "shown", "one-step"} & set(small)  # what `small` does anyway
    assert small["rates"][1]["stage2.adversarial.generator_lr"] == 5e-4 and "two-steps" in small
    assert "shown" in rows_of(bench, "small", "cifar10", full=False)
    best = rows_of(bench, "best", "cifar10", full=True)
    assert {"conditioning", "shown-color", "shown-crop", "one-step", "ages", "generator"} <= set(best)
    assert best["base"][0] == "everything (the preset `best`)"
    assert best["ages"][1] == {"pool.ages": (6400,)} and best["generator"][1]["generator.width"] == 196
    assert best["rates"][1] == {"stage1.adversarial.generator_lr": 5e-4, "stage2.adversarial.generator_lr": 2.5e-4}
    assert best["slow"][1]["stage1.adversarial.generator_lr"] == 1e-4 and "slow" not in small
    assert not {"unconditioned", "neither", "two-steps", "four-ages", "paper-narrow"} & set(best)
    assert best["pixels"][1] == {"discriminator.patch_px": 1} and "patches" in small and "patches" not in best
    assert best["unfiltered"][1] == {"filter.candidates": 0} and "unsure" not in small
    assert best["unsure"][1] == {"matching.cross_entropy": 0.0}
    assert not any(
        "unfiltered" in rows_of(bench, "best", name, full=full) for name, full in (("cifar10", False), ("mnist", True))
    )
    norm = rows_of(bench, "best", "cifar10", full=True, **{"generator.conditioning": "norm"})
    assert {"unconditioned", "neither"} <= set(norm) and "conditioning" not in norm
    parts = {name: row for name, row in best.items() if row[0].startswith("latents of small fixed sets refined ")}
    changed = {field: value for _, changes in parts.values() for field, value in changes.items()}
    assert list(parts) == ["learners", "one-draw", "unanswered"] and changed == {
        "deployment.refine_learners": 0, "deployment.refine_draws": 1, "deployment.refine_cross_entropy": 0.0,
    }  # fmt: skip
    assert not set(parts) & (set(small) | set(rows_of(bench, "tiny", "cifar10", full=True)))  # which refine by fewer
    assert "four-ages" in rows_of(bench, "best", "cifar10", full=False)  # shortened to two ages
    narrow = rows_of(bench, "best", "cifar10", full=False, **{"generator.width": 32, "generator.max_width": 128})
    assert narrow["generator"][1]["generator.width"] == 64 and "paper-narrow" in narrow  # as wide as ours, about


@pytest.mark.slow
def test_rows_are_judged_on_what_their_generators_never_saw_and_are_made_once(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SHORT, "--out", str(tmp_path), "--holdout"]
    assert bench.main([*arguments, "--only", "base"]) == 0
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["split"] == "hold-out" and [row["variant"] for row in report["rows"]] == ["base"]
    digits = load_data("digits")
    counts = load_manifest(tmp_path / "runs" / "base-0" / "base-0.dim").source.class_counts
    assert 0.88 * len(digits.train_labels) < sum(counts) < 0.92 * len(digits.train_labels)
    (cell, *_) = [json.loads(path.read_text()) for path in (tmp_path / "eval" / "cells").glob("*.json")]
    assert cell["test_images"] == len(digits.train_labels) - sum(counts)
    table = capsys.readouterr().out
    assert "| everything (the preset `tiny`, shortened) | " in table
    assert "random latents in fixed sets" not in table  # rows that were not measured are left out
    assert "hold-out images cut from the training split" in ablation_text(report)[0]

    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    assert bench.main([*arguments, "--only", "base,latents"]) == 0
    assert {path.name for path in (tmp_path / "rows").iterdir()} == {"base-0.json", "latents-0.json"}
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())
    assert bench.main(["--out", str(tmp_path), "--table"]) == 0
    assert "| random latents in fixed sets, no choice | not run" not in capsys.readouterr().out.split("| variant |")[-1]

    # Stage 1 and the pool are taken over where they are the same, and counted nevertheless.
    assert bench.main([*arguments, "--only", "logits,ages,ema"]) == 0
    said = capsys.readouterr().err.split("seed 0: ")[1:]
    taken = [("Stage 1 and the pool are taken from" in part, "Stage 1 is taken from" in part) for part in said]
    assert taken == [(True, False), (False, True), (False, False)]
    names = ("base", "logits", "ages")
    base, logits, ages = (bench.Cost.load(tmp_path / "runs" / f"{name}-0.seconds") for name in names)
    assert {"stage1", "pool"} <= set(base.stages) and "pool" in ages.stages and "stage1" not in ages.stages
    shared = base.stages["stage1"] + base.stages["pool"]
    assert not {"stage1", "pool"} & set(logits.stages) and logits.seconds > shared + sum(logits.stages.values())
    assert ages.seconds > base.stages["stage1"] + sum(ages.stages.values())

    with pytest.raises(SystemExit, match=r"was measured with split 'hold-out', not 'test': give another --out\.$"):
        bench.refuse_another_setting(
            argparse.Namespace(out=tmp_path, holdout=False, preset="tiny", width=4, epochs=2),
            SimpleNamespace(fingerprint=lambda: report["fingerprint"]),
            report["changed"],
        )
    with pytest.raises(SystemExit, match=r"was measured with student .*'epochs': 2}, not .*'epochs': 3}: give another"):
        bench.main([*arguments, "--epochs", "3"])
    with pytest.raises(SystemExit, match=r"^--only names 'rs'; the rows of this preset are base, generator, "):
        bench.main([*arguments, "--only", "rs"])


def test_the_published_recipe_is_cut_to_a_time(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With steps of a second in stage 1 and of two in stage 2, three seconds to start, and five that come but once."""
    now = 0.0

    def distil(data: Any, config: Any, *_: Any, progress: Any, **__: Any) -> None:
        nonlocal now
        now += 3
        for stage, steps, seconds in (("stage1", config.stage1.steps, 1), ("stage2", config.stage2.steps, 2)):
            now += 5 * bool(steps)
            for step in range(1, steps + 1):
                now += seconds
                progress(stage, step, steps, "")

    monkeypatch.setattr(bench, "distill", distil)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)
    published = bench.preset("paper", data=load_data("digits"))
    whole = published.stage1.steps + 2 * published.stage2.steps
    seconds = 8 + whole / 10
    assert bench.main(["--data", "digits", "--out", str(tmp_path), "--equal-seconds", str(seconds)]) == 0
    words = capsys.readouterr().out.split()
    assert words[0] == "--steps" and int(words[1]) == round(published.stage1.steps / 10)
    assert words[2] == "--matching-steps" and int(words[3]) == round(published.stage2.steps / 10)
    assert words[4:6] == ["--set", f"pool.epoch_steps={round(published.pool.epoch_steps / 10)}"]
    assert words[6:] == ["--set", "compile=off"]
    own = rows_of(bench, "small", "mnist", full=False)["paper-narrow"][1]
    narrow = bench.published(2, load_data("digits"), seconds, tmp_path, "cpu", lambda: now, own)
    assert (narrow.seed, narrow.generator.width, narrow.discriminator.max_width, narrow.pool.width) == (2, 64, 32, 16)
    assert narrow.stage1.steps == int(words[1]) and narrow.pool.kind == "fresh" and narrow.matching.loss == "paper"
