"""Which bundle is meant: a path, a URL, a name; else that of the environment, else the shipped one."""

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


def place(tiny_bundle: Path, path: str) -> Path:
    shutil.copytree(tiny_bundle, path)
    return Path(path)


def test_the_order_of_choice(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError) as refused:
        find_bundle()
    assert str(refused.value) == (
        "There is no bundle: none is named, $DIM_BUNDLE is not set, and none came with this installation; pass "
        "--bundle PATH or make one with dim distill and dim export."
    )
    shipped = place(tiny_bundle, "elsewhere/mnist.dim")
    monkeypatch.setattr(locate, "SHIPPED", shipped)
    assert find_bundle() == (shipped, "the one that comes with dim")
    other = place(tiny_bundle, "runs/other.dim")
    monkeypatch.setenv("DIM_BUNDLE", str(other))
    assert find_bundle() == (other, "from $DIM_BUNDLE")
    named = place(tiny_bundle, "runs/named.dim")
    assert find_bundle("runs/named.dim") == (named, "as named")
    monkeypatch.setenv("DIM_BUNDLE", "")
    assert find_bundle() == (shipped, "the one that comes with dim")


def test_the_default_does_not_depend_on_the_folder(tiny_bundle: Path) -> None:
    shipped = place(tiny_bundle, "elsewhere/mnist.dim")
    for path in ("here.dim", "mnist.dim", "mnist", "runs/mnist.dim", "runs/digits/digits.dim"):
        place(tiny_bundle, path)
    assert find_bundle()[0].samefile(shipped)
    assert find_bundle("mnist")[0].samefile(shipped)


def test_a_name_means_a_shipped_bundle_and_nothing_else(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = place(tiny_bundle, "elsewhere/mnist.dim")
    place(tiny_bundle, "elsewhere/letters.dim")
    place(tiny_bundle, "mine")
    monkeypatch.setattr(locate, "SHIPPED", shipped)
    assert find_bundle("mnist") == (shipped, "mnist as it comes with dim")
    with pytest.raises(BundleError) as refused:
        find_bundle("mine")
    assert str(refused.value) == (
        "There is no bundle named 'mine': choose letters or mnist, a folder (with a slash or .dim, as in ./mine) or a "
        "URL."
    )
    with pytest.raises(BundleError, match=r"named 'Leters' \(did you mean letters\?\): choose"):
        find_bundle("Leters")
    monkeypatch.setenv("DIM_BUNDLE", "mnist")
    assert find_bundle()[0] == shipped
    monkeypatch.setenv("DIM_BUNDLE", "mine")
    with pytest.raises(BundleError, match=r"There is no bundle named 'mine' \(from \$DIM_BUNDLE\)"):
        find_bundle()


def test_a_path_has_a_slash_or_ends_in_dim_or_begins_with_a_dot(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tiny_bundle, "plain")
    place(tiny_bundle, "mine.dim")
    for wanted in ("./plain", "plain/", "mine.dim", "./mine.dim", str(tmp_path / "plain"), Path("plain")):
        assert find_bundle(wanted) == (Path(wanted), "as named")
    monkeypatch.chdir("plain")
    assert find_bundle(".") == (Path("."), "as named")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_bundle("~/plain")[0] == tmp_path / "plain"


def test_a_named_bundle_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file.dim").write_text("x")
    Path("empty.dim").mkdir()
    for folder, file in (("set", "dataset.json"), ("run", "config.json"), ("above/x.dim", "manifest.json")):
        Path(folder).mkdir(parents=True)
        (Path(folder) / file).write_text("{}")
    Path("photos/cat").mkdir(parents=True)
    for named, found in (
        ("none.dim", "it does not exist"),
        ("file.dim", "it is a file"),
        ("empty.dim", "it has no manifest.json"),
        (
            "./set",
            "it has no manifest.json; it is a training set, which  dim verify set  checks and --data reads",
        ),
        ("./run", "it has no manifest.json; it is a run, of which  dim export run  makes a bundle"),
        ("above/", "it has no manifest.json; a bundle lies in it: above/x.dim"),
        ("./photos", "it has no manifest.json; folders of images are read by  dim distill --data"),
    ):
        with pytest.raises(BundleError) as refused:
            find_bundle(named)
        assert str(refused.value) == f"There is no bundle at {Path(named)}: {found}."
    monkeypatch.setenv("DIM_BUNDLE", "gone.dim")
    with pytest.raises(BundleError, match=r"There is no bundle at gone.dim \(from \$DIM_BUNDLE\): it does not exist"):
        find_bundle()


def test_the_shipped_bundle_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert list(locate.list_names()) == ["mnist"]
