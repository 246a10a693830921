"""`dim generate` as users call it: sizes, formats, refusals, resuming."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_tools import dim, one_line

from dim.runtime.generate import GenerateSummary


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
        f"{out} holds another set (counts (2, 2, 2) instead of (3, 3, 3)): choose another folder, or use --overwrite "
        "to replace that set."
    )
    assert contents(out) == before
    assert dim("generate", "--ipc", 3, "--out", out, "--bundle", tiny_bundle, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "Say the size of the set by exactly one of ipc, ratio, total and per_class; none was given."),
        (["--ipc", 0], "ipc is 0; it must be a whole number from 1 to 2**32."),
        (["--ipc", 1, "--ratio", 1], "Say the size of the set by exactly one of ipc, ratio, total and per_class; both "
         "ipc and ratio were given."),
        (["--ratio", 0], "ratio is 0.0; it must be above 0, for example 0.02 for a fiftieth of the source."),
        (["--ipc", 1, "--classes", "zwo"], "The bundle has no class 'zwo'; did you mean 'two'? Its classes are zero, "
         "one, two."),
        (["--ipc", 1, "--classes", "one,one"], "The class 'one' is named twice; name each class once."),
        (["--per-class", "one"], "'one' is not of the form NAME=NUMBER; write for example cat=100,dog=20 (whole "
         "numbers)."),
        (["--ipc", 1, "--shard", "2/2"], "The shard is 2/2; shards are counted from 0/2 to 1/2."),
        (["--ipc", 1, "--seed", -1], "The seed is -1; it must lie between 0 and 2**64 - 1."),
        (["--ipc", 1, "--ray", "--shard", "0/2"],
         "--ray shares the set among its workers by itself: leave out --shard."),
        (["--ipc", 1, "--num-workers", 2],
         "--num-workers is for --ray; without it, --shard I/N makes a part of a set."),
        (["--ipc", 1, "--engine", "warp"], None),
        (["--ipc", 1, "--device", "gpu"], None),
        (["--ipc", 1, "--format", "bmp"], None),
        (["--ipc", 1, "--precision", "fp8"], None),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    tiny_bundle: Path, tmp_path: Path, arguments: list[object], line: str | None
) -> None:
    ran = dim("generate", *arguments, "--out", tmp_path / "set", "--bundle", tiny_bundle)
    found = one_line(ran)
    assert line is None or found == line
    assert not (tmp_path / "set").exists()


def test_an_empty_name_is_no_folder(tiny_bundle: Path) -> None:
    line = one_line(dim("generate", "--ipc", 1, "--out", "", "--bundle", tiny_bundle))
    assert line == "--out is empty; name the folder of the set."


def test_ctrl_c_says_that_the_same_command_goes_on(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dim.runtime.generate.generate", interrupt)
    ran = dim("generate", "--ipc", 1, "--out", "set", "--bundle", tiny_bundle)
    assert (ran.code, ran.out) == (130, "")
    assert ran.err.splitlines()[-2:] == [
        "What is finished is kept in set: the same command completes the set.",
        "Interrupted.",
    ]


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

    def record(bundle: Any, out: str, **options: Any) -> GenerateSummary:
        seen.update(options)
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

    monkeypatch.setattr("dim.runtime.ray_generate.generate_on_ray", record)
    ran = dim("generate", "--ipc", 1, "--out", tmp_path, "--bundle", tiny_bundle, "--ray", "--num-workers", 3)
    assert ran.out.splitlines()[0] == f"{tmp_path}: 3 images as npz, complete."
    assert (seen["num_workers"], seen["counts"]) == (3, (1, 1, 1)) and "shard" not in seen


def test_a_pinned_bundle_must_be_that_one(tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ["generate", "--ipc", 1, "--out", tmp_path / "set", "--bundle", tiny_bundle, "--sha256"]
    right = json.loads(dim("inspect", tiny_bundle, "--json").out)["manifest_sha256"]
    assert "was pinned" in one_line(dim(*arguments, "0" * 64))
    assert not (tmp_path / "set").exists()
    assert dim(*arguments, right).code == 0


def test_a_file_in_the_place_of_the_folder_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "set").write_text("mine")
    assert str(tmp_path / "set") in one_line(
        dim("generate", "--ipc", 1, "--out", tmp_path / "set", "--bundle", tiny_bundle)
    )
    assert (tmp_path / "set").read_text() == "mine"
