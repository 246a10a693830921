"""Which bundle is meant: the one named, the environment's, the newest here, the shipped one."""

import os
import shutil
from pathlib import Path

import pytest

from dim.runtime.bundle_format import locate
from dim.runtime.bundle_format.locate import find_bundle
from dim.runtime.errors import BundleError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIM_BUNDLE", raising=False)
    monkeypatch.setattr(locate, "SHIPPED", tmp_path / "elsewhere" / "mnist.dim")


def place(tiny_bundle: Path, path: str, age_s: int) -> Path:
    shutil.copytree(tiny_bundle, path)
    manifest = Path(path) / "manifest.json"
    os.utime(manifest, (10**9 - age_s, 10**9 - age_s))
    return Path(path)


def test_the_order_of_choice(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError) as refused:
        find_bundle()
    assert str(refused.value) == (
        "There is no bundle: none is named, $DIM_BUNDLE is not set, no *.dim lies here or under runs/, and none came "
        "with this installation; pass --bundle PATH or make one with dim distill and dim export."
    )
    shipped = place(tiny_bundle, "elsewhere/mnist.dim", 1)
    monkeypatch.setattr(locate, "SHIPPED", shipped)
    assert find_bundle() == (shipped, "the one that comes with dim")
    old = place(tiny_bundle, "old.dim", 900)
    assert find_bundle() == (old, "the newest here")
    newer = place(tiny_bundle, "runs/cifar10/cifar10.dim", 500)
    assert find_bundle() == (newer, "the newest here")
    newest = place(tiny_bundle, "runs/newest.dim", 100)
    assert find_bundle() == (newest, "the newest here")
    monkeypatch.setenv("DIM_BUNDLE", str(old))
    assert find_bundle() == (old, "from $DIM_BUNDLE")
    assert find_bundle("runs/newest.dim") == (newest, "as named")


def test_a_folder_that_is_no_bundle_is_not_found(tiny_bundle: Path) -> None:
    Path("empty.dim").mkdir()
    good = place(tiny_bundle, "good.dim", 900)
    assert find_bundle()[0] == good


def test_a_named_bundle_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file.dim").write_text("x")
    Path("empty.dim").mkdir()
    for named, found in (
        ("none.dim", "it does not exist"),
        ("file.dim", "it is a file"),
        ("empty.dim", "it has no manifest.json"),
    ):
        with pytest.raises(BundleError) as refused:
            find_bundle(named)
        assert str(refused.value) == f"There is no bundle at {named} (as named): {found}."
    monkeypatch.setenv("DIM_BUNDLE", "gone.dim")
    with pytest.raises(BundleError, match=r"There is no bundle at gone.dim \(from \$DIM_BUNDLE\): it does not exist"):
        find_bundle()
