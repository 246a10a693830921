"""Distillation: what a run leaves, equal seeds, every size, and stages that are left out."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from quick_runs import QUICK, Stop, quick, same, stop_at, weights
from set_tools import generate
from small_images import make_images

from dim.config import (
    to_dict,
)
from dim.distillation.adversarial import AdversarialTraining
from dim.distillation.distill import distill
from dim.execution.device import choose_device
from dim.export.export_run import export_run
from dim.presets import preset
from dim.runs.tensors import read_tensors
from dim.runtime.bundle import Bundle
from dim.runtime.errors import BadValueError, DeviceError, RunError
from dim.runtime.inspection.verify import verify


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


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(undisturbed: Path, tmp_path: Path) -> None:
    distill(make_images(), quick(), tmp_path / "again")
    distill(make_images(), quick(seed=1), tmp_path / "other")
    assert same(weights(undisturbed), weights(tmp_path / "again"))
    assert not same(weights(undisturbed), weights(tmp_path / "other"))


def test_a_generator_that_mirrors_is_told_in_the_record_and_goes_on(tmp_path: Path) -> None:
    config = quick(**{"generator.mirrored": True, "stage1.steps": 4, "stage2.steps": 2})
    with pytest.raises(Stop):
        distill(make_images(), config, tmp_path / "run", progress=stop_at("stage1", 3))
    assert distill(make_images(), config, tmp_path / "run", resume=True).finished
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["generator"]["mirrored"] is True
    with pytest.raises(RunError, match=r"another configuration \(generator differ\)"):
        distill(make_images(), quick(**{"stage1.steps": 4, "stage2.steps": 2}), tmp_path / "run", resume=True)


@pytest.mark.slow
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
    assert same(weights(run_dir), read_tensors(run_dir, "generator-stage1.safetensors"))
    assert not (run_dir / "pool.json").exists()


@pytest.mark.slow
def test_colour_unbalanced_and_many_classes(tmp_path: Path) -> None:
    data = make_images(num_classes=30, per_class=3, image_px=12, channels=3)
    keep = [i for i, label in enumerate(data.train_labels) if label != 7 or i % 3 == 0]
    data = replace(data, train_images=data.train_images[keep], train_labels=data.train_labels[keep])
    config = preset("tiny", data=data, overrides={**QUICK, "generator.conditioning": "norm"})
    assert distill(data, config, tmp_path / "run").finished


@pytest.mark.slow
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
        partialmethod(AdversarialTraining.copy_ema_generator, batches=1),
    )
    monkeypatch.setattr("dim.distillation.adversarial.STATISTICS_BATCH_SIZE", 8)
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


@pytest.mark.slow
def test_all_that_best_does_ends_in_a_bundle_that_holds(tmp_path: Path) -> None:
    """As small as can be, with every ingredient: ages, spreads, refining by learners, mirroring, filter, teacher."""
    data = replace(make_images(num_classes=4, per_class=20, image_px=16, channels=3), name="cifar-bars")
    names = ("generator.width", "generator.max_width", "discriminator.width", "discriminator.max_width", "pool.width")
    sizes = {name: QUICK[name] for name in (*names, "stage1.steps", "stage2.steps", "deployment.candidates")}
    sizes |= {"stage1.batch_size": 16, "stage2.batch_size": 16, "pool.batch_size": 16, "pool.ages": (1, 2, 3, 4)}
    sizes |= {"deployment.fixed_latents": 12, "deployment.refine_steps": 2, "log_steps": 2, "deployment.candidates": 20}
    sizes["filter.candidates"] = 64
    teacher = {"deployment.teacher": "convnet3", "deployment.teacher_steps": 2, "deployment.teacher_width": 8}
    config = preset("best", data=data, overrides={**sizes, **teacher})
    plain = to_dict(preset("best", data=data))
    assert config.generator.mirrored and len(config.pool.architectures) == 2
    assert {**to_dict(config)["deployment"], **plain["deployment"]} == plain["deployment"]
    with pytest.raises(Stop):
        distill(data, config, tmp_path / "run", progress=stop_at("refining", 1))
    assert distill(data, config, tmp_path / "run", resume=True).finished
    pool = json.loads((tmp_path / "run" / "pool.json").read_text())
    assert len(pool) == 2 * 4
    bundle = export_run(tmp_path / "run", precisions=("fp32", "fp16"))
    assert verify(bundle).ok
    with Bundle(bundle) as opened:
        assert {"teacher.onnx", "accepted.bin"} <= set(opened.manifest.files)
        latents = opened.latents([0, 3], [0, 11])
        drawn, mirrored = (
            opened.engine.run(
                np.concatenate([latents[:, :-1], np.full((2, 1), last, np.float32)], axis=1), np.array([0, 3])
            )
            for last in (-1e-6, 1e-6)
        )
        assert np.abs(drawn[:, :, ::-1].astype(int) - mirrored).max() <= 1 < np.abs(drawn.astype(int) - mirrored).max()
        assert generate(opened, tmp_path / "set", counts=(13,) * 4, format="npz", soft_labels=True).complete


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(BadValueError, match="choose auto, cpu or gpu"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="torch sees no CUDA GPU here"):
            choose_device("gpu")


@pytest.mark.slow
def test_every_part_reports_when_it_begins_and_when_it_ends(tmp_path: Path) -> None:
    reports: dict[str, list[tuple[float, float | None]]] = {}

    def note(what: str, done: float, total: float | None, text: str, /) -> None:
        reports.setdefault(what, []).append((done, total))

    assert distill(make_images(), quick(**{"filter.candidates": 8}), tmp_path / "run", progress=note).finished
    assert list(reports) == [
        *("stage1", "pool", "stage2", "latent std", "herding", "refining", "certainty", "report"),
    ]
    assert all(told[0][0] == 0 and told[-1][0] == told[-1][1] for told in reports.values())
