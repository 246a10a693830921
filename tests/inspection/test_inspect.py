"""What `inspect` says about a bundle."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from cli_tools import dim
from tiny_bundle import build_tiny_bundle

from dim.runtime.bundle_format.accepted_file import write_accepted
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.bundle_format.fixed_latents import write_fixed_latents
from dim.runtime.errors import BundleError
from dim.runtime.inspection.inspect import inspect
from dim.runtime.storage.records import to_plain


def test_everything_in_a_bundle_is_described(tmp_path: Path) -> None:
    latents = write_fixed_latents(np.zeros((3, 7, 16), np.float32))
    extra = {"latents.npz": latents, "teacher.onnx": b"x", "generator.fp32.trt.sm89.engine": b"plan"}
    path = build_tiny_bundle(tmp_path / "a.dim", precisions=("fp32", "fp16"), extra_files=extra)
    manifest = load_manifest(path)
    described = to_plain(inspect(path))
    assert json.loads(json.dumps(described)) == described
    files = described.pop("files")
    assert [file["path"] for file in files] == sorted(manifest.files)
    assert described.pop("size_bytes") == sum(file["size_bytes"] for file in files)
    assert described == {
        "path": str(path),
        "name": "tiny",
        "content_id": manifest.content_id,
        "manifest_sha256": manifest.manifest_sha256,
        "format_version": 1,
        "sampling_version": 1,
        "created_by": "dim test",
        "licence": "CC0-1.0",
        "classes": ["zero", "one", "two"],
        "image": {"height": 8, "width": 8, "channels": 1},
        "latent_dim": 16,
        "latent_std": 1.0,
        "source": {
            "name": "tiny",
            "class_counts": [10, 20, 30],
            "mean": [0.5],
            "std": [0.25],
            "licence": "CC0-1.0",
            "note": "drawn from a random generator",
        },
        "precisions": ["fp32", "fp16"],
        "engines": ["generator.fp32.trt.sm89.engine"],
        "teacher": True,
        "fixed_latents": 7,
        "candidates": 0,
        "accepted": 0,
        "accuracy": [],
        "evaluation": {},
        "distill_config": {"preset": "none"},
    }


def test_a_plain_bundle_has_nothing_extra(tiny_bundle: Path) -> None:
    described = inspect(tiny_bundle)
    assert (described.engines, described.teacher, described.fixed_latents) == ((), False, 0)


def test_accepted_candidates_are_counted(tmp_path: Path) -> None:
    accepted = np.arange(24).reshape(3, 8) % 4 > 0
    path = build_tiny_bundle(tmp_path / "a.dim", extra_files={"accepted.bin": write_accepted(1, accepted)})
    described = inspect(path)
    assert (described.sampling_version, described.candidates, described.accepted) == (2, 8, 18)
    shown = dim("inspect", path, "--no-preview")
    assert "the 75% of 8 candidates per class that a classifier was surest of" in " ".join(shown.out.split())
    os.truncate(path / "accepted.bin", 10)
    with pytest.raises(BundleError, match="was altered"):
        inspect(path)


def test_a_bundle_may_be_named_or_left_out() -> None:
    assert inspect("mnist") == inspect() and inspect("mnist").image.height == 28


def test_altered_latents_are_not_described(tmp_path: Path) -> None:
    latents = write_fixed_latents(np.zeros((3, 7, 16), np.float32))
    path = build_tiny_bundle(tmp_path / "a.dim", extra_files={"latents.npz": latents})
    os.truncate(path / "latents.npz", 10)
    with pytest.raises(BundleError, match="was altered"):
        inspect(path)
