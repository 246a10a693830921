"""Small finished runs, written without training: random networks whose norms have seen a few batches."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dim.config import DistillConfig, StageConfig, to_dict
from dim.export import export_run, run_int8
from dim.export.graph.trace import generator_to_onnx
from dim.networks.batch_norm import ClassBatchNorm
from dim.networks.classifiers import build_classifier
from dim.networks.generator import generator_from_dict
from dim.runs.tensors import write_tensors

CLASSES = ("ant", "bee", "cat", "dog")


def generator_config(**changes: Any) -> dict[str, Any]:
    """What `generator_from_dict` takes, for 12x12 colour images of four classes."""
    config = {
        "kind": "resize",
        "latent_dim": 16,
        "width": 8,
        "max_width": 16,
        "conditioning": "input",
        "num_classes": len(CLASSES),
        "image_px": 12,
        "channels": 3,
    }
    return config | changes


def make_generator(config: dict[str, Any], seed: int = 0) -> nn.Module:
    """A random generator in evaluation mode, its norms off their initial values."""
    torch.manual_seed(seed)
    generator = generator_from_dict(config).train()
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            if module.affine:
                nn.init.normal_(module.weight, 1.0, 0.2)
                nn.init.normal_(module.bias, 0.0, 0.2)
        if isinstance(module, ClassBatchNorm):
            nn.init.normal_(module.gain.weight, 1.0, 0.2)
            nn.init.normal_(module.bias.weight, 0.0, 0.2)
    with torch.no_grad():
        for _ in range(3):
            generator(torch.randn(32, config["latent_dim"]), torch.randint(0, config["num_classes"], (32,)))
    return generator.eval()


@functools.cache
def canonical_onnx(**changes: Any) -> bytes:
    """The exported file of `make_generator(generator_config(**changes))`."""
    return generator_to_onnx(make_generator(generator_config(**changes)))


def run_config(generator: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A run's `config.json`."""
    channels = generator["channels"]
    stage = StageConfig(steps=1, batch_size=4)
    config = to_dict(DistillConfig(name="little", preset="tiny", stage1=stage, stage2=stage))
    del (
        config["filter"],
        config["matching"]["cross_entropy"],
        config["discriminator"]["patch_px"],
    )  # as runs without them write it
    return {
        **config,
        "format_version": 1,
        "dim_version": "0",
        "generator": config["generator"] | generator,
        "data": {
            "name": "little",
            "classes": list(CLASSES),
            "class_counts": [10, 11, 12, 13],
            "mean": [0.5] * channels,
            "std": [0.25] * channels,
            "image_px": generator["image_px"],
            "channels": channels,
            "licence": "CC0-1.0",
            "note": "drawn for a test",
            "fingerprint": "0" * 64,
            "split_seed": None,
        },
    } | changes


def write_classifiers(path: Path, kind: str, generator: dict[str, Any], archs: tuple[str, ...], seed: int = 1) -> None:
    """`<kind>.safetensors` and `<kind>.json` with untrained classifiers."""
    torch.manual_seed(seed)
    tensors, entries = {}, []
    for number, arch in enumerate(archs):
        sizes = generator["num_classes"], generator["channels"], generator["image_px"]
        network = build_classifier(arch, *sizes, width=8)
        tensors |= {f"{number}.{key}": value for key, value in network.state_dict().items()}
        shape = dict(zip(("num_classes", "channels", "image_px"), sizes, strict=True))
        norm = {"mean": [0.5] * sizes[1], "std": [0.25] * sizes[1]}
        entries.append({"arch": arch, "width": 8, **shape, **norm})
    write_tensors(path, f"{kind}.safetensors", tensors)
    (path / f"{kind}.json").write_text(json.dumps(entries))


def make_run(path: Path, *, seed: int = 0, pool: tuple[str, ...] = (), **changes: Any) -> Path:
    """A finished run; `changes` go into the generator's configuration."""
    config = generator_config(**changes)
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(run_config(config)))
    write_tensors(path, "generator.safetensors", make_generator(config, seed).state_dict())
    if pool:
        write_classifiers(path, "pool", config, pool)
    return path


_exported: dict[str, bytes] = {}


def export_each_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights give the same file (tested elsewhere), so torch's slow exporter runs once per network."""
    original = export_run.generator_to_onnx

    def export(network: nn.Module) -> bytes:
        state = {name: tensor.numpy().tobytes() for name, tensor in network.state_dict().items()}
        mirrored = getattr(network, "mirrored", False)  # no weight and no layer tells it
        key = hashlib.sha256(repr((repr(network), mirrored, sorted(state.items()))).encode()).hexdigest()
        if key not in _exported:
            _exported[key] = original(network)
        return _exported[key]

    monkeypatch.setattr(export_run, "generator_to_onnx", export)


def accept_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained classifiers change their minds about one pair in thirty; and 5,000 pairs take seconds."""
    monkeypatch.setattr("dim.export.run_int8.MIN_SAME_CLASS", 0.5)
    monkeypatch.setattr(run_int8, "NUM_PAIRS", 64)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
