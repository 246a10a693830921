"""`dim generate` as users call it: sizes, formats, refusals, resuming."""

import hashlib
import io
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from cli_tools import dim, one_line
from tiny_bundle import build_tiny_bundle

from dim.runtime.engines.base import EngineOptions
from dim.runtime.gpu.driver import Driver
from dim.runtime.sets.generate import GenerateSummary
from dim.runtime.sets.request import SetRequest


def contents(folder: Path) -> dict[str, str]:
    """Hash every file of a set by its name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_set_of_class_folders(tiny_bundle: Path, tmp_path: Path) -> None:
    ran = dim("generate", "--ipc", 4, "--out", tmp_path / "set", "--bundle", tiny_bundle)
    assert ran.code == 0
    assert ran.out.splitlines()[0] == f"{tmp_path}/set: 12 images as imagefolder, complete."
    assert ran.err.splitlines()[0] == f"Bundle: {tiny_bundle}, as named."
    assert (
        sorted(path.parent.name for path in (tmp_path / "set").rglob("*.png"))
        == ["one"] * 4 + ["two"] * 4 + ["zero"] * 4
    )


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        (["--ratio", 0.1], [1, 2, 3]),
        (["--total", 12], [2, 4, 6]),
        (["--per-class", "two=3,zero=1"], [1, 0, 3]),
        (["--ipc", 2, "--classes", "one"], [0, 2, 0]),
    ],
)
def test_sizes(tiny_bundle: Path, tmp_path: Path, size: list[object], counts: list[int]) -> None:
    ran = dim("generate", *size, "--format", "npz", "--out", tmp_path / "set", "--bundle", tiny_bundle, "--json")
    assert json.loads(ran.out)["images"] == sum(counts)
    (path,) = (tmp_path / "set").glob("*.npz")
    labels = np.load(path, allow_pickle=False)["labels"]
    assert np.bincount(labels, minlength=3).tolist() == counts


def test_start_continues_another_set(tiny_bundle: Path, tmp_path: Path) -> None:
    for out, arguments in (("whole", ["--ipc", 3]), ("rest", ["--ipc", 2, "--start", 1])):
        assert dim("generate", *arguments, "--out", tmp_path / out, "--bundle", tiny_bundle).code == 0
    whole, rest = contents(tmp_path / "whole"), contents(tmp_path / "rest")
    images = {name: digest for name, digest in rest.items() if name.endswith(".png")}
    assert len(images) == 6 and images.items() <= whole.items()


def test_the_same_command_again_changes_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ["generate", "--ipc", 2, "--out", tmp_path / "set", "--bundle", tiny_bundle]
    dim(*arguments)
    before = contents(tmp_path / "set")
    assert dim(*arguments).code == 0
    assert contents(tmp_path / "set") == before


def test_two_shards_make_the_set_of_one(tiny_bundle: Path, tmp_path: Path) -> None:
    common = ["--ipc", 60, "--bundle", tiny_bundle, "--out"]
    dim("generate", *common, tmp_path / "one")
    for shard in ("1/2", "0/2"):
        ran = dim("generate", *common, tmp_path / "two", "--shard", shard)
        assert ran.code == 0
    assert ran.out.splitlines()[0].endswith("complete.")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_another_plan_in_the_same_folder_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    dim("generate", "--ipc", 2, "--out", out, "--bundle", tiny_bundle)
    before = contents(out)
    line = one_line(dim("generate", "--ipc", 3, "--out", out, "--bundle", tiny_bundle))
    assert line == (
        f"{out} holds another set (2 images per class instead of 3): choose another folder, or use --overwrite to "
        "replace that set."
    )
    assert contents(out) == before
    assert dim("generate", "--ipc", 3, "--out", out, "--bundle", tiny_bundle, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "Say the size of the set by exactly one of --ipc, --ratio, --total and --per-class; none was given."),
        (["--ipc", 0], "--ipc is 0; it must be a whole number from 1 to 2**32."),
        (["--ipc", 1, "--ratio", 1], "Say the size of the set by exactly one of --ipc, --ratio, --total and "
         "--per-class; both --ipc and --ratio were given."),
        (["--per-class", "one=1", "--classes", "one"], "--per-class already names its classes; leave out --classes."),
        (["--ratio", 0], "--ratio is 0.0; it must be above 0, for example 0.02 for a fiftieth of the source."),
        (["--ipc", 1, "--classes", "zwo"], "The bundle has no class 'zwo'; did you mean 'two'? Its classes are zero, "
         "one, two."),
        (["--ipc", 1, "--classes", "one,one"], "The class 'one' is named twice; name each class once."),
        (["--per-class", "one"], "'one' is not of the form NAME=NUMBER; write for example cat=100,dog=20 (whole "
         "numbers; a name with a comma stands in double quotes)."),
        (["--ipc", 1, "--shard", "0/0"], "The shard is 0/0; the number of shards must be at least 1."),
        (["--ipc", 1, "--shard", "2/2"], "The shard is 2/2; shards are counted from 0/2 to 1/2."),
        (["--ipc", 1, "--seed", -1], "The seed is -1; it must lie between 0 and 2**64 - 1."),
        (["--ipc", 1, "--ray", "--shard", "0/2"],
         "--ray shares the set among its workers by itself: leave out --shard."),
        (["--ipc", 1, "--num-workers", 2],
         "--num-workers is for --ray; without it, --shard I/N makes a part of a set."),
        (["--ipc", 1, "--ray", "--num-workers", 0], "--num-workers is 0; it must be at least 1."),
        (["--ipc", 1, "--encoders", 0], "--encoders is 0; it must lie between 1 and 64."),
        (["--ipc", 1, "--encoders", 2, "--ray"],
         "--encoders is for one machine; with --ray every worker chooses for itself."),
        (["--ratio", "1e300"],
         "That is more than 2**32 images of one class, which is all there are; ask for fewer."),
        (["--ipc", 1, "--engine", "warp"], None),
        (["--ipc", 1, "--device", "gpu"], None),
        (["--ipc", 1, "--format", "bmp"], None),
        (["--ipc", 1, "--precision", "fp8"], None),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    tiny_bundle: Path, tmp_path: Path, arguments: list[object], line: str | None
) -> None:
    for more in ([], ["--dry-run"]):
        ran = dim("generate", *arguments, "--out", tmp_path / "set", "--bundle", tiny_bundle, *more)
        found = one_line(ran)
        assert line is None or found == line
        assert not (tmp_path / "set").exists()


def test_an_empty_name_is_no_folder(tiny_bundle: Path) -> None:
    line = one_line(dim("generate", "--ipc", 1, "--out", "", "--bundle", tiny_bundle))
    assert line == "--out is empty; name the folder of the set."


def test_ctrl_c_says_what_is_kept(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    command = ["generate", "--ipc", 4, "--out", "set", "--format", "npy", "--bundle", tiny_bundle, "--shard-images", 5]
    with monkeypatch.context() as patched:
        patched.setattr("dim.runtime.sets.generate.generate", interrupt)
        before = dim(*command)
    assert dim(*command, "--shard", "1/3").code == 0
    monkeypatch.setattr("dim.runtime.sets.generate.generate", interrupt)
    for ran, kept in (
        (before, "No part of the set in set is finished yet, so nothing is kept: the same command begins again."),
        (dim(*command), "What is finished is kept in set, 5 of 12 images: the same command completes the set."),
    ):
        assert (ran.code, ran.out) == (130, "")
        assert ran.err.splitlines()[-2:] == [kept, "Interrupted."]


def test_a_dry_run_writes_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ["generate", "--ipc", 4, "--out", tmp_path / "set", "--bundle", tiny_bundle, "--dry-run"]
    ran = dim(*arguments)
    assert ran.out.splitlines()[0] == f"{tmp_path}/set: 12 images as imagefolder, nothing written yet."
    assert "images by onnxruntime-cpu" in ran.out and "It takes:  about" in ran.out
    plan = json.loads(dim(*arguments, "--json").out)
    assert (plan["images"], plan["images_missing"], plan["resumes"]) == (12, 12, False)
    assert not (tmp_path / "set").exists()


def test_ray_gets_what_was_asked(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def record(bundle: Any, request: SetRequest, out: str, **options: Any) -> GenerateSummary:
        seen.update(options, request=request)
        return GenerateSummary(
            out=out,
            format="npz",
            images=3,
            shard_images=3,
            images_drawn=3,
            bytes_written=9,
            seconds=1.0,
            parts=1,
            complete=True,
            engine="fake",
        )

    monkeypatch.setattr("dim.runtime.sets.ray.generate_on_ray", record)
    ran = dim("generate", "--ipc", 1, "--out", tmp_path, "--bundle", tiny_bundle, "--ray", "--num-workers", 3)
    assert ran.out.splitlines()[0] == f"{tmp_path}: 3 images as npz, complete."
    assert (seen["num_workers"], seen["request"]) == (3, SetRequest(ipc=1)) and "shard" not in seen


def test_a_pinned_bundle_must_be_that_one(tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ["generate", "--ipc", 1, "--out", tmp_path / "set", "--bundle", tiny_bundle, "--sha256"]
    right = json.loads(dim("inspect", tiny_bundle, "--json").out)["manifest_sha256"]
    assert "was pinned" in one_line(dim(*arguments, "0" * 64))
    assert not (tmp_path / "set").exists()
    assert dim(*arguments, right).code == 0


def unwritable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the right to write from a folder, of which the tests' user may have too many to notice."""
    real = os.access

    def access(path: str | Path, mode: int, **how: Any) -> bool:
        return not (Path(path) == folder and mode & os.W_OK) and real(path, mode, **how)

    monkeypatch.setattr(os, "access", access)


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--overwrite", "--dry-run"]])
def test_places_that_cannot_hold_a_set_are_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "closed").mkdir()
    unwritable(tmp_path / "closed", monkeypatch)
    monkeypatch.chdir(tmp_path)
    denied = f"{tmp_path}/closed cannot be written (Permission denied): choose another folder or fix its permissions."
    for out, line in {
        tmp_path / "file": f"{tmp_path}/file is a file; name a folder for the set.",
        tmp_path / "file" / "below" / "it": f"{tmp_path}/file is a file; name a folder for the set.",
        tmp_path / "dangling": f"{tmp_path}/dangling is no folder; name a folder for the set.",
        tmp_path / "closed": denied,
        tmp_path / "closed" / "set": denied,
        "s3:/bucket/x": "s3:/bucket/x lacks a slash: write s3://bucket/x for the URL, or ./s3:/bucket/x for a folder "
        "of that name.",
    }.items():
        assert one_line(dim("generate", "--ipc", 1, "--out", out, "--bundle", tiny_bundle, *more)) == line
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["closed", "dangling", "file"]
    assert dim("generate", "--ipc", 1, "--out", "./s3:/bucket/x", "--bundle", tiny_bundle).code == 0
    assert (tmp_path / "s3:" / "bucket" / "x" / "dataset.json").exists()


def test_a_read_only_file_system_is_refused(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs(tmp_path)
    values = [*found]
    values[8] |= os.ST_RDONLY
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(values))
    arguments = ["generate", "--ipc", 1, "--out", tmp_path / "set", "--bundle", tiny_bundle]
    for more in ([], ["--dry-run"]):
        assert one_line(dim(*arguments, *more)) == (
            f"{tmp_path} cannot be written (Read-only file system): choose another folder or fix its permissions."
        )


def test_a_complete_set_may_be_looked_at_where_nothing_can_be_written(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["generate", "--ipc", 1, "--out", tmp_path / "set", "--bundle", tiny_bundle]
    assert dim(*arguments).code == 0
    unwritable(tmp_path / "set", monkeypatch)
    assert dim(*arguments).code == 0 and dim(*arguments, "--dry-run").code == 0


def test_a_dry_run_says_that_another_set_would_go(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    common = ["generate", "--out", out, "--bundle", tiny_bundle]
    dim(*common, "--ipc", 2)
    before = contents(out)
    other = [*common, "--ipc", 3, "--dry-run", "--overwrite"]
    assert dim(*other).out.splitlines()[1] == "Removes:   another set that is there now"
    assert json.loads(dim(*other, "--json").out)["replaces"] is True
    same = dim(*common, "--ipc", 2, "--dry-run", "--overwrite", "--json")
    assert json.loads(same.out)["replaces"] is False
    assert "Removes" not in dim("generate", "--out", tmp_path / "new", *common[3:], "--ipc", 3, "--dry-run").out
    assert contents(out) == before
    (out / "train.npz").write_text("mine")
    for more in (["--dry-run"], []):
        line = one_line(dim(*common, "--ipc", 3, "--format", "npz", "--overwrite", *more))
        assert line == (
            f"{out} holds 'train.npz', in the way of the new set and not of an earlier one: move it away first."
        )
    # What stands in the way is told before anything of the old set is removed.
    assert before.items() <= contents(out).items()
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "dataset.json").write_text("no set")
    other = ["generate", "--out", torn, *common[3:], "--ipc", 3, "--format", "npy", "--overwrite", "--dry-run"]
    assert json.loads(dim(*other, "--json").out)["replaces"] is True


def test_a_dry_run_on_ray_shares_the_time(tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ["generate", "--ipc", 300, "--out", tmp_path, "--bundle", tiny_bundle, "--dry-run", "--ray"]
    ran = dim(*arguments, "--num-workers", 3)
    assert re.fullmatch(r"It takes:  about .*, on 3 workers as fast as this machine", ran.out.splitlines()[-1])
    plan = json.loads(dim(*arguments, "--num-workers", 3, "--json").out)
    # There are four parts, which workers do not share.
    assert (plan["parts"], plan["workers"]) == (4, 3)
    assert json.loads(dim(*arguments, "--num-workers", 9, "--json").out)["workers"] == 4
    assert dim(*arguments).out.splitlines()[-1].endswith(", on 1 worker as fast as this machine")


def test_fetching_a_bundle_is_told(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dim.runtime.bundle_format.download.SCHEMES", ("memory",))  # stands for an object store
    memory = fsspec.filesystem("memory")
    for path in tiny_bundle.iterdir():
        memory.pipe_file(f"/bundles/tiny.dim/{path.name}", path.read_bytes())
    ran = dim("generate", "--ipc", 1, "--out", tmp_path / "set", "--bundle", "memory://bundles/tiny.dim")
    assert ran.code == 0
    assert ran.err.splitlines()[0].startswith("Fetching tiny from memory://bundles/tiny.dim: ")


def test_a_size_into_an_unfinished_set_is_told_in_words(tiny_bundle: Path, tmp_path: Path) -> None:
    out, common = tmp_path / "set", ["--bundle", tiny_bundle, "--format", "npz"]
    dim("generate", "--ipc", 2000, "--out", out, *common, "--shard", "1/2")
    line = one_line(dim("generate", "--ipc", 300, "--out", out, *common))
    assert line == (
        f"{out} holds another set, begun and not finished (2,000 images per class instead of 300): finish it with the "
        "arguments that began it (--ipc 2000 --format npz), choose another folder, or use --overwrite to replace it."
    )
    line = one_line(dim("generate", "--total", 12, "--out", out, *common))
    assert "(6,000 images instead of 12)" in line


@pytest.mark.parametrize(
    "arguments",
    [
        "--ipc 40 --seed 3",
        "--ipc 40 --class two --start 7 --format npy",
        "--total 120 --format webdataset",
        "--total 60 --class one --class two",
        "--per-class one=30,two=2",
    ],
)
def test_the_options_that_finish_a_set_are_named(tiny_bundle: Path, tmp_path: Path, arguments: str) -> None:
    out = ["--out", tmp_path / "set", "--bundle", tiny_bundle, "--engine", "fake"]
    began = dim("generate", *arguments.split(), *out, "--shard", "1/2")
    assert began.code == 0, began.err
    line = one_line(dim("generate", "--ipc", 1, "--seed", 9, *out))
    options = line.partition("the arguments that began it (")[2].partition(")")[0]
    assert options == arguments
    assert "complete" in dim("generate", *shlex.split(options), *out).out


def test_a_missing_engine_is_told_before_another_set(tiny_bundle: Path, tmp_path: Path) -> None:
    common = ["generate", "--ipc", 2, "--out", tmp_path, "--bundle", tiny_bundle]
    dim(*common)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "dim.runtime.gpu.driver.find_driver",
            lambda: Driver(version=None, cuda=None, gpus=(), problem="there is none"),
        )
        assert one_line(dim(*common, "--device", "gpu")).startswith(
            "A GPU is needed to run with --device gpu and there"
        )
        assert one_line(dim(*common, "--engine", "tensorrt")).startswith("A GPU is needed to run tensorrt and there is")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "openvino", None)
        assert "The package 'openvino' is not installed" in one_line(dim(*common, "--precision", "bf16"))
    assert "holds another set (engine name" in one_line(dim(*common, "--engine", "fake"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ipc", 2, "--class", "tench, Tinca tinca", "--class", "x=y"],
        ["--ipc", 2, "--classes", '"tench, Tinca tinca",x=y'],
        ["--ipc", 2, "--class", "x=y", "--classes", '"tench, Tinca tinca"'],
        ["--per-class", '"tench, Tinca tinca=2",x=y=2'],
        ["--per-class", 'x=y=2,"tench, Tinca tinca"=2'],
    ],
)
def test_class_names_with_commas(tmp_path: Path, arguments: list[object]) -> None:
    bundle = build_tiny_bundle(tmp_path / "b.dim", classes=("tench, Tinca tinca", "goldfish", "x=y"))
    ran = dim("generate", "--bundle", bundle, "--format", "npz", "--out", tmp_path / "set", *arguments)
    assert ran.code == 0, ran.err
    labels = np.load(tmp_path / "set" / "train.npz", allow_pickle=False)["labels"]
    assert np.bincount(labels, minlength=3).tolist() == [2, 0, 2]


def test_the_tilde_is_home(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    ran = dim("generate", "--ipc", 1, "--out", "~/sets/x", "--bundle", tiny_bundle)
    assert ran.code == 0 and ran.out.startswith(f"{tmp_path}/home/sets/x: 3 images")
    assert not (tmp_path / "~").exists()
    assert dim("verify", "~/sets/x").code == 0


def test_cuda_is_another_name_of_the_gpu(tiny_bundle: Path, tmp_path: Path) -> None:
    common = ["generate", "--ipc", 1, "--out", tmp_path / "set", "--bundle", tiny_bundle, "--engine", "onnxruntime-cpu"]
    said = [one_line(dim(*common, "--device", name)) for name in ("gpu", "cuda")]
    assert said[0] == said[1] == "The engine onnxruntime-cpu runs on the cpu, not on the gpu."
    assert EngineOptions(device="cuda").device == "gpu"


def test_a_seed_that_changes_nothing_is_told(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.savez(stream, latents=np.zeros((3, 2, 16), np.float32))
    bundle = build_tiny_bundle(tmp_path / "b.dim", extra_files={"latents.npz": stream.getvalue()})
    said = "Seed 1 does not change the first 2 images of each class, whose latents the bundle optimised: with "
    for at, (more, told) in enumerate(
        [(["--seed", 1], True), (["--seed", 1, "--dry-run"], True), (["--seed", 1, "--no-fixed-latents"], False)]
        + [(["--seed", 1, "--start", 2], False), ([], False)]
    ):
        ran = dim("generate", "--ipc", 3, "--out", tmp_path / str(at), "--bundle", bundle, *more)
        assert ran.code == 0 and (said in ran.err) is told, more
