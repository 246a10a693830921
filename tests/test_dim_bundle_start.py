"""Distilling on from a bundle: its generator comes back whole, and what does not fit is refused in a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_runs import CLASSES, generator_config, make_run
from onnx import numpy_helper
from small_images import make_images
from torch import Tensor

from dim.bundle_start import find_bundle, trainable_generator
from dim.checkpoint import read_tensors
from dim.config import DistillConfig, StartConfig
from dim.data import ImageSet
from dim.distill import distill
from dim.export.card import reproducing_command
from dim.export.export_run import export_run
from dim.generator import build_generator
from dim.presets import preset
from dim.runtime.bundle_files import load_manifest, update_bundle
from dim.runtime.errors import BadValueError, BundleError, DimError, RunError
from dim.torch_engine import OnnxGraph

SHAPE = {"latent_dim": 12, "width": 8, "max_width": 16}
QUICK: dict[str, Any] = {
    **{f"generator.{name}": value for name, value in SHAPE.items()},
    "discriminator.width": 8,
    "discriminator.max_width": 8,
    "stage1.steps": 6,
    "stage1.batch_size": 16,
    "stage2.steps": 0,
    "stage2.batch_size": 16,
    "deployment.latent_stds": (),
    "deployment.fixed_latents": 0,
    "checkpoint_steps": 2,
    "grid_steps": 100,
    "log_steps": 2,
    "start.discriminator_steps": 3,
}


def quick(**changes: Any) -> DistillConfig:
    return preset("tiny", data=make_images(), overrides={**QUICK, **changes})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the images that `quick` distils."""
    run = tmp_path_factory.mktemp("bundle") / "run"
    distill(quick(), make_images(), run)
    return export_run(run)


def drawn(path: Path, latents: Tensor, labels: Tensor) -> Tensor:
    """What a bundle's file draws, -1 to 1 in NCHW."""
    graph = OnnxGraph((path / "generator.fp32.onnx").read_bytes(), torch.device("cpu"))
    return graph({"latents": latents, "labels": labels}).float().permute(0, 3, 1, 2) / 127.5 - 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"conditioning": "norm"},
        {"conditioning": "norm", "mirrored": True},
        {"mirrored": True, "image_px": 9},
        {"channels": 1, "image_px": 28},
        {"image_px": 32, "width": 4, "max_width": 32, "conditioning": "norm"},
        {"latent_dim": 3},  # fewer than classes: their rows stay beside the latents
        {"latent_dim": 3, "conditioning": "norm"},
        {"latent_dim": 4},
    ],
    ids=str,
)
def test_the_network_draws_what_the_bundle_draws(changes: dict[str, Any], tmp_path: Path) -> None:
    path = export_run(make_run(tmp_path / "run", **changes))
    shape = generator_config(**changes)
    network = trainable_generator(find_bundle(path), shape, CLASSES, 1.0)
    latents, labels = torch.randn(64, shape["latent_dim"]), torch.arange(64) % len(CLASSES)
    with torch.no_grad():
        images, wanted = network(latents, labels), drawn(path, latents, labels)
        assert (images - wanted).abs().max() * 127.5 <= 1
        assert images.std() > 0.05
        # Trained, it normalises by the batch, which must be what its statistics were measured on, but for the sample.
        many, classes = torch.randn(1024, shape["latent_dim"]), torch.arange(1024) % len(CLASSES)
        apart = (network.train()(many, classes) - drawn(path, many, classes)).abs().mean()
    assert apart * 127.5 < 4
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_statistics_are_those_of_the_spread_that_is_trained_with(tmp_path: Path) -> None:
    path = export_run(make_run(tmp_path / "run"))
    latents, labels = torch.randn(1024, 16) * 3, torch.arange(1024) % len(CLASSES)
    apart = {}
    for std in (1.0, 3.0):
        network = trainable_generator(find_bundle(path), generator_config(), CLASSES, std).train()
        with torch.no_grad():
            apart[std] = float((network(latents, labels) - drawn(path, latents, labels)).abs().mean())
    assert apart[3.0] < apart[1.0] / 2


def test_the_generator_waits_until_the_discriminator_knows_something(bundle: Path, tmp_path: Path) -> None:
    def parts(steps: int) -> dict[str, Tensor]:
        run = tmp_path / str(steps)
        assert distill(quick(**{"stage1.steps": steps}), make_images(), run, from_bundle=bundle).finished
        return read_tensors(run / "generator.safetensors")

    untouched, waiting, moved = parts(0), parts(3), parts(4)
    for name in untouched:
        assert torch.equal(untouched[name], waiting[name]), name
    assert any(not torch.equal(untouched[name], moved[name]) for name in untouched if name.endswith("weight"))
    latents, labels = torch.randn(30, SHAPE["latent_dim"]), torch.arange(30) % 3
    config = load_manifest(bundle).distill_config
    network = build_generator(config["generator"])
    network.load_state_dict(untouched)
    with torch.no_grad():
        apart = (network.eval()(latents, labels) - drawn(bundle, latents, labels)).abs().mean() * 127.5
    assert apart < 2  # its statistics were measured anew


def test_an_interrupted_run_is_the_run_that_was_not(bundle: Path, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert distill(quick(), make_images(), whole, from_bundle=bundle).finished
    assert not distill(quick(), make_images(), run, from_bundle=bundle, time_limit_s=0).finished
    with pytest.raises(RunError, match=r"\(start differ\)"):
        distill(quick(), make_images(), run, resume=True)
    assert distill(quick(), make_images(), run, from_bundle=bundle, resume=True).finished
    assert (run / "generator.safetensors").read_bytes() == (whole / "generator.safetensors").read_bytes()
    with pytest.raises(RunError, match=r"has another stage 1 \(start differ\)"):
        distill(quick(), make_images(), tmp_path / "other", from_stage1=whole)
    assert not (tmp_path / "other").exists()
    assert distill(quick(), make_images(), tmp_path / "other", from_stage1=whole, from_bundle=bundle).finished
    assert (tmp_path / "other" / "generator.safetensors").read_bytes() == (whole / "generator.safetensors").read_bytes()


def test_the_card_says_what_it_began_with(bundle: Path, tmp_path: Path) -> None:
    run, content_id = tmp_path / "run", load_manifest(bundle).content_id
    distill(quick(**{"generator.mirrored": True}), make_images(), run, from_bundle=bundle)
    made = export_run(run)
    manifest = load_manifest(made)
    assert manifest.distill_config["start"] == {"bundle": content_id, "discriminator_steps": 3}
    command = str(reproducing_command(manifest.distill_config))
    assert " --from-bundle START.dim " in command and "--set start.discriminator_steps=3" in command
    assert "start.bundle" not in command
    card = (made / "README.md").read_text()
    assert command in card and f"`START.dim` is the bundle with the content id {content_id}." in card
    assert "START.dim" not in (bundle / "README.md").read_text()


def refused(bundle: Path, error: type[DimError], tmp_path: Path, data: ImageSet | None = None, **changes: Any) -> str:
    with pytest.raises(error) as caught:
        distill(quick(**changes), data or make_images(), tmp_path / "none", from_bundle=bundle)
    assert not (tmp_path / "none").exists()
    return str(caught.value).replace(str(bundle), "BUNDLE")


def test_a_bundle_that_does_not_fit(bundle: Path, tmp_path: Path) -> None:
    other = {"generator.width": 4, "generator.conditioning": "norm"}
    assert refused(bundle, BadValueError, tmp_path, **other) == (
        "BUNDLE has another generator than this run would have: "
        "give --set generator.width=8 --set generator.conditioning=input"
    )
    images = make_images()
    renamed = replace(images, classes=tuple(reversed(images.classes)))
    assert refused(bundle, BadValueError, tmp_path, renamed) == (
        "BUNDLE has other classes than these data, or in another order."
    )
    twice = np.repeat(np.repeat(images.train_images, 2, axis=1), 2, axis=2)
    larger = replace(images, train_images=twice, test_images=np.repeat(np.repeat(images.test_images, 2, 1), 2, 2))
    side = images.height
    assert refused(bundle, BadValueError, tmp_path, larger) == (
        f"BUNDLE draws images of {side}x{side}x{images.channels}, and these data have "
        f"{2 * side}x{2 * side}x{images.channels}: give --size and --channels."
    )
    with pytest.raises(BundleError):
        distill(quick(), images, tmp_path / "none", from_bundle=tmp_path / "missing.dim")
    with pytest.raises(BadValueError, match="start.bundle is what --from-bundle notes"):
        distill(replace(quick(), start=StartConfig(bundle="a")), images, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_generator_of_another_kind(tmp_path: Path) -> None:
    changes = {"kind": "paper", "image_px": 16}
    path = export_run(make_run(tmp_path / "run", **changes))
    with pytest.raises(BadValueError, match="has a generator of kind paper; a run can begin with one of resize."):
        trainable_generator(find_bundle(path), generator_config(**changes), CLASSES, 1.0)


@pytest.mark.parametrize("what, why", [("renamed", "blocks.0.conv2.weight"), ("darker", "what it draws differs by")])
def test_a_file_that_another_exporter_wrote(what: str, why: str, tmp_path: Path) -> None:
    path = export_run(make_run(tmp_path / "run"))
    model = onnx.load(path / "generator.fp32.onnx")
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    if what == "renamed":
        constants["blocks.0.conv2.weight"].name = "another"
        for node in model.graph.node:
            node.input[:] = ["another" if name == "blocks.0.conv2.weight" else name for name in node.input]
    else:
        constants["half_range"].CopyFrom(numpy_helper.from_array(np.array(100, np.float32), "half_range"))
    update_bundle(path, add_files={"generator.fp32.onnx": model.SerializeToString()})
    with pytest.raises(BundleError, match=rf"No run can begin with .*is not as this version writes it \(.*{why}"):
        trainable_generator(find_bundle(path), generator_config(), CLASSES, 1.0)
