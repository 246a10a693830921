"""`scripts/mirror.py`: a finished bundle whose generator mirrors from then on, without its run."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from export_runs import CLASSES, export_each_network_once, generator_config, make_run

from dim.export.card import record_accuracy
from dim.export.export_run import export_run
from dim.export.parity import draw_with_onnx
from dim.runtime.bundle_files import load_manifest, update_bundle
from dim.runtime.manifest import Manifest
from dim.runtime.verify import verify

SCRIPT = Path(__file__).parents[1] / "scripts" / "mirror.py"
MIRRORED = {"steps": 5, "adversarial": {"augment": "flip_crop"}}
PASS = {"steps": 4, "width": 8, "trained": 1, "resnets": 0, "untrained": 2, "judges": 3}


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module("mirror")


def make_bundle(
    folder: Path, monkeypatch: pytest.MonkeyPatch, precisions: tuple[str, ...] = ("fp32",), **config: Any
) -> Path:
    """A bundle of a run whose discriminator was shown mirrored images, unless `config` says otherwise."""
    export_each_network_once(monkeypatch)
    run = make_run(folder / "run")
    values = json.loads((run / "config.json").read_text())
    values |= {"stage1": MIRRORED, "stage2": MIRRORED} | config
    (run / "config.json").write_text(json.dumps(values))
    latents = np.random.default_rng(0).standard_normal((len(CLASSES), 3, 16)).astype(np.float32)
    np.savez_compressed(run / "latents.npz", latents=latents)
    return export_run(run, precisions=precisions)


def row(source: str) -> dict[str, Any]:
    return {"source": source, "subject": source, "mode": "stream", "ipc": 1, "arch": "mlp", "accuracy_mean": 50.0}


def drawn(path: Path, precision: str, latents: Any, labels: Any) -> Any:
    return draw_with_onnx((path / f"generator.{precision}.onnx").read_bytes(), latents, labels)


def test_images_whose_last_latent_is_positive_are_mirrored_and_the_others_are_as_they_were(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path, monkeypatch, ("fp32", "fp16"))
    record_accuracy(bundle, [row(source) for source in ("real", "bundle", "whole", "real-bytes")])
    before, latents_file = load_manifest(bundle), (bundle / "latents.npz").read_bytes()
    latents = np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)
    labels = np.arange(40) % len(CLASSES)
    was = {precision: drawn(bundle, precision, latents, labels) for precision in ("fp32", "fp16")}
    after: Manifest = script.mirror_bundle(bundle)
    assert after == load_manifest(bundle)
    assert verify(bundle).ok
    turned = latents[:, -1] > 0
    assert 5 < turned.sum() < 35
    for precision, images in was.items():
        now = drawn(bundle, precision, latents, labels)
        assert (now[~turned] == images[~turned]).all() and (now[turned] == images[turned][:, :, ::-1]).all(), precision
        assert (now[turned] != images[turned]).any()
    assert after.content_id != before.content_id
    assert (bundle / "latents.npz").read_bytes() == latents_file
    assert [r["source"] for r in after.accuracy] == ["real", "whole"]
    assert dict(after.distill_config) == dict(before.distill_config)
    agreements = json.loads((bundle / "export.json").read_text())["agreements"]
    assert [(a["precision"], a["reference"]) for a in agreements] == [
        ("fp32", "torch, before it mirrored"),
        ("fp16", "fp32"),
    ]
    assert "| fp32 | torch, before it mirrored |" in (bundle / "README.md").read_text()


@pytest.mark.parametrize("passes", [0, 1, 2])
def test_the_card_says_in_which_order_a_bundle_was_changed(
    passes: int, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path, monkeypatch)
    record = json.loads((bundle / "export.json").read_text())
    changed = record | {"refined": [PASS] * passes} if passes else record
    update_bundle(bundle, add_files={"export.json": json.dumps(changed).encode()})
    script.mirror_bundle(bundle)
    record = json.loads((bundle / "export.json").read_text())
    update_bundle(bundle, add_files={"export.json": json.dumps(record | {"refined": [PASS] * 2}).encode()})
    record_accuracy(bundle, [])
    lines = (bundle / "README.md").read_text().splitlines()
    scripts = [line.split()[1] for line in lines if line.startswith("python scripts/")]
    assert scripts == ["scripts/refine.py"] * passes + ["scripts/mirror.py"] + ["scripts/refine.py"] * (2 - passes)


def test_what_a_stranger_noted_is_not_taken_for_a_pass(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path, monkeypatch)
    record = json.loads((bundle / "export.json").read_text())

    def noted(**values: Any) -> list[str]:
        update_bundle(bundle, add_files={"export.json": json.dumps(record | values).encode()})
        record_accuracy(bundle, [])
        lines = (bundle / "README.md").read_text().splitlines()
        return [line.split()[1] for line in lines if line.startswith("python scripts/")]

    refine, mirror = "scripts/refine.py", "scripts/mirror.py"
    assert noted(refined=[PASS, {"steps": "x"}], mirrored_after=2) == [refine, mirror]
    assert noted(refined=[PASS], mirrored_after=-3) == [mirror, refine]
    assert noted(refined=5, mirrored_after=True) == noted(mirrored_after="1") == noted(mirrored_after=None) == []
    noted(refined=[PASS, {"steps": "x"}])
    script.mirror_bundle(bundle)
    assert json.loads((bundle / "export.json").read_text())["mirrored_after"] == 1


def test_what_is_not_mirrored_is_said_in_a_sentence(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bundle(name: str, **config: Any) -> Path:
        return make_bundle(tmp_path / name, monkeypatch, **config)

    mirrored = bundle("mirrored")
    script.mirror_bundle(mirrored)
    shown = "was not distilled by a discriminator that was shown mirrored images"
    never = {"steps": 5, "adversarial": {"augment": "crop"}}
    compiled = bundle("compiled")
    name = "generator.fp32.tensorrt-rtx.sm90.engine"
    update_bundle(compiled, add_files={name: b"engine"})
    quantised = bundle("quantised")
    update_bundle(quantised, add_files={"generator.int8.onnx": (quantised / "generator.fp32.onnx").read_bytes()})
    strength = {"steps": 5, "adversarial": {"augment": "flip=0.1_crop"}}
    (link := tmp_path / "link.dim").symlink_to(mirrored)
    for path, message in (
        (mirrored, f"{mirrored} mirrors already."),
        (bundle("never", stage1=never), shown),
        (bundle("at-first", stage2=never), shown),
        (bundle("seldom", stage1=strength), shown),
        (bundle("odd", generator=generator_config(), stage1=[], stage2="x"), shown),
        (quantised, f"{quantised} holds generator.int8.onnx, which would go on drawing what it drew: mirror a bundle"),
        (bundle("untrained", stage1={"steps": 0}, stage2={"steps": 0}), shown),
        (compiled, f"{compiled} holds {name}, which would go on drawing what it drew: mirror a bundle"),
        (tmp_path / "lost.dim", "lost.dim"),
        (link, f"{link} is a link: name the folder that it points to."),
    ):
        before = {p: p.read_bytes() for p in path.glob("*")}
        monkeypatch.setattr("sys.argv", ["mirror.py", str(path)])
        assert script.main() == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
        assert {p: p.read_bytes() for p in path.glob("*")} == before
    strength["adversarial"] = {"augment": "flip=0.5_crop"}
    only_stage1 = bundle("stage1", stage1=strength, stage2={"steps": 0, "adversarial": {"augment": ""}})
    monkeypatch.setattr("sys.argv", ["mirror.py", str(only_stage1)])
    assert script.main() == 0
    assert load_manifest(only_stage1).content_id in capsys.readouterr().out


def test_a_file_that_would_draw_something_else_is_not_taken(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path, monkeypatch)
    before = {p: p.read_bytes() for p in bundle.glob("*")}
    monkeypatch.setattr(script, "mirror", lambda model: None)
    monkeypatch.setattr("sys.argv", ["mirror.py", str(bundle)])
    assert script.main() == 1
    error = capsys.readouterr().err
    assert "fp32, mirrored" in error and error.count("\n") == 1, error
    assert {p: p.read_bytes() for p in bundle.glob("*")} == before


def test_a_bundle_that_changes_meanwhile_is_left_alone(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path, monkeypatch)

    check = script.check_graph

    def other_process(*arguments: Any) -> Any:
        record_accuracy(bundle, [row("real")])
        return check(*arguments)

    monkeypatch.setattr(script, "check_graph", other_process)
    monkeypatch.setattr("sys.argv", ["mirror.py", str(bundle)])
    assert script.main() == 1
    assert "was changed by another process meanwhile" in capsys.readouterr().err
    assert len(load_manifest(bundle).accuracy) == 1

    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "mirror_bundle", interrupt)
    assert script.main() == 130
    assert capsys.readouterr().err == f"Stopped; {bundle} is as it was.\n"
