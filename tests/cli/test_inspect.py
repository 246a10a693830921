"""`dim inspect` and `dim verify` on a tiny bundle."""

import errno
import json
import shutil
from pathlib import Path

import pytest
from cli_tools import dim, one_line
from PIL import Image

from dim.cli.inspect import columns_that_fit
from dim.runtime.bundle_format.locate import SHIPPED
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.inspection.verify import VerifyReport, VerifyRow


def test_inspect_shows_the_facts(tiny_bundle: Path) -> None:
    ran = dim("inspect", tiny_bundle)
    assert ran.code == 0
    assert ran.err == f"Bundle: {tiny_bundle}, as named.\n"
    lines = {line[:17].strip(): line[18:] for line in ran.out.splitlines() if not line.startswith(" ")}
    assert lines["name"] == "tiny"
    assert lines["classes"] == "3: zero, one, two"
    assert lines["images"] == "8 x 8, grey"
    assert lines["source"] == "tiny, 60 training images"
    assert lines["precisions"] == "fp32, fp16, int8"
    assert lines["use it"] == f"dim generate --bundle {tiny_bundle} --ipc 50 --out data/"
    assert "generator.fp16.onnx" not in ran.out and "generator.fp16.onnx" in dim("inspect", "--all", tiny_bundle).out


@pytest.mark.parametrize("columns", [80, 60])
def test_inspect_of_the_shipped_bundle_is_one_screen(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = dim("inspect", "mnist").out.splitlines()
    assert len(lines) <= 24
    assert lines[-2].endswith(" dim generate --bundle mnist --ipc 50 --out data/")
    assert sum("convnet3" in line for line in lines) == 5
    assert "\naccuracy          accuracies=" in dim("inspect", "mnist", "--all").out


def test_inspect_draws_only_in_a_terminal_and_as_a_file_when_asked(tiny_bundle: Path, tmp_path: Path) -> None:
    plain = dim("inspect", tiny_bundle)
    assert plain.out.endswith(" that was measured; --png grid.png draws a picture\n") and "Picture" not in plain.err
    ran = dim("inspect", tiny_bundle, "--png", tmp_path / "grid.png")
    assert ran.code == 0 and "\x1b" not in ran.out
    assert ran.err.splitlines()[-1] == f"Picture: {tmp_path}/grid.png."
    assert ran.out.endswith(" that was measured\n")
    with Image.open(tmp_path / "grid.png") as picture:
        width, height = picture.size
    assert (width, height) == (595, 3 * (40 + 5) + 5)  # three rows of 8 pixels, enlarged five times


@pytest.mark.parametrize(
    ("png", "sentence"),
    [
        ("", "--png got ., a folder: name a file, as in preview.png"),
        ("{}", "--png got {0}, a folder: name a file, as in {0}/preview.png"),
        (
            "{}/none/x.png",
            "--png got {0}/none/x.png, but the folder {0}/none does not exist: make it, or name another file.",
        ),
        (
            "{}/file/x.png",
            "--png got {0}/file/x.png, but the folder {0}/file is a file: make it, or name another file.",
        ),
        ("/dev/null", "--png got /dev/null, which is no plain file: name another."),
    ],
)
def test_a_preview_that_cannot_be_written_is_told_first(
    tiny_bundle: Path, tmp_path: Path, png: str, sentence: str
) -> None:
    (tmp_path / "file").write_text("x")
    ran = dim("inspect", tiny_bundle, "--png", png.format(tmp_path))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"Error: {sentence.format(tmp_path)}\n"


def test_a_full_disk_names_the_preview(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "temporary")

    monkeypatch.setattr("dim.runtime.inspection.preview.write_png", refuse)
    ran = dim("inspect", tiny_bundle, "--png", tmp_path / "x.png")
    expected = f"Error: {tmp_path}/x.png cannot be written: No space left on device; name a file elsewhere.\n"
    assert ran.code == 1 and ran.err.endswith(expected)


def test_inspect_json_draws_nothing_but_the_facts(tiny_bundle: Path) -> None:
    facts = json.loads(dim("inspect", tiny_bundle, "--json").out)
    assert facts["classes"] == ["zero", "one", "two"] and facts["image"] == {"height": 8, "width": 8, "channels": 1}


def test_the_default_bundle_is_said_first(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_bundle, tmp_path / "mine.dim")
    assert dim("inspect").err == f"Bundle: {SHIPPED}, the one that comes with dim.\n"
    assert dim("inspect", "mnist").err == f"Bundle: {SHIPPED}, mnist as it comes with dim.\n"
    monkeypatch.setenv("DIM_BUNDLE", str(tiny_bundle))
    assert dim("inspect").err == f"Bundle: {tiny_bundle}, from $DIM_BUNDLE.\n"


def test_a_narrow_terminal_gets_short_headings_and_no_deviations(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = dim("inspect", "mnist").out
    assert "images per class" in wide and "98.3 ± 0.1" in wide
    monkeypatch.setattr("dim.cli.inspect.is_narrow", lambda: True)
    narrow = dim("inspect", "mnist").out
    assert "98.3" in narrow and "±" not in narrow and "images per class" not in narrow


@pytest.mark.parametrize(("letters", "image_px", "columns"), [(80, 8, 7), (80, 28, 5), (80, 32, 4), (200, 28, 6)])
def test_as_many_columns_as_fit(letters: int, image_px: int, columns: int) -> None:
    assert columns_that_fit(letters, image_px) == columns


def test_verify_passes_a_good_bundle(tiny_bundle: Path) -> None:
    ran = dim("verify", tiny_bundle)
    assert ran.code == 0
    assert "FAILED" not in ran.out
    [line] = ran.out.splitlines()
    assert line.endswith(" checks passed.")
    every = dim("verify", tiny_bundle, "--all").out
    assert every.splitlines()[-1] == line and "identical rows" in every


def test_verify_fails_an_altered_one_with_exit_code_1(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_bundle, tmp_path / "broken.dim")
    path = broken / "generator.fp16.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    ran = dim("verify", broken)
    assert ran.code == 1
    assert ran.out.count("FAILED") == 1 and " ok " not in ran.out and ran.out.splitlines()[-1].startswith("1 of ")
    report = json.loads(dim("verify", broken, "--json").out)
    assert report["ok"] is False
    assert [row["subject"] for row in report["rows"] if not row["ok"]] == ["generator.fp16.onnx"]


def test_an_altered_manifest_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_bundle, tmp_path / "broken.dim")
    path = broken / "manifest.json"
    path.write_text(path.read_text().replace('"tiny"', '"tidy"', 1))
    for command in ("inspect", "verify"):
        assert str(broken) in one_line(dim(command, broken))
    assert str(broken) in one_line(dim("generate", "--ipc", 1, "--out", tmp_path / "set", "--bundle", broken))
    assert not (tmp_path / "set").exists()


def test_a_report_without_rows_is_ok(tiny_bundle: Path) -> None:
    from dim.runtime.bundle_format.files import load_manifest

    manifest: Manifest = load_manifest(tiny_bundle)
    row = VerifyRow(subject="x", check="y", found="1", allowed="0", ok=False)
    assert VerifyReport(path=tiny_bundle, manifest=manifest, rows=()).ok
    assert not VerifyReport(path=tiny_bundle, manifest=manifest, rows=(row,)).ok
