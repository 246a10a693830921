"""A run becomes a bundle: what is in it, what stays on a second export, and precisions added later."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_runs import (
    CLASSES,
    accept_int8,
    export_each_network_once,
    files_of,
    generator_config,
    make_generator,
    make_run,
    write_classifiers,
)
from PIL import Image
from tiny_bundle import build_tiny_bundle
from torch import nn

from dim.export.add_precisions import add_precisions
from dim.export.card import render_card
from dim.export.export_run import export_run
from dim.export.record import read_record
from dim.export.record_accuracy import record_accuracy
from dim.export.reuse import read_reusable
from dim.export.run_classifiers import Classifier, read_classifiers
from dim.export.run_files import read_run
from dim.runs.tensors import write_tensors
from dim.runtime.bundle import open_bundle
from dim.runtime.bundle_format.files import load_manifest, update_bundle
from dim.runtime.bundle_format.fixed_latents import read_fixed_latents
from dim.runtime.bundle_format.names import CANONICAL_ONNX
from dim.runtime.bundle_format.schema import FileRecord
from dim.runtime.engines.onnx_session import open_cpu_session
from dim.runtime.errors import BadValueError, BundleError, GraphError, OutputError, RunError
from dim.runtime.inspection.verify import verify


@pytest.fixture(autouse=True)
def quick_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    export_each_network_once(monkeypatch)


@pytest.mark.slow
def test_a_bundle_with_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept_int8(monkeypatch)
    run = make_run(tmp_path / "run", pool=("convnet3", "mlp"))
    write_classifiers(run, "teacher", generator_config(), ("convnet3",))
    latents = np.random.default_rng(0).standard_normal((len(CLASSES), 3, 16)).astype(np.float32)
    np.savez_compressed(run / "latents.npz", latents=latents)
    said: list[str] = []
    bundle = export_run(run, precisions=("int8", "fp16"), say=said.append)
    assert bundle == run / "little.dim"
    manifest = load_manifest(bundle)
    assert manifest.precisions == ("fp32", "fp16", "int8")
    assert set(manifest.files) == {
        "README.md",
        "export.json",
        "generator.fp16.onnx",
        "generator.fp32.onnx",
        "generator.int8.onnx",
        "latents.npz",
        "preview.png",
        "teacher.onnx",
    }
    assert manifest.classes == CLASSES
    assert manifest.licence == "CC0-1.0"
    assert dict(manifest.distill_config) == json.loads((run / "config.json").read_text())
    assert verify(bundle).ok
    assert np.array_equal(read_fixed_latents((bundle / "latents.npz").read_bytes(), manifest), latents)
    record = json.loads((bundle / "export.json").read_text())
    assert [entry["precision"] for entry in record["agreements"]] == ["fp32", "fp16", "int8"]
    assert record["int8_acceptance"]["pairs"] == 64
    assert any(line.startswith("fp32 against torch: at most ") for line in said)
    assert said[-1] == f"Bundle: {bundle}"
    with Image.open(bundle / "preview.png") as picture:
        assert picture.height == len(CLASSES) * 52 + 4 and picture.width > 12 * 52 + 4  # names stand left of the rows


def test_the_preview_is_drawn_by_the_exported_file(tmp_path: Path) -> None:
    bundle = export_run(make_run(tmp_path / "run"))
    with open_bundle(bundle, engine="onnxruntime-cpu", precision="fp32") as opened:
        first = opened.sample([2], [5])[0]
    side, gap = 4 * 12, 4  # images of 12 pixels are enlarged four times
    with Image.open(bundle / "preview.png") as picture:
        left = picture.width - (12 * (side + gap) + gap)
        pixels = np.asarray(picture)[:, left:, :3]
    top, begin = gap + 2 * (side + gap), gap + 5 * (side + gap)
    assert np.array_equal(pixels[top : top + side : 4, begin : begin + side : 4], first)


def test_two_folders_give_the_same_bytes(tmp_path: Path) -> None:
    bundles = [export_run(make_run(tmp_path / name), precisions=("fp16",)) for name in ("a", "b/c")]
    assert files_of(bundles[0]) == files_of(bundles[1])


@pytest.mark.slow
def test_teacher_gives_the_logits_of_torch(tmp_path: Path) -> None:
    # Its last map is 1x1.
    run = make_run(tmp_path / "run", image_px=8)
    write_classifiers(run, "teacher", generator_config(image_px=8), ("resnet10",))
    bundle = export_run(run)
    [(arch, teacher)] = read_classifiers(run, "teacher")
    assert arch == "resnet10"
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    found = open_cpu_session((bundle / "teacher.onnx").read_bytes()).run(None, {"images": images})[0]
    with torch.inference_mode():
        expected = teacher(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_a_second_export_keeps_accuracy_and_further_precisions(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    bundle = export_run(run, precisions=("fp16",))
    row = {"subject": "bundle", "accuracy_mean": 12.5, "accuracy_std": None, "seeds": [0], "ipc": 10, "mode": "fixed"}
    record_accuracy(bundle, [row])
    before = load_manifest(bundle)
    export_run(run)
    after = load_manifest(bundle)
    assert after.content_id == before.content_id
    assert after.accuracy == (row,)
    assert after.precisions == ("fp32", "fp16")
    assert "12.50" in (bundle / "README.md").read_text()
    assert [a["precision"] for a in json.loads((bundle / "export.json").read_text())["agreements"]] == ["fp32", "fp16"]


def test_engines_stay_while_their_onnx_file_does(tmp_path: Path) -> None:
    bundle = export_run(make_run(tmp_path / "run"), precisions=("fp16",))
    plans = {f"generator.{p}.rtx.sm86.{end}": b"{}" for p in ("fp32", "fp16") for end in ("engine", "engine.json")}
    manifest = update_bundle(bundle, add_files=plans)
    new = dict(manifest.files) | {"generator.fp16.onnx": FileRecord(sha256="0" * 64, size_bytes=1)}
    kept = read_reusable(bundle, manifest.content_id, new, print)
    assert sorted(kept.files) == [
        "generator.fp32.onnx",
        "generator.fp32.rtx.sm86.engine",
        "generator.fp32.rtx.sm86.engine.json",
    ]


def test_accuracy_measured_with_another_file_of_a_precision_is_dropped(tmp_path: Path) -> None:
    """The content id is that of the canonical file, so it does not tell."""
    bundle = export_run(make_run(tmp_path / "run"), precisions=("fp16",))
    rows = [{"engine_precision": precision, "accuracy_mean": 9.0} for precision in ("fp32", "fp16", None)]
    rows.append({"accuracy_mean": 9.0})
    record_accuracy(bundle, rows)
    manifest = load_manifest(bundle)
    assert read_reusable(bundle, manifest.content_id, manifest.files, print).accuracy == manifest.accuracy
    other = dict(manifest.files) | {"generator.fp16.onnx": FileRecord(sha256="0" * 64, size_bytes=1)}
    left = tuple(row for row in manifest.accuracy if row.get("engine_precision") != "fp16")
    assert read_reusable(bundle, manifest.content_id, other, print).accuracy == left
    assert add_precisions(bundle, ("fp16",)) == bundle and load_manifest(bundle).accuracy == manifest.accuracy
    smaller = onnx.load(bundle / "generator.fp16.onnx")
    smaller.doc_string = "from an earlier exporter"
    update_bundle(bundle, add_files={"generator.fp16.onnx": smaller.SerializeToString()})
    add_precisions(bundle, ("fp16",))
    assert load_manifest(bundle).accuracy == left


def test_a_bundle_of_other_weights_keeps_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    bundle = export_run(run, precisions=("fp16",))
    record_accuracy(bundle, [{"accuracy_mean": 1.0}])
    write_tensors(run, "generator.safetensors", make_generator(generator_config(), seed=1).state_dict())
    said: list[str] = []
    export_run(run, say=said.append)
    assert load_manifest(bundle).accuracy == ()
    assert load_manifest(bundle).precisions == ("fp32",)
    assert f"{bundle} drew other images: its accuracy rows and engines are not kept." in said


def test_a_damaged_bundle_is_replaced_and_gives_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    bundle = export_run(run)
    (bundle / "manifest.json").write_text("{}")
    said: list[str] = []
    export_run(run, say=said.append)
    assert verify(bundle).ok
    assert any(line.startswith("The bundle that is replaced is damaged, so nothing of it is kept: ") for line in said)


def test_name_licence_and_place_can_be_chosen(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    bundle = export_run(run, out=tmp_path / "elsewhere" / "x.dim", name="other", licence="MIT")
    assert bundle == tmp_path / "elsewhere" / "x.dim"
    assert (load_manifest(bundle).name, load_manifest(bundle).licence) == ("other", "MIT")
    assert sorted(os.listdir(run)) == ["config.json", "generator.safetensors"]
    message = f"{bundle} exists already: choose another --out or pass --overwrite."
    with pytest.raises(OutputError, match=f"^{message}$"):
        export_run(run, out=bundle)
    export_run(run, out=bundle, overwrite=True)
    assert load_manifest(bundle).name == "little"


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert (run.classes, run.latent_dim, run.latent_std, run.latents) == (CLASSES, 16, 1.0, None)
    assert not run.generator.training
    assert isinstance(Classifier(nn.Flatten(), [0.5], [0.5]), nn.Module)


def test_the_card_is_written_from_the_manifest(tmp_path: Path) -> None:
    bundle = export_run(make_run(tmp_path / "run"))
    card = (bundle / "README.md").read_text()
    manifest = load_manifest(bundle)
    assert card == render_card(manifest, read_record(bundle, manifest))


def test_precisions_are_added_to_a_bundle_from_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept_int8(monkeypatch)
    run = make_run(tmp_path / "run", pool=("mlp",))
    bundle = export_run(run)
    from_run = files_of(export_run(run, out=tmp_path / "whole.dim", precisions=("fp16", "int8")))
    before = load_manifest(bundle)
    assert add_precisions(bundle, ("fp32", "fp16")) == bundle
    add_precisions(bundle, ("int8",))
    after = load_manifest(bundle)
    assert after.content_id == before.content_id
    for name in ("generator.fp16.onnx", "generator.int8.onnx"):
        assert (bundle / name).read_bytes() == from_run[name]
    record = json.loads((bundle / "export.json").read_text())
    assert [(a["precision"], a["reference"]) for a in record["agreements"]] == [
        ("fp32", "torch"),
        ("fp16", "fp32"),
        ("int8", "fp32"),
    ]
    assert verify(bundle).ok


def test_int8_for_a_bundle_needs_its_own_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", pool=("mlp",))
    bundle = export_run(run, out=tmp_path / "far" / "x.dim")
    before = files_of(tmp_path)
    wish = "^int8 is judged by the classifiers of the run that a bundle came from, and "
    with pytest.raises(RunError, match=f"{wish}it is not there: {tmp_path}/far holds no run"):
        add_precisions(bundle, ("int8",))
    other = make_run(tmp_path / "other", pool=("mlp",), width=9)
    with pytest.raises(RunError, match=f"{wish}{other} is another run: export that run with --precision int8 instead."):
        add_precisions(bundle, ("int8",), run=other)
    with pytest.raises(BadValueError, match="There is no precision 'fp8': choose from fp32, fp16, int8."):
        add_precisions(bundle, ("fp8",))
    with pytest.raises(BundleError, match="There is no bundle at "):
        add_precisions(tmp_path / "nowhere", ("fp16",))
    shutil.rmtree(other)
    assert files_of(tmp_path) == before


def test_a_foreign_canonical_file_gets_no_precisions(tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "tiny.dim")
    before = files_of(bundle)
    altered = (bundle / CANONICAL_ONNX).read_bytes().replace(b"half_range", b"full_range")
    update_bundle(bundle, add_files={CANONICAL_ONNX: altered})
    with pytest.raises(GraphError, match="^The ONNX file does not scale to pixels as dim export writes it: export"):
        add_precisions(bundle, ("fp16",))
    assert files_of(bundle).keys() == before.keys()
