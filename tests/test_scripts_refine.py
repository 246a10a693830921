"""`scripts/refine.py`: the fixed latents of a finished bundle, refined without its run."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from export_runs import CLASSES, export_each_network_once, make_run

from dim.data import load_data
from dim.export.card import model_card, record_accuracy
from dim.export.changes import passes_of
from dim.export.export_run import export_run
from dim.runtime.bundle import open_bundle
from dim.runtime.bundle_files import load_manifest, update_bundle
from dim.runtime.errors import BadValueError
from dim.runtime.fixed_latents import read_fixed_latents
from dim.runtime.verify import verify

SCRIPT = Path(__file__).parents[1] / "scripts" / "refine.py"
PASS = {"steps": 4, "width": 8, "trained": 1, "resnets": 0, "untrained": 2, "judges": 3}
REFINED_ONCE = {"agreements": [], "refined": [PASS]}


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module("refine")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images of the test runs' classes and size."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % len(CLASSES)
    images = rng.integers(0, 60 * (labels[:, None, None, None] + 1), (80, 12, 12, 3)).astype(np.uint8)
    np.savez(tmp_path / "little.npz", images=images, labels=labels, classes=np.array(CLASSES))
    return tmp_path / "little.npz"


def make_bundle(folder: Path, monkeypatch: pytest.MonkeyPatch, source: Path | None = None, count: int = 3) -> Path:
    """A bundle that was distilled from `source`, or from data that are nowhere."""
    export_each_network_once(monkeypatch)
    run = make_run(folder / "run")
    if source:
        config = json.loads((run / "config.json").read_text())
        config["data"]["fingerprint"] = load_data(str(source)).fingerprint()
        (run / "config.json").write_text(json.dumps(config))
    if count:
        latents = np.random.default_rng(0).standard_normal((len(CLASSES), count, 16)).astype(np.float32)
        np.savez_compressed(run / "latents.npz", latents=latents)
    return export_run(run)


def row(source: str, mode: str) -> dict[str, Any]:
    return {"source": source, "subject": source, "mode": mode, "ipc": 1, "arch": "mlp", "accuracy_mean": 50.0}


def test_it_moves_the_latents_of_small_sets_and_keeps_what_is_still_true(
    script: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "AGES", {"convnet3": (2, 4), "resnet10": (1, 3)})
    monkeypatch.setattr("dim.refinement.PREFIXES", (1, 2))
    bundle = make_bundle(tmp_path, monkeypatch, data)
    labels, indices = np.arange(4).repeat(3), np.tile(np.arange(3), 4)
    with open_bundle(bundle, engine="onnxruntime-cpu") as opened:
        latents, images = opened.latents(labels, indices), opened.sample(labels, indices)
    draw = script._network(bundle, load_manifest(bundle), torch.device("cpu"))
    drawn = draw(torch.from_numpy(latents), torch.from_numpy(labels)).permute(0, 2, 3, 1).numpy()
    assert np.abs((drawn + 1) * 127.5 - images).max() <= 0.51
    before = record_accuracy(bundle, [row(s, m) for s in ("real", "generated") for m in ("fixed", "stream")])
    latents = read_fixed_latents((bundle / "latents.npz").read_bytes(), before)
    after = script.refine(bundle, load_data(str(data)), script.Pass(steps=2, width=8))
    assert after == load_manifest(bundle)
    assert verify(bundle).ok
    moved = read_fixed_latents((bundle / "latents.npz").read_bytes(), after) != latents
    assert moved[:, :2].any(axis=2).all() and not moved[:, 2:].any()
    assert after.files["generator.fp32.onnx"] == before.files["generator.fp32.onnx"]
    assert after.content_id != before.content_id
    line = "python scripts/refine.py runs/little/little.dim --data little --steps 2 --width 8 --trained 2 --resnets 1"
    assert (
        f"{line} --untrained 8 --judges 3 --cross-entropy 0.2 --draws 2 --learners 8\n"
        in (bundle / "README.md").read_text()
    )
    kept = {(r["source"], r["mode"]) for r in after.accuracy}
    assert kept == {("real", "fixed"), ("real", "stream"), ("generated", "stream")}


def test_what_cannot_be_refined_is_said_in_a_sentence(
    script: ModuleType,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = make_bundle(tmp_path, monkeypatch, count=0)
    other = tmp_path / "other.npz"
    np.savez(other, images=np.zeros((80, 12, 12, 3), np.uint8), labels=np.arange(80) % 2, classes=np.array(["a", "b"]))
    with_latents = make_bundle(tmp_path / "second", monkeypatch)
    refined = make_bundle(tmp_path / "third", monkeypatch)
    update_bundle(refined, add_files={"export.json": json.dumps(REFINED_ONCE).encode()})
    (link := tmp_path / "link.dim").symlink_to(with_latents)
    for path, source, message in (
        (bundle, data, f"{bundle} has no fixed latents to refine."),
        (
            with_latents,
            other,
            f"{with_latents} was distilled from other classes or other sizes than these",
        ),
        (tmp_path / "lost.dim", data, "lost.dim"),
        (link, data, f"{link} is a link: name the folder that it points to."),
        (refined, data, f"The fixed latents of {refined} are refined already: --again goes on from them."),
    ):
        monkeypatch.setattr("sys.argv", ["refine.py", str(path), "--data", str(source)])
        assert script.main() == 1
        error = capsys.readouterr().err
        assert message in error, error
        assert error.count("\n") == 1
    for options, message in (
        (["--steps", "0"], "--steps is 0; it must be at least 1."),
        (["--untrained", "-1"], "--untrained is -1; it must be at least 0."),
        (["--cross-entropy", "inf"], "--cross-entropy is inf; it must be a finite number of at least 0."),
        (["--draws", "3"], "--draws is 3; it must be 1 or 2."),
        (["--draws", "0"], "--draws is 0; it must be at least 1."),
        (["--learners", "-1"], "--learners is -1; it must be at least 0."),
        (["--cross-entropy", "nan"], "--cross-entropy is nan; it must be a finite number of at least 0."),
        (
            ["--trained", "0", "--resnets", "0", "--untrained", "0"],
            "--trained, --resnets and --untrained are all 0; there must be a classifier to judge.",
        ),
    ):
        monkeypatch.setattr("sys.argv", ["refine.py", str(with_latents), "--data", str(data), *options])
        assert script.main() == 1
        assert capsys.readouterr().err == message + "\n"


def test_it_goes_on_from_refined_latents_when_asked_to(
    script: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "AGES", {"convnet3": (2,), "resnet10": (2,)})
    bundle = make_bundle(tmp_path, monkeypatch, data)
    update_bundle(bundle, add_files={"export.json": json.dumps(REFINED_ONCE).encode()})
    latents = (bundle / "latents.npz").read_bytes()
    asked: list[int] = []
    weights: dict[float, set[bool]] = {}
    loss = script.Refinement.step.__globals__["_Target"].loss

    def counted(target: Any, *arguments: Any) -> Any:
        asked.append(id(target))
        weights.setdefault(target.cross_entropy, set()).add(id(target.member) in trained)
        return loss(target, *arguments)

    monkeypatch.setattr("dim.refinement._Target.loss", counted)
    train, trained = script._train, set[int]()
    kept: list[Any] = []

    def noted(*arguments: Any) -> Any:
        kept.extend(members := train(*arguments))
        trained.update(map(id, members))
        return members

    monkeypatch.setattr(script, "_train", noted)
    options = ["--steps", "1", "--width", "8", "--trained", "1", "--untrained", "3", "--judges", "5", "--device", "cpu"]
    options += ["--cross-entropy", "0.1", "--draws", "1", "--learners", "2"]
    monkeypatch.setattr("sys.argv", ["refine.py", str(bundle), "--data", str(data), "--again", *options])
    assert script.main() == 0, capsys.readouterr().err
    assert len(asked) % 5 == 0 and len(set(asked[:5])) == 5  # a judge no more than once a step
    assert weights == {0.1: {True}, 0.0: {False}}
    assert (bundle / "latents.npz").read_bytes() != latents and verify(bundle).ok
    lines = [
        line for line in (bundle / "README.md").read_text().splitlines() if line.startswith("python scripts/refine")
    ]
    assert [line.split("little.dim ", 1)[1] for line in lines] == [
        "--data little --steps 4 --width 8 --trained 1 --resnets 0 --untrained 2 --judges 3 --cross-entropy 0.0"
        " --draws 1 --learners 0",
        "--data little --steps 1 --width 8 --trained 1 --resnets 1 --untrained 3 --judges 5 --cross-entropy 0.1"
        " --draws 1 --learners 2 --again",
    ]


def test_a_pass_over_latents_that_the_run_refined_says_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = load_manifest(make_bundle(tmp_path, monkeypatch))
    noted = [PASS, "x", PASS | {"width": -8}, PASS | {"steps": 0}, PASS | {"judges": "3"}, {"steps": 4}]
    noted += [PASS | {"cross_entropy": value} for value in (-0.1, math.nan, math.inf, "0.2", None)]
    noted += [PASS | {"draws": 0}, PASS | {"draws": 3}, PASS | {"learners": -1}]
    first = {"cross_entropy": 1.0, "draws": 1, "learners": 0}
    assert passes_of({"refined": [PASS | {"cross_entropy": 1}]}) == [PASS | first]
    for steps, ending in ((0, "--learners 0\n"), (3, "--learners 0 --again\n")):
        config = {**manifest.distill_config, "deployment": {"refine_steps": steps}}
        card = model_card(replace(manifest, distill_config=config), {"agreements": [], "refined": noted})
        (line,) = (line for line in card.splitlines(keepends=True) if "scripts/refine.py" in line)
        assert "--data little --steps 4 --width 8 " in line and line.endswith(ending)


def test_every_pass_has_judges_and_batches_of_its_own(
    script: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "AGES", {"convnet3": (2,), "resnet10": (2,)})
    judges, seeds = script._judges, []

    def noted(*arguments: Any) -> Any:
        seeds.append(arguments[-1])
        return judges(*arguments)

    def refinement(*arguments: Any, seed: int, **how: Any) -> Any:
        seeds.append(seed)
        return real(*arguments, seed=seed, **how)

    real = script.Refinement
    monkeypatch.setattr(script, "_judges", noted)
    monkeypatch.setattr(script, "Refinement", refinement)
    bundle, images = make_bundle(tmp_path, monkeypatch, data), load_data(str(data))
    for again in (False, True):
        script.refine(bundle, images, script.Pass(steps=1, width=8, untrained=1), again=again)
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    training = script._training({}, images, torch.device("cpu"))
    trained = []
    for batches in (1, 1, 2):
        member = script._member(images, torch.device("cpu"), "convnet3", 8, 0)
        trained.append(torch.cat([p.flatten() for p in script._train(member, training, "", batches)[0].parameters()]))
    assert torch.equal(trained[0], trained[1]) and not torch.equal(trained[0], trained[2])


def test_a_bundle_that_changes_meanwhile_is_left_alone(
    script: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path, monkeypatch, data)
    monkeypatch.setattr(script, "AGES", {"convnet3": (2,), "resnet10": (2,)})
    steps = script.Refinement.step

    def step_and_record(refinement: Any, index: int) -> Any:
        record_accuracy(bundle, [row("generated", "stream")])
        return steps(refinement, index)

    monkeypatch.setattr(script.Refinement, "step", step_and_record)
    with pytest.raises(BadValueError, match="was changed by another process meanwhile"):
        script.refine(bundle, load_data(str(data)), script.Pass(steps=1, width=8))
    assert len(load_manifest(bundle).accuracy) == 1
