"""How `dim export` chooses its source and calls the library; the exports themselves are tested in test_export_*."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_tools import dim, one_line

from dim.cli.export import parse_batch
from dim.runtime.bundle_format.locate import SHIPPED
from dim.runtime.errors import BadValueError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> list[tuple[str, Path, dict[str, Any]]]:
    """Record the library's calls instead of making them."""
    made: list[tuple[str, Path, dict[str, Any]]] = []

    def record(name: str, result: Any) -> Any:
        def call(path: Path, *arguments: Any, **options: Any) -> Any:
            made.append((name, path, {"arguments": arguments, **options}))
            return result

        return call

    monkeypatch.setattr("dim.export.export_run.export_run", record("run", tiny_bundle))
    monkeypatch.setattr("dim.export.add_precisions.add_precisions", record("add", tiny_bundle))
    monkeypatch.setattr("dim.runtime.trt.build.build_engines", record("build", []))
    return made


def make_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "generator.safetensors").write_bytes(b"")
    return folder


def test_a_run_becomes_a_bundle(calls: list[Any], tmp_path: Path, tiny_bundle: Path) -> None:
    run = make_run(tmp_path / "run")
    ran = dim("export", run, "--precision", "fp32, fp16", "--name", "mine", "--licence", "MIT", "--overwrite")
    assert ran.code == 0, ran.err
    ((name, path, options),) = calls
    assert (name, path) == ("run", run)
    assert options["precisions"] == ("fp32", "fp16")
    assert (options["name"], options["licence"], options["overwrite"]) == ("mine", "MIT", True)
    assert ran.out.startswith(f"{tiny_bundle}: fp32, fp16, int8, ")
    assert ran.err == f"Run: {run}.\nNext:  dim generate --bundle {tiny_bundle} --ipc 50 --out data/\n"


def test_a_run_or_bundle_is_always_named(calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIM_BUNDLE", "mnist")
    assert one_line(dim("export")) == (
        "Name a run or a bundle, as in dim export runs/mnist; there is none under runs/: make one with dim distill"
    )
    make_run(tmp_path / "runs" / "old")
    make_run(tmp_path / "runs" / "new")
    assert one_line(dim("export", "--format", "rtx")) == (
        "Name a run or a bundle, as in dim export runs/new; under runs/ lie runs/new, runs/old"
    )
    assert calls == []


def test_a_bundle_is_compiled(calls: list[Any], tiny_bundle: Path) -> None:
    options = ("--format", "rtx", "--batch", "1:8:16", "--target", "sm89", "--precision", "fp16", "--json")
    ran = dim("export", tiny_bundle, *options)
    ((name, path, given),) = calls
    assert (name, path) == ("build", tiny_bundle)
    assert (given["format"], given["batch"], given["compute_capabilities"]) == ("rtx", (1, 8, 16), ["sm89"])
    assert json.loads(ran.out)["engines"] == [] and ran.err == ""


def test_a_run_is_exported_and_compiled(calls: list[Any], tmp_path: Path, tiny_bundle: Path) -> None:
    run = make_run(tmp_path / "run")
    assert dim("export", run, "--format", "rtx").code == 0
    assert [(name, path) for name, path, _ in calls] == [("run", run), ("build", tiny_bundle)]


def test_the_bundle_that_comes_with_dim_has_a_name(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert dim("export", "mnist", "--format", "rtx").code == 0
    assert [(name, path) for name, path, _ in calls] == [("build", SHIPPED)]


@pytest.mark.parametrize(("named", "printed"), [("plain", "./plain"), ("a b.dim", "'a b.dim'"), ("x/y", "x/y")])
def test_the_next_command_names_the_bundle_by_a_path(
    calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, named: str, printed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_bundle, tmp_path / named)
    ran = dim("export", named, "--format", "trt")
    assert ran.err == f"Next:  dim generate --bundle {printed} --ipc 50 --out data/\n"


def test_a_precision_is_added_to_a_bundle(calls: list[Any], tiny_bundle: Path) -> None:
    assert dim("export", tiny_bundle, "--precision", "fp16").code == 0
    ((name, path, options),) = calls
    assert (name, path, options["arguments"]) == ("add", tiny_bundle, (("fp16",),))


def test_what_cannot_be_is_one_line(calls: list[Any], tiny_bundle: Path, tmp_path: Path) -> None:
    assert one_line(dim("export", tiny_bundle)) == (
        f"{tiny_bundle} is a bundle already: say what to add by --precision, or --format trt or rtx."
    )
    assert one_line(dim("export", tiny_bundle, "--out", tmp_path / "x", "--precision", "fp16")) == (
        f"{tiny_bundle} is a bundle: --out, --name and --licence are for exporting a run."
    )
    assert one_line(dim("export", tmp_path / "nothing")) == (
        f"There is no run directory and no bundle at {tmp_path}/nothing: it does not exist."
    )
    assert one_line(dim("export", "--format", "gif")) == "There is no format 'gif'; there are onnx, trt, rtx."
    assert calls == []


def test_a_folder_that_is_neither_is_refused_by_the_library(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert str(tmp_path / "folder") in one_line(dim("export", tmp_path / "folder"))
    assert list((tmp_path / "folder").iterdir()) == []


def test_an_altered_bundle_is_not_touched(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_bundle, tmp_path / "broken.dim")
    (broken / "generator.fp32.onnx").write_bytes(b"x")
    assert "generator.fp32.onnx" in one_line(dim("export", broken, "--precision", "fp16"))
    assert (broken / "generator.fp32.onnx").read_bytes() == b"x"


def test_batches() -> None:
    assert parse_batch("1:256:4096") == (1, 256, 4096)
    for text in ("", "1:2", "a:b:c", "1:2:3:4", "1:-2:3"):
        with pytest.raises(BadValueError, match=r"--batch got .* as in 1:256:4096\.$"):
            parse_batch(text)
