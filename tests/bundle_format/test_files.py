"""Reading a bundle's files without trusting them; writing bundles that are never half-made."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import build_tiny_bundle

from dim.runtime.bundle_format import files as bundle_files
from dim.runtime.bundle_format.files import (
    check_file_hash,
    copy_bundle,
    list_unlisted_files,
    load_manifest,
    read_checked_file,
    update_bundle,
    write_bundle,
)
from dim.runtime.bundle_format.fixed_latents import read_fixed_latents, write_fixed_latents
from dim.runtime.bundle_format.manifest import create_manifest, parse_manifest
from dim.runtime.bundle_format.schema import check_path
from dim.runtime.errors import BundleError, OutputError
from dim.runtime.storage import atomic

ONNX = "generator.fp32.onnx"


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy.dim"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(bundle: Path) -> bytes:
    return read_checked_file(bundle, load_manifest(bundle), ONNX)


def test_reads_what_was_written(bundle: Path) -> None:
    manifest = load_manifest(bundle)
    for name in manifest.files:
        assert read_checked_file(bundle, manifest, name) == (bundle / name).read_bytes()
        check_file_hash(bundle, manifest, name)


@pytest.mark.parametrize("check", [read_checked_file, check_file_hash])
def test_an_altered_file_is_refused(bundle: Path, check: Callable[..., Any]) -> None:
    data = bytearray((bundle / ONNX).read_bytes())
    data[100] ^= 1
    (bundle / ONNX).write_bytes(data)
    with pytest.raises(BundleError, match="was altered: its SHA-256 is .* fetch the bundle again"):
        check(bundle, load_manifest(bundle), ONNX)


@pytest.mark.parametrize("check", [read_checked_file, check_file_hash])
def test_a_truncated_file_is_refused(bundle: Path, check: Callable[..., Any]) -> None:
    os.truncate(bundle / ONNX, 50)
    with pytest.raises(BundleError, match=r"was altered: it has 50 bytes, the manifest says 7,859"):
        check(bundle, load_manifest(bundle), ONNX)


def test_a_missing_file_is_refused(bundle: Path) -> None:
    (bundle / ONNX).unlink()
    with pytest.raises(BundleError, match="generator.fp32.onnx is missing: fetch the bundle again"):
        read(bundle)


def test_a_link_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / ONNX).rename(tmp_path / "outside")
    (bundle / ONNX).symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="is a link or lies behind one"):
        read(bundle)


def test_a_linked_folder_is_refused(tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "a.dim", extra_files={"sub/x.txt": b"hello"})
    manifest = load_manifest(bundle)
    assert read_checked_file(bundle, manifest, "sub/x.txt") == b"hello"
    (bundle / "sub").rename(tmp_path / "sub")
    (bundle / "sub").symlink_to(tmp_path / "sub")
    with pytest.raises(BundleError, match="cannot be read"):
        read_checked_file(bundle, manifest, "sub/x.txt")


def test_a_pipe_does_not_hang_the_reader(bundle: Path) -> None:
    (bundle / ONNX).unlink()
    os.mkfifo(bundle / ONNX)
    with pytest.raises(BundleError, match="is not a plain file"):
        read(bundle)


def test_a_folder_in_a_files_place_is_refused(bundle: Path) -> None:
    (bundle / ONNX).unlink()
    (bundle / ONNX).mkdir()
    with pytest.raises(BundleError, match="is not a plain file"):
        read(bundle)


def test_a_file_too_large_for_its_use_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match="has 7,859 bytes; at most 100 are read"):
        read_checked_file(bundle, load_manifest(bundle), ONNX, max_bytes=100)


def test_an_unlisted_name_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match="has no file ../secret"):
        read_checked_file(bundle, load_manifest(bundle), "../secret")


def test_what_is_no_bundle_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, found in (
        (tmp_path / "none", "it does not exist"),
        (tmp_path / "file", "it is a file"),
        (tmp_path, "the folder has no manifest.json"),
    ):
        with pytest.raises(BundleError, match=found):
            load_manifest(path)


def test_a_linked_manifest_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "manifest.json").rename(tmp_path / "m.json")
    (bundle / "manifest.json").symlink_to(tmp_path / "m.json")
    with pytest.raises(BundleError, match="is a link"):
        load_manifest(bundle)


def test_a_huge_manifest_is_refused_without_reading_it(bundle: Path) -> None:
    os.truncate(bundle / "manifest.json", 2**40)
    with pytest.raises(BundleError, match="at most 8,388,608 are read"):
        load_manifest(bundle)


def test_unlisted_files_are_named(bundle: Path) -> None:
    (bundle / "notes").mkdir()
    (bundle / "notes" / "a.txt").write_text("x")
    (bundle / "link").symlink_to("/etc")
    assert list_unlisted_files(bundle, load_manifest(bundle)) == ["link", "notes/a.txt"]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (build_tiny_bundle(tmp_path / name, seed=3) for name in ("a.dim", "b.dim"))
    assert contents(first) == contents(second)


def test_an_existing_bundle_is_replaced_only_when_asked(bundle: Path, tmp_path: Path) -> None:
    before = contents(bundle)
    second = replace(load_manifest(bundle).description, name="second")
    with pytest.raises(OutputError, match="exists already"):
        write_bundle(bundle, second, {ONNX: b"x"})
    assert contents(bundle) == before
    write_bundle(bundle, second, {ONNX: b"x"}, overwrite=True)
    assert load_manifest(bundle).name == "second" and set(contents(bundle)) == {ONNX, "manifest.json"}
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years")
    with pytest.raises(OutputError, match="is not a bundle, so it is not replaced"):
        write_bundle(other, second, {ONNX: b"x"}, overwrite=True)
    assert contents(other) == {"thesis.txt": b"years"}


@pytest.mark.parametrize("name", ["../evil", "/evil", "manifest.json", "a\\b"])
def test_bad_paths_are_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="must be relative"):
        build_tiny_bundle(tmp_path / "in" / "a.dim", extra_files={name: b"x"})
    assert list((tmp_path / "in").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_file_can_be_copied_into_a_bundle(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "plan").write_bytes(b"plan")
    before = load_manifest(bundle)
    updated = update_bundle(bundle, add_files={"generator.fp32.trt.x.engine": tmp_path / "plan"}, readme="# new\n")
    assert updated == load_manifest(bundle)
    assert updated.content_id == before.content_id and updated.manifest_sha256 != before.manifest_sha256
    assert read_checked_file(bundle, updated, "generator.fp32.trt.x.engine") == b"plan"
    assert read_checked_file(bundle, updated, "README.md") == b"# new\n"
    assert read(bundle)


def test_optimised_latents_change_the_identity(bundle: Path) -> None:
    before = load_manifest(bundle)
    latents = np.arange(3 * 2 * 16, dtype=np.float32).reshape(3, 2, 16)
    updated = update_bundle(bundle, add_files={"latents.npz": write_fixed_latents(latents)})
    assert updated.content_id != before.content_id
    assert np.array_equal(read_fixed_latents(read_checked_file(bundle, updated, "latents.npz"), updated), latents)


def test_measurements_replace_measurements(bundle: Path) -> None:
    update_bundle(bundle, accuracy=[{"mean": 1.0}])
    update_bundle(bundle, readme="x")
    assert load_manifest(bundle).accuracy == ({"mean": 1.0},)
    update_bundle(bundle, accuracy=[])
    assert load_manifest(bundle).accuracy == ()


def test_an_altered_bundle_is_not_updated(bundle: Path) -> None:
    os.truncate(bundle / ONNX, 5)
    before = contents(bundle)
    with pytest.raises(BundleError, match="was altered"):
        update_bundle(bundle, readme="x")
    assert contents(bundle) == before


def test_two_updates_at_once_do_not_lose_one(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = bundle_files.create_manifest, []

    def create_while_another_writes(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            update_bundle(bundle, accuracy=[{"from": "the other"}])
        return real(*arguments)

    monkeypatch.setattr(bundle_files, "create_manifest", create_while_another_writes)
    with pytest.raises(BundleError, match="was changed by another process meanwhile"):
        update_bundle(bundle, readme="mine")
    assert load_manifest(bundle).accuracy == ({"from": "the other"},)


class Killed(BaseException):
    """Stands for a power cut."""


@pytest.mark.parametrize("exchange", [True, False], ids=["renameat2", "two renames"])
@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), Killed()], ids=["full disk", "killed"])
def test_a_fault_at_any_step_leaves_the_old_bundle_or_the_new(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    steps = 0
    for step in range(100):
        folder = tmp_path / str(step)
        bundle = Path(shutil.copytree(tiny_bundle, folder / "b.dim"))
        before, taken = contents(bundle), [0]
        with monkeypatch.context() as patch:
            for name in ("fsync", "rename", "link", "mkdir"):
                patch.setattr(os, name, failing(getattr(os, name), taken, step, fault))
            try:
                update_bundle(bundle, readme="new", add_files={"generator.int8.onnx": b"y"})
            except (OutputError, Killed):
                steps += 1
        if contents(bundle) != before:
            assert (bundle / "README.md").read_text() == "new"
            assert all(read_checked_file(bundle, load_manifest(bundle), name) for name in load_manifest(bundle).files)
        assert [path.name for path in folder.iterdir()] == ["b.dim"]
        if taken[0] <= step:
            break
    # A link that fails is replaced by a copy, so not every fault is an error.
    assert step >= 12 and steps >= 5


def failing(real: Callable[..., Any], taken: list[int], step: int, fault: BaseException) -> Callable[..., Any]:
    """Let the call number `step` fail, counted over all the calls that share `taken`."""

    def call(*arguments: Any, **options: Any) -> Any:
        taken[0] += 1
        if taken[0] == step + 1:
            raise fault
        return real(*arguments, **options)

    return call


def test_a_read_only_place_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match="a.dim cannot be written: Permission denied"):
        build_tiny_bundle(tmp_path / "a.dim")


def test_a_copy_leaves_links_and_pipes_behind(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a.dim"
    shutil.copytree(tiny_bundle, source)
    (tmp_path / "secret").write_text("mine")
    (source / "notes").symlink_to(tmp_path / "secret")
    (source / "folder").symlink_to(tmp_path)
    os.mkfifo(source / "pipe")
    (source / "kept.txt").write_text("kept")
    monkeypatch.setattr(os, "link", lambda *args, **kwargs: (_ for _ in ()).throw(OSError(1, "no links here")))
    copy_bundle(source, tmp_path / "b.dim")
    left = {path.name for path in (tmp_path / "b.dim").iterdir()}
    assert left == {path.name for path in tiny_bundle.iterdir()} | {"kept.txt"}


@pytest.mark.parametrize("path", ["manifest.json/x", "MANIFEST.JSON/x", "manifest.json", "Manifest.JSON/a/b"])
def test_nothing_lies_below_the_manifest(path: str) -> None:
    with pytest.raises(BundleError, match="must be relative, with forward slashes, and stay inside"):
        check_path(path)


@pytest.mark.parametrize("version", ["1.0", "true", "[1]", '"1"', "null"])
def test_the_format_version_is_a_whole_number(tiny_bundle: Path, version: str) -> None:
    block = json.loads((tiny_bundle / "manifest.json").read_bytes())
    text = json.dumps(block).replace('"format_version": 1', f'"format_version": {version}')
    with pytest.raises(BundleError, match="format_version is .*; it must be 1"):
        parse_manifest(text.encode())


@pytest.mark.parametrize("name", ["generator.fp32.onnx", "manifest.json", "README.md"])
def test_a_pipe_in_a_bundle_is_refused_at_once(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    bundle = tmp_path / "a.dim"
    shutil.copytree(tiny_bundle, bundle)
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises(BundleError, match="is not a plain file"):
        check_file_hash(bundle, load_manifest(bundle), name)


def test_a_bundle_has_a_total_size(tiny_bundle: Path, tmp_path: Path) -> None:
    """Sparse files cost their maker nothing, and hashing them costs minutes."""
    manifest = load_manifest(tiny_bundle)
    record = replace(manifest.files[ONNX], size_bytes=4 * 2**30)
    with pytest.raises(BundleError, match="lists 12,884,9.* bytes of files; at most 8,589,934,592 are"):
        create_manifest(manifest.description, dict(manifest.files) | {f"sparse{number}": record for number in range(3)})


def test_a_swarm_of_unlisted_files_is_cut(bundle: Path) -> None:
    (bundle / "swarm").mkdir()
    for number in range(1500):
        (bundle / "swarm" / f"{number}").touch()
    assert len(list_unlisted_files(bundle, load_manifest(bundle))) == 1000
