"""Links that a stranger left in a set's folder, wherever they lie: nothing outside the set is read, made or changed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from set_tools import generate, tree

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.errors import OutputError
from dim.runtime.set_formats.plan import FORMATS

COUNTS = (3, 2, 0)
FOLDERS = (".dim", ".dim/work", ".dim/locks", ".dim/parts")
FILES = (".dim/locks/begin", ".dim/locks/shard-0-of-1", "dataset.json")
FIRST_FILE = {
    "imagefolder": "zero/00000000.png",
    "npz": "train.npz",
    "npy": "labels.npy",
    "parquet": "data/train-00000-of-00001.parquet",
    "webdataset": "train-*-000000.tar",
}


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, engine="fake") as opened:
        yield opened


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of somebody's, with a file in it and one that looks like a dead process's."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "thesis.npz").write_text("years of work")
    (folder / f"{os.uname().nodename}.999999999.0000").mkdir()
    return folder


def link(out: Path, name: str, to: Path) -> None:
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).symlink_to(to)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_the_state_that_are_links(
    bundle: Bundle, tmp_path: Path, victim: Path, name: str, overwrite: bool
) -> None:
    link(tmp_path / "set", name, victim)
    before = sorted(os.listdir(victim))
    with pytest.raises(OutputError, match=rf"set/{name} is a link, which dim does not follow there: remove it"):
        generate(bundle, tmp_path / "set", counts=COUNTS, format="npz", overwrite=overwrite)
    assert sorted(os.listdir(victim)) == before and (victim / "thesis.npz").read_text() == "years of work"
    (tmp_path / "set" / name).unlink()
    assert generate(bundle, tmp_path / "set", counts=COUNTS, format="npz", overwrite=overwrite).complete


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_locks_and_the_plan_that_are_links(
    bundle: Bundle, tmp_path: Path, victim: Path, name: str, there: bool
) -> None:
    link(tmp_path / "set", name, victim / ("thesis.npz" if there else "made-by-dim"))
    before = tree(victim)
    with pytest.raises(OutputError, match=rf"set/{name} is a link"):
        generate(bundle, tmp_path / "set", counts=COUNTS, format="npz")
    assert tree(victim) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_a_file_of_the_set_that_is_a_link(
    bundle: Bundle, tmp_path: Path, victim: Path, format: str, overwrite: bool
) -> None:
    out, name = tmp_path / "set", FIRST_FILE[format]
    generate(bundle, out, counts=COUNTS, format=format)
    expected, [path] = tree(out), out.glob(name)
    name = path.relative_to(out).as_posix()
    path.unlink()
    link(out, name, victim / "thesis.npz")
    with pytest.raises(OutputError, match=rf"set/{name} is a link"):
        generate(bundle, out, counts=COUNTS, format=format, overwrite=overwrite)
    assert (victim / "thesis.npz").read_text() == "years of work"
    (out / name).unlink()
    assert generate(bundle, out, counts=COUNTS, format=format).complete and tree(out) == expected


@pytest.mark.parametrize("format", ["imagefolder", "parquet"])
def test_a_folder_of_the_set_that_is_a_link(bundle: Bundle, tmp_path: Path, victim: Path, format: str) -> None:
    out, folder = tmp_path / "set", FIRST_FILE[format].partition("/")[0]
    before = tree(victim)
    (out / ".dim").mkdir(parents=True)
    link(out, folder, victim)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=rf"set/{folder} is a link|holds '{folder}'"):
            generate(bundle, out, counts=COUNTS, format=format, overwrite=overwrite)
    assert tree(victim) == before


def test_the_set_itself_may_be_a_link(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "set").symlink_to(tmp_path / "large disk")
    assert generate(bundle, tmp_path / "set", counts=COUNTS).complete
    assert (tmp_path / "large disk" / "dataset.json").is_file()
