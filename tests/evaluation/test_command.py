"""`dim eval` on a dataset of stripes: time limit, recording, recipes."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_tools import dim as run_command
from tiny_bundle import build_tiny_bundle

from dim.data.load import ImageSet
from dim.evaluation.measure import Evaluation
from dim.evaluation.protocol import EvalProtocol, Execution
from dim.evaluation.subjects import find_split_seed
from dim.runtime.bundle_format.files import load_manifest
from dim.students.recipes import DEFAULT

CPU = torch.device("cpu")


def test_the_command_leaves_the_number_of_jobs_to_the_library_and_takes_a_chosen_recipe(
    bundle: Path, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = replace(DEFAULT, name="one", lr=0.03)
    (tmp_path / "recipe.json").write_text(json.dumps({"chosen": asdict(chosen)}))
    seen: dict[str, Any] = {}

    def record(bundles: Any, images: ImageSet, protocol: EvalProtocol, execution: Execution, **_: Any) -> Evaluation:
        seen.update(recipe=protocol.recipe, jobs=execution.jobs)
        return Evaluation(out=tmp_path, results=(), students_left=0)

    monkeypatch.setattr("dim.evaluation.evaluate.evaluate", record)
    monkeypatch.setattr("dim.evaluation.subjects.load_data", lambda *_, **__: data)
    words = ["eval", "--bundle", bundle, "--data", "stripes", "--out", tmp_path / "eval"]
    ran = run_command(*words, "--recipe", tmp_path / "recipe.json")
    assert ran.code == 0, ran.err
    assert seen["jobs"] is None and seen["recipe"] == chosen


def test_the_command_stops_in_time_and_records_nothing_unfinished_or_foreign(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = {"data": {"fingerprint": data.fingerprint()}}
    bundle = build_tiny_bundle(tmp_path / "tiny.dim", distill_config=origin)
    monkeypatch.setattr("dim.evaluation.subjects.load_data", lambda *_, **__: data)
    words = ["eval", "--bundle", bundle, "--data", "stripes", "--out", tmp_path / "eval"]
    words += ["--epochs", "1", "--width", "4", "--ipc", "2"]
    words += ["--jobs", "1", "--device", "cpu", "--recipe", "holdout", "--json"]

    def never(*_: Any, deadline: float | None = None, **__: Any) -> Evaluation:
        assert deadline is not None and 3590 < deadline - time.monotonic() <= 3600
        return Evaluation(out=tmp_path, results=(), students_left=6)

    monkeypatch.setattr("dim.evaluation.choose_recipe.measure", never)
    ran = run_command(*words, "--record", "--time-limit", "1h")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["finished"] is False
    assert "left 6 of 6 students untrained" in ran.err and load_manifest(bundle).accuracy == ()
    assert json.loads((tmp_path / "eval" / "results.json").read_text())["finished"] is False
    other = replace(data, train_images=255 - data.train_images)
    monkeypatch.setattr("dim.evaluation.subjects.load_data", lambda *_, **__: other)
    ran = run_command(*words, "--record")
    assert ran.code == 1 and "Such accuracy is not recorded: leave out --record." in ran.err


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 0),
        ({"seed": 5}, 5),  # of bundles from before the split's seed was kept
        ({"seed": 5, "data": {"split_seed": None}}, 5),  # the source has a test split, so nothing is cut
        ({"seed": 5, "data": {"split_seed": 3}}, 3),
        ({"seed": 5, "data": {"split_seed": 0}}, 0),
    ],
)
def test_the_test_split_is_cut_as_it_was_for_distilling(config: dict[str, Any], expected: int, tmp_path: Path) -> None:
    assert find_split_seed(load_manifest(build_tiny_bundle(tmp_path / "tiny.dim", distill_config=config))) == expected


def test_the_command_prints_one_screen_with_the_answer_first(
    bundle: Path, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dim.evaluation.subjects.load_data", lambda *_, **__: data)
    words = ["eval", "--bundle", bundle, "--data", "stripes", "--out", tmp_path / "eval", "--device", "cpu"]
    words += ["--epochs", "1", "--width", "4", "--seeds", "1", "--jobs", "1", "--mode", "stream", "--ipc", "2"]
    ran = run_command(*words)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0].startswith("A ConvNet-3 of width 4 trained on these images reaches ") and len(lines) <= 24
    assert "Caution: One student per row: how much students differ is not known; --seeds 3 tells." in ran.out
    assert "bits per" not in ran.out and "Protocol" not in ran.out
    ran = run_command(*words, "--all")
    shown = " ".join(ran.out.split())
    assert "What the students saw" in shown and "bits per" in shown
    assert "Accuracy on the test images of every class" in shown
    # What is a name's turn is refused before anything is trained.
    ran = run_command(*words, "--controls", "nothing")
    assert ran.code == 1 and "There is no control 'nothing'; there are real, archive." in ran.err


@pytest.mark.slow
def test_quality_and_privacy_need_no_students_and_are_recorded(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dim.evaluation.subjects.load_data", lambda *_, **__: data)
    monkeypatch.setattr("dim.evaluation.quality.features.STEPS", 5)
    (tmp_path / "own_features.py").write_text("def rows(images):\n    return images.mean(axis=(2, 3))\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    bundle = build_tiny_bundle(tmp_path / "tiny.dim", distill_config={"data": {"fingerprint": data.fingerprint()}})
    words = ["eval", "--bundle", bundle, "--data", "stripes", "--out", tmp_path / "eval", "--device", "cpu"]
    words += ["--seeds", "0", "--quality", "--privacy", "--features", "own_features:rows"]
    ran = run_command(*words, "--record")
    assert ran.code == 0, ran.err
    assert "held-out images are too few to tell copies from chance" in ran.out and "Quality of the images" in ran.out
    found = load_manifest(bundle).evaluation
    assert found["quality"]["compared_by"] == "features by own_features:rows" and not found["privacy"]["copies"]
    ran = run_command(*words, "--json")
    shown = json.loads(ran.out)
    assert shown["rows"] == [] and shown["quality"] == found["quality"] and shown["privacy"] == found["privacy"]
    kept = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert kept["finished"] is True and kept["quality"] == found["quality"]
    named = f"In {tmp_path / 'eval'}: results.json, nearest-pairs.png, report.html; --all shows more.\n"
    assert named in run_command(*words).out
    assert "Copies of training images" in run_command(*words, "--all").out
    assert "Copies of training images" not in run_command(*words).out


def test_bundles_to_compare_are_recorded_with_the_rest(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dim.evaluation.subjects.load_data", lambda *_, **__: data)
    config = {"data": {"fingerprint": data.fingerprint()}, "preset": "small"}
    first, *others = [
        build_tiny_bundle(tmp_path / f"{seed}.dim", seed=seed, distill_config=config | {"seed": seed})
        for seed in range(3)
    ]
    words = ["eval", "--bundle", first, "--data", "stripes", "--out", tmp_path / "eval", "--device", "cpu", "--record"]
    words += ["--epochs", "1", "--width", "4", "--seeds", "1", "--jobs", "1", "--mode", "stream", "--ipc", "2"]
    words += ["--controls", "real", *(word for other in others for word in ("--compare", f"others={other}"))]
    ran = run_command(*words)
    assert ran.code == 0, ran.err
    recorded = load_manifest(first).accuracy
    assert [(row["subject"], row.get("generators", 1)) for row in recorded] == [
        ("generated", 1), ("others", 2), ("real", 1),
    ]  # fmt: skip
    assert "\n| others | " in (first / "README.md").read_text()


def test_features_that_are_not_to_be_had_are_said_before_a_student_is_trained(
    bundle: Path, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dim.evaluation.subjects.load_data", lambda *_, **__: data)
    words = ["eval", "--bundle", bundle, "--data", "stripes", "--out", tmp_path / "eval", "--device", "cpu"]
    ran = run_command(*words, "--quality", "--features", "no_such_module:f")
    assert ran.code == 1 and "--features no_such_module:f is not to be had" in ran.err
    assert not (tmp_path / "eval" / "cells").exists()
