"""Runs, values and destinations that are refused, files that disagree: one sentence, and what was there stays there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from export_runs import CLASSES, canonical_onnx, export_each_network_once, files_of, make_run

from dim.export import agreement, publish, run_int8
from dim.export import export_run as module
from dim.export.add_precisions import add_precisions
from dim.export.agreement import check_diversity
from dim.export.drawing import draw_samples, draw_with_onnx
from dim.export.export_run import export_run
from dim.export.record_accuracy import record_accuracy
from dim.runs.tensors import read_tensors, write_tensors
from dim.runtime.engines.onnx_session import open_cpu_session
from dim.runtime.errors import BadValueError, DimError, OutputError, ParityError, RunError
from dim.runtime.trt.build import build_engines


@pytest.fixture(autouse=True)
def quick_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    export_each_network_once(monkeypatch)


@pytest.mark.parametrize("which", ["bundle", "folder around it"])
def test_a_read_only_bundle_is_told_before_anything_is_built(
    finished: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    bundle = next(finished.glob("*.dim"))
    closed = bundle if which == "bundle" else bundle.parent
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed)  # root may write everywhere
    monkeypatch.setattr(module, "generator_to_onnx", None)  # nothing is built
    for write in (
        lambda: export_run(finished),
        lambda: add_precisions(bundle, ("fp16",)),
        lambda: build_engines(bundle, format="rtx"),
    ):
        with pytest.raises(
            OutputError, match=f"^{bundle} cannot be written, because {closed} is read-only: make it wri"
        ):
            write()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its bundle, made once."""
    run = make_run(tmp_path_factory.mktemp("finished") / "run")
    export_run(run)
    return run


def copy_of(run: Path, place: Path) -> Path:
    shutil.copytree(run, place)
    return place


def damage(name: str) -> Callable[[Path], object]:
    """Ways to break a run."""

    def edit_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
        def edit(run: Path) -> None:
            config = json.loads((run / "config.json").read_text())
            change(config)
            (run / "config.json").write_text(json.dumps(config))

        return edit

    def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
        def edit(run: Path) -> None:
            tensors = read_tensors(run, "generator.safetensors")
            change(tensors)
            write_tensors(run, "generator.safetensors", tensors)

        return edit

    def flip_a_bit(run: Path) -> None:
        """In the last weight, which stays finite."""
        data = bytearray((run / "generator.safetensors").read_bytes())
        data[-4] ^= 1
        (run / "generator.safetensors").write_bytes(data)

    ways: dict[str, Callable[[Path], object]] = {
        "gone": shutil.rmtree,
        "no config": lambda run: (run / "config.json").unlink(),
        "unfinished": lambda run: (run / "generator.safetensors").unlink(),
        "config no JSON": lambda run: (run / "config.json").write_text("{"),
        "config without data": edit_config(lambda c: c.pop("data")),
        "config of a newer dim": edit_config(lambda c: c.update(format_version=2)),
        "config contradicts itself": edit_config(lambda c: c["generator"].update(channels=1)),
        "other width": edit_config(lambda c: c["generator"].update(width=16)),
        "unknown field": edit_config(lambda c: c["generator"].update(depth=16)),
        "impossible size": edit_config(lambda c: c["generator"].update(kind="paper")),
        "truncated weights": lambda run: os.truncate(run / "generator.safetensors", 5000),
        "a flipped bit": flip_a_bit,
        "overflow": edit_weights(lambda t: t["first.weight"].mul_(1e38)),
        "a weight is missing": edit_weights(lambda t: t.pop("last.bias")),
        "NaN": edit_weights(lambda t: t["last.weight"].view(-1)[:1].fill_(float("nan"))),
        "infinite": edit_weights(lambda t: t["first.bias"][:1].fill_(float("inf"))),
        "blank": edit_weights(lambda t: (t["last.weight"].zero_(), t["last.bias"].fill_(9.0))),
        "collapsed": edit_weights(lambda t: t["first.weight"].mul_(1e-6)),
        "latents of another shape": lambda run: np.savez(run / "latents.npz", latents=np.zeros((4, 2, 3), np.float32)),
        "latents no archive": lambda run: (run / "latents.npz").write_bytes(b"PK\x03\x04"),
        "half a teacher": lambda run: (run / "teacher.json").write_text("[]"),
    }
    return ways[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("gone", RunError, "There is no run at RUN: it does not exist; make one with  dim distill"),
        ("no config", RunError, "RUN holds no run: it has no config.json; make one with  dim distill"),
        ("unfinished", RunError, "The run RUN is not finished: go on with  dim distill --resume --out RUN"),
        ("config no JSON", RunError, "RUN/config.json is not UTF-8 JSON: "),
        (
            "config without data",
            RunError,
            "RUN/config.json lacks the field data: it was not written by this dim distill",
        ),
        (
            "config of a newer dim",
            RunError,
            "RUN/config.json has format version 2 and was made by a newer dim; this one reads version 1: run  pip",
        ),
        (
            "config contradicts itself",
            RunError,
            "RUN/config.json contradicts itself: its generator and its data",
        ),
        ("other width", RunError, "RUN/generator.safetensors does not fit the network of its run, so one of them was"),
        (
            "unknown field",
            RunError,
            "RUN/config.json has the unknown field generator.depth: it was not written by this dim",
        ),
        (
            "impossible size",
            RunError,
            "The network of RUN/generator.safetensors cannot be built from its description: ",
        ),
        ("truncated weights", RunError, "RUN/generator.safetensors cannot be read as safetensors "),
        ("a flipped bit", RunError, "RUN/generator.safetensors was altered: its tensors do not match the hash in it; "),
        ("overflow", ParityError, "The generator draws values that are not finite (NaN or infinite): its training"),
        ("a weight is missing", RunError, "RUN/generator.safetensors does not fit the network of its run"),
        ("NaN", RunError, "RUN/generator.safetensors holds values that are not finite, in last.weight: its training"),
        ("infinite", RunError, "RUN/generator.safetensors holds values that are not finite, in first.bias"),
        ("blank", ParityError, "100% of the generator's images are of one single colour: its training broke down"),
        ("collapsed", ParityError, "The class 'ant' collapsed: its images are on average "),
        ("latents of another shape", RunError, "RUN/latents.npz holds float32 (4, 2, 3); it must hold finite float32"),
        ("latents no archive", RunError, "RUN/latents.npz cannot be read: "),
        ("half a teacher", RunError, "RUN/teacher.safetensors is missing: the run is incomplete."),
    ],
)
def test_a_broken_run_is_one_sentence_and_leaves_the_old_bundle(
    tmp_path: Path, finished: Path, name: str, kind: type[DimError], message: str
) -> None:
    run = copy_of(finished, tmp_path / "run")
    out = (run / "little.dim").rename(tmp_path / "out.dim")
    before, listing = files_of(out), sorted(os.listdir(tmp_path))
    damage(name)(run)
    with pytest.raises(kind) as caught:
        export_run(run, out=out, overwrite=True)
    assert str(caught.value).startswith(message.replace("RUN", str(run)))
    assert "\n" not in str(caught.value)
    assert files_of(out) == before
    assert sorted(set(os.listdir(tmp_path)) | {"run"}) == listing


def test_int8_needs_the_classifiers_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    message = f"int8 is judged by the run's classifiers, and {run} has none \\(pool.safetensors\\): export without int8"
    with pytest.raises(RunError, match=f"^{message}"):
        export_run(run, precisions=("int8",))
    assert not (run / "little.dim").exists()


def test_int8_that_changes_classes_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_int8, "NUM_PAIRS", 64)
    monkeypatch.setattr("dim.export.run_int8.MIN_SAME_CLASS", 1.01)
    run = make_run(tmp_path / "run", pool=("mlp",))
    with pytest.raises(ParityError, match="^int8 changes too much: "):
        export_run(run, precisions=("int8",))
    assert set(os.listdir(run)) == {"config.json", "generator.safetensors", "pool.safetensors", "pool.json"}


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"precisions": ("fp8",)}, BadValueError, "There is no precision 'fp8': choose from fp32, fp16, int8."),
        ({"name": "a/b"}, BadValueError, "The bundle's name is 'a/b'; it must be a plain name of a folder."),
        ({"name": ".hidden"}, BadValueError, "The bundle's name is '.hidden'; it must be a plain name of a folder."),
    ],
)
def test_values_that_cannot_be(tmp_path: Path, arguments: dict[str, Any], kind: type[DimError], message: str) -> None:
    with pytest.raises(kind) as caught:
        export_run(make_run(tmp_path / "run"), **arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_a_destination_that_is_no_bundle_is_never_replaced(tmp_path: Path, what: str) -> None:
    run = make_run(tmp_path / "run")
    place = run / "little.dim"
    if what == "file":
        place.write_text("mine")
    elif what == "folder":
        place.mkdir()
        (place / "mine").write_text("mine")
    else:
        place.symlink_to(tmp_path)
    kind = "is a link" if what == "link" else "exists and is not a bundle"
    with pytest.raises(OutputError, match=f"^{place} {kind}, so it is not replaced: choose another --out.$"):
        export_run(run, overwrite=True)
    assert place.is_symlink() or place.is_file() or os.listdir(place) == ["mine"]


@pytest.mark.parametrize("step", ["update_bundle", "verify", "replace_folder", "draw_rows", "interrupt"])
def test_a_failure_at_any_step_leaves_nothing_behind(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    run = copy_of(finished, tmp_path / "run")
    record_accuracy(run / "little.dim", [{"accuracy_mean": 1.0}])
    before = files_of(run)

    def fail(*args: object, **kwargs: object) -> None:
        if step == "interrupt":
            raise KeyboardInterrupt
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publish, "verify" if step == "interrupt" else step, fail)
    expected: type[BaseException] = KeyboardInterrupt if step == "interrupt" else OutputError
    with pytest.raises(expected):
        export_run(run)
    assert files_of(run) == before
    assert set(os.listdir(run)) == {"config.json", "generator.safetensors", "little.dim"}


def test_a_bundle_that_fails_its_verification_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dim.runtime.engines.image_checks.MIN_STD_LEVELS", 1.0)
    monkeypatch.setattr(module, "check_diversity", lambda *args: None)
    run = make_run(tmp_path / "run")
    damage("collapsed")(run)
    message = (
        "^The new bundle fails its verification, so it was not published: generator.fp32.onnx, spread within a class"
    )
    with pytest.raises(ParityError, match=message):
        export_run(run)
    assert not (run / "little.dim").exists()


@pytest.mark.parametrize(
    ("equal", "message"),
    [
        (True, "draws different images for identical rows of one batch, up to 9 levels; nothing was published."),
        (False, "draws other images at batch 7 than at batch 64: 9 of 255 levels apart, at most 1 is allowed; nothing"),
    ],
)
def test_an_engine_that_mixes_up_rows_is_noticed(monkeypatch: pytest.MonkeyPatch, equal: bool, message: str) -> None:
    """TensorRT issue 4813, acted by a session that errs in the second row of some batches."""
    model = canonical_onnx()
    latents, labels = draw_samples(4, 16, 1.0, seed=0, at_least=64)
    expected = draw_with_onnx(model, latents, labels)
    session = open_cpu_session(model)

    def run(names: Any, inputs: dict[str, Any]) -> list[Any]:
        images = session.run(names, inputs)[0]
        if (inputs["latents"] == inputs["latents"][0]).all() == equal and len(images) == (64 if equal else 7):
            old = int(images[1, 0, 0, 0])
            images[1, 0, 0, 0] = old - 9 if old > 99 else old + 9
        return [images]

    monkeypatch.setattr(agreement, "open_cpu_session", lambda model: SimpleNamespace(run=run))
    with pytest.raises(ParityError) as caught:
        agreement.check_precision("fp32", model, latents, labels, expected, "torch")
    assert message in str(caught.value)


def test_one_class_that_collapsed_is_named() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3)).astype(np.uint8)
    labels = np.arange(40) % 4
    check_diversity(images, labels, CLASSES)
    images[labels == 2] = images[2]
    with pytest.raises(
        ParityError, match="^The class 'cat' collapsed: its images are on average 0 of 255 levels apart"
    ):
        check_diversity(images, labels, CLASSES)
