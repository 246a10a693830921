"""The teacher of soft labels: trained at the end of a distillation, exported, used by sets and students."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from quick_runs import Stop, quick, same, stop_at
from set_tools import generate
from small_images import make_images

from dim.distillation.distill import distill
from dim.evaluation.evaluate import evaluate
from dim.evaluation.protocol import EvalProtocol, Execution
from dim.export.export_run import export_run
from dim.runs.tensors import read_tensors
from dim.runtime.bundle import open_bundle
from dim.runtime.errors import BadValueError

TEACHER = {
    "deployment.latent_stds": (),
    "deployment.fixed_latents": 0,
    "deployment.teacher": "convnet3",
    "deployment.teacher_width": 8,
    "deployment.teacher_steps": 60,
    "matching.loss": "none",
    "checkpoint_steps": 20,
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "teacher"
    assert distill(make_images(), quick(**TEACHER), path).finished
    return path


@pytest.mark.slow
def test_a_teacher_reaches_sets_and_students(run_dir: Path, tmp_path: Path) -> None:
    data = make_images()
    entries = json.loads((run_dir / "teacher.json").read_text())
    assert [(entry["arch"], entry["width"]) for entry in entries] == [("convnet3", 8)]
    bundle_path = export_run(run_dir, out=tmp_path / "bars.dim")
    with open_bundle(bundle_path) as bundle:
        generate(bundle, str(tmp_path / "set"), counts=[2, 2, 2], format="npz", soft_labels=True)
    from dim.runtime.sets.soft_labels import open_teacher

    with open_bundle(bundle_path) as bundle:
        found = open_teacher(bundle)(data.test_images).argmax(axis=1)
    assert (found == data.test_labels).mean() > 0.8  # it has learned the real classes, not noise
    [logits] = (tmp_path / "set").rglob("*logits*.npy")
    assert np.load(logits).shape == (6, 3)
    protocol = EvalProtocol(
        modes=("fixed",), ipcs=(2,), archs=("mlp",), width=8, seeds=(0,), epochs=2, labels=("hard", "soft")
    )
    results = evaluate(bundle_path, data, protocol, Execution(jobs=1), out=tmp_path / "eval").results
    assert {result.cell.labels for result in results} == {"hard", "soft"}


def test_a_teacher_goes_on_where_it_was_stopped(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        distill(make_images(), quick(**TEACHER), tmp_path / "run", progress=stop_at("teacher", 33))
    assert int(read_tensors(tmp_path / "run", "checkpoints/teacher.safetensors")["done"]) == 20
    assert not distill(make_images(), quick(**TEACHER), tmp_path / "run", resume=True, time_limit_s=0.0).finished
    assert int(read_tensors(tmp_path / "run", "checkpoints/teacher.safetensors")["done"]) == 21
    assert distill(make_images(), quick(**TEACHER), tmp_path / "run", resume=True).finished
    assert not (tmp_path / "run" / "checkpoints" / "teacher.safetensors").exists()
    whole, again = (read_tensors(path, "teacher.safetensors") for path in (run_dir, tmp_path / "run"))
    assert same(whole, again)


def test_an_unknown_classifier_is_told_before_anything_is_made(tmp_path: Path) -> None:
    for field, value in (("deployment.teacher", "resnet9"), ("pool.architectures", ("convnet3", "resnet9"))):
        with pytest.raises(BadValueError, match="'resnet9'.*; it must be (one|some) of convnet3, "):
            distill(make_images(), quick(**{field: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
