"""lab/proving.py: rows, steps that fit into a time, and that an interrupted folder goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dim.data.load import load_data
from dim.presets import preset
from lab import ablation, image_measures, proving
from lab.image_measures import Views, compare_images, pick_real, take_balanced

SHRUNK = {
    "generator.width": 8, "generator.max_width": 8, "discriminator.width": 8, "discriminator.max_width": 8,
    "stage1.batch_size": 16, "stage2.batch_size": 16, "pool.width": 4, "pool.ages": [4, 8, 12], "log_steps": 4,
}  # fmt: skip
CLASSES, PER_CLASS = 3, 40


def look(points: np.ndarray, logits: np.ndarray) -> Views:
    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    return Views(torch.from_numpy(points).float(), torch.from_numpy(logits).float(), labels)


def test_images_of_the_same_distribution_are_near_and_collapsed_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(CLASSES, 6) * 5, PER_CLASS, axis=0)
    logits = np.repeat(np.eye(CLASSES) * 3, PER_CLASS, axis=0)
    real, alike, collapsed = (
        look(centres + spread * rng.normal(size=centres.shape), logits + 0.1 * rng.normal(size=logits.shape))
        for spread in (1.0, 1.0, 0.05)
    )
    near, far = compare_images(real, alike), compare_images(real, collapsed)
    assert abs(near["energy_distance"]) < 0.05 < far["energy_distance"]
    assert near["feature_distance"] < far["feature_distance"]
    assert near["recall"] > 0.8 > 0.2 > far["recall"]
    assert near["coverage"] > 0.8 > 0.6 > far["coverage"]
    assert near["recognised"] == 1.0 and 0.8 < near["certainty"] < 1.0


def test_dearer_steps_get_fewer_of_them() -> None:
    base = {"stage1": 0.5, "stage2": 0.6, "pool": 40.0}
    steps = proving.count_steps(base, 0.25, 750)
    assert steps[0] * 0.5 + steps[1] * 0.6 + 40 == pytest.approx(750, abs=1)
    # Timed on a machine half as fast, a variant whose first stage costs twice as much as the unchanged one.
    scaled = proving.scale_costs(
        {"stage1": 2.0, "stage2": 1.21, "pool": 80.0}, {"stage1": 1.0, "stage2": 1.2, "pool": 80.0}, base
    )
    assert scaled == {"stage1": 1.0, "stage2": 0.6, "pool": 40.0}
    assert proving.count_steps(base, 0.0, 750) == (1500, 0)


def test_what_changes_weights_or_the_choice_alone_is_not_timed() -> None:
    plain, *others = (
        preset("best", data=load_data("digits"), overrides=changes)
        for changes in (
            {},
            {"matching.cross_entropy": 0.5},
            {"matching.weight": 2.0, "filter.candidates": 8},
            {"matching.classes_per_step": 2},
            {"generator.width": 40},
        )
    )
    assert [proving.costs_the_same(other, plain) for other in others] == [True, True, False, False]


def test_real_images_come_in_rounds_and_balanced_ones_in_order() -> None:
    data = load_data("digits")
    images, labels = pick_real(data, 400, seed=1)
    assert len(images) == 4000 and (labels[:10] == np.arange(10)).all()
    first = images[labels == 3][: data.class_counts[3]]
    assert {image.tobytes() for image in first} == {i.tobytes() for i in data.train_images[data.train_labels == 3]}
    some, classes = take_balanced(images, labels, 5)
    assert np.bincount(classes).tolist() == [5] * 10 and (some[:5] == images[labels == 0][:5]).all()


@pytest.mark.slow
def test_the_proving_ground_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(proving, "TIMED_STEPS", 16)
    monkeypatch.setattr(proving, "ROUNDS", 1)
    monkeypatch.setattr(proving, "WIDTH", 8)
    monkeypatch.setattr(image_measures, "JUDGE_WIDTH", 8)
    monkeypatch.setattr(image_measures, "JUDGE_STEPS", 20)
    monkeypatch.setattr(image_measures, "can_compile", lambda *_: False)
    line = ["--data", "digits", "--out", str(tmp_path), "--seconds", "1", "--students", "1", "--epochs", "4"]
    line += [word for field, value in SHRUNK.items() for word in ("--set", f"{field}={json.dumps(value)}")]
    line += ["--seeds", "1", "--only", "base,tall,sure"]
    line += ["--vary", "tall", "generator.width=12", "generator.max_width=12"]
    line += ["--vary", "sure", "filter.candidates=64", "filter.keep=0.2"]
    assert ablation.main(line) == 0
    printed = capsys.readouterr()
    assert f"Stage 1 and the pool are taken from {tmp_path / 'runs/base-0'}." in printed.err  # by `sure` alone
    table = printed.out.splitlines()
    assert [row.split("|")[1].strip() for row in table[2:]] == [
        "real images",
        "everything (the preset `best`, shortened)",
        "`filter.candidates=64`, `filter.keep=0.2`",
        "`generator.width=12`, `generator.max_width=12`",
    ]
    rows = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "proved").iterdir()}
    assert rows["sure-0"]["certainty"] > rows["base-0"]["certainty"]
    assert set(rows) == {"base-0", "tall-0", "sure-0"} and all(row["steps"][0] >= 1 for row in rows.values())
    before = (tmp_path / "runs/base-0/generator.safetensors").stat().st_mtime_ns
    (tmp_path / "proved/base-0.json").unlink()
    assert ablation.main(line) == 0  # the run is there; only what judges it is done again
    again = json.loads((tmp_path / "proved/base-0.json").read_text())
    assert (
        again["default"] == rows["base-0"]["default"] and again["energy_distance"] == rows["base-0"]["energy_distance"]
    )
    assert (tmp_path / "runs/base-0/generator.safetensors").stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match="was made with another epochs: give another --out"):
        ablation.main([*line, "--epochs", "5"])
