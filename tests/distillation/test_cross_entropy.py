"""Stage 2 with the pool's cross-entropy: generated images become ones of whose label classifiers are surer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quick_runs import quick
from small_images import make_images

from dim.config import MatchingConfig
from dim.distillation.distill import describe_run, distill
from dim.export.run_classifiers import read_classifiers
from dim.export.run_files import read_run
from dim.runs.record import read_run_record
from dim.runtime.errors import BadValueError
from lab.image_measures import draw_stream

PLAIN: dict[str, Any] = {
    "deployment.latent_stds": (),
    "deployment.fixed_latents": 0,
    "pool.architectures": ("convnet3",),
    "pool.ages": (60,),
    "pool.lr": 0.1,
    "stage2.steps": 60,
    "stage2.adversarial.ema_halflife_kimg": 0.0,
    "stage2.adversarial.generator_lr": 2e-3,
}


def measure_certainty(run_dir: Path) -> float:
    run = read_run(run_dir)
    shape = {"num_classes": 3, "per_class": 40, "latent_dim": run.latent_dim}
    images, labels = draw_stream(run.generator, 1.0, shape, seed=0)
    _, judge = read_classifiers(run_dir, "pool")[-1]
    with torch.no_grad():
        found = judge(torch.from_numpy(images)).softmax(dim=1).numpy()
    return float(found[np.arange(len(labels)), labels].mean())


@pytest.mark.slow
def test_classifiers_are_surer_of_what_is_drawn(tmp_path: Path) -> None:
    data = make_images()
    assert distill(data, quick(**PLAIN), tmp_path / "plain").finished
    surer = quick(**PLAIN, **{"matching.cross_entropy": 3.0})
    assert distill(data, surer, tmp_path / "surer", from_stage1=tmp_path / "plain").finished
    assert measure_certainty(tmp_path / "surer") > measure_certainty(tmp_path / "plain") + 0.02
    lines = [json.loads(line) for line in (tmp_path / "surer" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["cross_entropy_loss"] for line in lines if line["stage"] == "stage2"]
    assert losses and losses[-1] < losses[0]
    assert "cross_entropy_loss" not in (tmp_path / "plain" / "metrics.jsonl").read_text()


def test_runs_without_it_are_recorded_as_before(tmp_path: Path) -> None:
    plain, surer = (quick(**{"matching.cross_entropy": weight}) for weight in (0.0, 0.5))
    data = make_images()
    assert "cross_entropy" not in describe_run(plain, data).to_dict()["matching"]
    (tmp_path / "config.json").write_text(json.dumps(describe_run(surer, data).to_dict()))
    assert read_run_record(tmp_path).config.matching.cross_entropy == 0.5
    assert describe_run(plain, data).fingerprint() != describe_run(surer, data).fingerprint()
    with pytest.raises(BadValueError, match="cross_entropy is 1.0; it must be 0 with the loss 'none'"):
        MatchingConfig(loss="none", cross_entropy=1.0)
