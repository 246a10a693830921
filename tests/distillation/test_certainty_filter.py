"""The certainty filter: which candidates are accepted, resuming, export, what users then draw."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quick_runs import quick
from small_images import make_images

from dim.config import FilterConfig
from dim.distillation import certainty_filter
from dim.distillation.certainty_filter import choose_surest
from dim.distillation.distill import distill
from dim.export.export_run import export_run
from dim.export.run_classifiers import read_classifiers
from dim.runtime.bundle import open_bundle
from dim.runtime.errors import BadValueError, RunError
from dim.runtime.sampling.latents import draw_latents

FILTER: dict[str, Any] = {
    "deployment.latent_stds": (1.2,),
    "deployment.fixed_latents": 0,
    "filter.candidates": 64,
    "filter.keep": 0.25,
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "filtered"
    assert distill(make_images(), quick(**FILTER), path).finished
    return path


def test_the_surest_part_of_every_class_is_chosen_and_ties_go_to_lower_numbers() -> None:
    certainty = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.2, 0.2, 0.2, 0.2], [0.4, 0.3, 0.2, 0.1]])
    assert choose_surest(certainty, 0.5).tolist() == [
        [False, True, False, True],
        [True, True, False, False],
        [True, True, False, False],
    ]
    assert choose_surest(certainty, 0.01).sum(dim=1).tolist() == [1, 1, 1]
    assert choose_surest(certainty, 1.0).all()


def test_a_bundle_draws_the_images_that_the_pool_is_surest_of(run_dir: Path, tmp_path: Path) -> None:
    with open_bundle(export_run(run_dir, out=tmp_path / "bars.dim"), engine="onnxruntime-cpu") as bundle:
        accepted = bundle.accepted_candidates
        assert accepted is not None and (accepted.per_class, accepted.num_accepted) == (64, 3 * 16)
        assert bundle.manifest.sampling.sampling_version == 2 and bundle.manifest.latent_std == 1.2
        labels = np.arange(3).repeat(64)
        latents = draw_latents(accepted.key, labels, np.tile(np.arange(64), 3), bundle.manifest.latent_dim, 1.2)
        images = np.concatenate([bundle.engine.run(latents[labels == k], labels[labels == k]) for k in range(3)])
        judges = [read for name, read in read_classifiers(run_dir, "pool")]
        ages = len(quick().pool.ages)
        with torch.no_grad():
            found = [judge(torch.from_numpy(images)).softmax(dim=1) for judge in judges[ages - 1 :: ages]]
        certainty = torch.stack(found).mean(dim=0)[torch.arange(192), torch.from_numpy(labels)].reshape(3, 64)
        chosen = np.zeros((3, 64), bool)
        for k in range(3):
            chosen[k, accepted.numbers[accepted.starts[k] : accepted.starts[k + 1]]] = True
        # Judged in the run's own precision, so that a few near the border may lie on its other side.
        assert (choose_surest(certainty, 0.25).numpy() == chosen).mean() > 0.95
        assert float(certainty[torch.from_numpy(chosen)].mean()) > float(certainty.mean())
        report = json.loads((run_dir / "deployment.json").read_text())["filter"]
        assert report["accepted_certainty"] > report["certainty"]
        assert len(np.unique(bundle.sample(labels, np.tile(np.arange(64), 3), 3, "stream"), axis=0)) > 48
    card = (tmp_path / "bars.dim" / "README.md").read_text()
    assert "says which candidates are drawn" in card and "filter.candidates=64" in card


@pytest.mark.slow
def test_a_time_limit_between_classes_changes_nothing(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []
    judge = certainty_filter._judge_class

    def slow(session: Any, *rest: Any) -> torch.Tensor:
        judged.append(rest[3])
        session.deadline = time.monotonic() - 1
        return judge(session, *rest)

    monkeypatch.setattr(certainty_filter, "_judge_class", slow)
    calls = [distill(make_images(), quick(**FILTER), tmp_path / "a", resume=True).finished for _ in range(3)]
    assert calls == [False, False, True] and judged == [0, 1, 2]
    assert (tmp_path / "a" / "accepted.bin").read_bytes() == (run_dir / "accepted.bin").read_bytes()
    assert not list((tmp_path / "a" / "checkpoints").glob("accepted*"))


@pytest.mark.slow
def test_the_teacher_may_judge(tmp_path: Path) -> None:
    teacher = {"deployment.teacher": "convnet3", "deployment.teacher_width": 8, "deployment.teacher_steps": 4}
    config = quick(**FILTER, **teacher, **{"filter.judge": "teacher", "matching.loss": "none"})
    assert distill(make_images(), config, tmp_path / "a").finished
    assert (tmp_path / "a" / "accepted.bin").stat().st_size == 16 + 3 * 8


def test_a_run_without_its_file_is_not_exported(run_dir: Path, tmp_path: Path) -> None:
    file = run_dir / "accepted.bin"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-1])
        with pytest.raises(RunError, match="has 39 bytes; of this run it must have 40"):
            export_run(run_dir, out=tmp_path / "a.dim")
        file.unlink()
        with pytest.raises(RunError, match="cannot be read: No such file"):
            export_run(run_dir, out=tmp_path / "a.dim")
    finally:
        file.write_bytes(whole)


def test_wrong_fields_are_refused(tmp_path: Path) -> None:
    for fields, message in (
        ({"candidates": 12}, "FilterConfig.candidates is 12; it must be a multiple of 8"),
        ({"keep": 0.0}, "FilterConfig.keep is 0.0"),
        ({"judge": "me"}, "FilterConfig.judge is 'me'; it must be one of pool, teacher"),
    ):
        with pytest.raises(BadValueError, match=message):
            FilterConfig(**fields)  # type: ignore[arg-type]
    with pytest.raises(BadValueError, match="filter.judge is 'teacher' and there is none"):
        quick(**FILTER, **{"filter.judge": "teacher"})
    with pytest.raises(BadValueError, match="filter.candidates is 16777216; with 3 classes it must be at most 5592400"):
        distill(make_images(), quick(**FILTER | {"filter.candidates": 2**24}), tmp_path / "a")
