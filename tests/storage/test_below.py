"""Names below a folder are opened without following a link, whatever the call."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dim.runtime.errors import DimError, OutputError
from dim.runtime.storage import private_cache
from dim.runtime.storage.below import make_folder, open_file, open_folder
from dim.runtime.storage.local_store import LocalStore
from dim.runtime.storage.place import make_place


def test_a_root_that_is_a_link_is_followed_and_nothing_below_it(tmp_path: Path) -> None:
    (tmp_path / "real" / "a" / "b").mkdir(parents=True)
    (tmp_path / "root").symlink_to("real")
    os.close(open_folder(tmp_path / "root", "a/b"))
    (tmp_path / "real" / "c").symlink_to("a")
    for name in ("c", "c/b"):
        with pytest.raises(OutputError, match=r"root/c is a link, which dim does not follow there: remove it"):
            open_folder(tmp_path / "root", name)


@pytest.mark.parametrize("name", ["..", "a/..", "a/../../x", ".", "a//b", "a/"])
def test_steps_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    for opened in (lambda: open_file(tmp_path, name, os.O_RDONLY), lambda: make_folder(tmp_path, name)):
        with pytest.raises(OutputError, match="leads out of a folder"):
            opened()


@pytest.mark.parametrize("to", ["there", "nowhere"])
def test_a_file_that_is_a_link_is_neither_read_nor_made(tmp_path: Path, to: str) -> None:
    (tmp_path / "there").write_text("mine")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x").symlink_to(tmp_path / to)
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC):
        with pytest.raises(OutputError, match="set/x is a link"):
            open_file(tmp_path / "set", "x", flags)
    assert (tmp_path / "there").read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path, "none/x", os.O_RDONLY)
    with pytest.raises(NotADirectoryError):
        open_file(tmp_path, "file/x", os.O_RDONLY)
    with pytest.raises(NotADirectoryError):
        make_folder(tmp_path, "file")
    make_folder(tmp_path, "new")
    make_folder(tmp_path, "new")
    assert (tmp_path / "new").is_dir()


CALLS: dict[str, Callable[[LocalStore, str], object]] = {
    "read": lambda store, name: store.read(f"{name}/x"),
    "put": lambda store, name: store.put(f"{name}/x", b"new"),
    "create": lambda store, name: store.create(f"{name}/y", b"new"),
    "digest": lambda store, name: store.digest(f"{name}/x"),
    "size": lambda store, name: store.size(f"{name}/x"),
    "list": lambda store, name: store.list(name),
    "remove": lambda store, name: store.remove(f"{name}/x"),
    "remove all": lambda store, name: store.remove(f"{name}/folder", with_contents=True),
    "make a folder": lambda store, name: store.make_folder(f"{name}/z"),
    "the folder itself": lambda store, name: store.make_folder(name),
}


@pytest.mark.parametrize("call", CALLS)
def test_no_call_of_a_store_goes_through_a_link(tmp_path: Path, call: str) -> None:
    victim = tmp_path / "victim"
    (victim / "folder").mkdir(parents=True)
    (victim / "x").write_text("mine")
    store = LocalStore(tmp_path / "set")
    make_place(store)
    (tmp_path / "set" / "data").symlink_to(victim)
    with pytest.raises(OutputError, match="set/data is a link"):
        CALLS[call](store, "data")
    assert sorted(os.listdir(victim)) == ["folder", "x"] and (victim / "x").read_text() == "mine"


def test_a_final_name_that_is_a_link_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    store = LocalStore(tmp_path / "set")
    make_place(store)
    (tmp_path / "set" / "train.npz").symlink_to(tmp_path / "victim")
    os.close(store.open_scratch("made"))
    for refused in (lambda: store.publish("made", "train.npz", "0" * 64), lambda: store.read("train.npz")):
        with pytest.raises(OutputError, match=r"train\.npz is a link"):
            refused()
    assert store.size("train.npz") is None and store.create("train.npz", b"new") is False
    assert (tmp_path / "victim").read_text() == "mine"
    store.close()
    assert store.list(".dim/work") == []


def test_the_cache_follows_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "abc").write_text("a note that somebody else left")
    (private_cache.cache_dir() / "checked").symlink_to(victim)
    assert private_cache.recall("checked", "abc") is None
    private_cache.remember("checked", "def")
    assert os.listdir(victim) == ["abc"]
    with pytest.raises(DimError, match="cache/checked is a link"):
        private_cache.cache_folder("checked/deeper")
    assert private_cache.cache_folder("engines/one").stat().st_mode & 0o777 == 0o700
    private_cache.remember("other", "abc", "seen")
    assert private_cache.recall("other", "abc") == "seen"
    private_cache.write_cached("engines/one/plan", b"compiled")
    assert private_cache.read_cached("engines/one/plan") == b"compiled"
    for name in ("checked/abc", "checked/new"):
        with pytest.raises(DimError, match="cache/checked is a link"):
            private_cache.read_cached(name)
        with pytest.raises(DimError, match="cache/checked is a link"):
            private_cache.write_cached(name, b"new")
    assert os.listdir(victim) == ["abc"] and (victim / "abc").read_text() == "a note that somebody else left"
    (tmp_path / "cache" / "other" / "abc").unlink()
    (tmp_path / "cache" / "other" / "abc").symlink_to(victim / "abc")
    assert private_cache.recall("other", "abc") is None


def test_a_folder_of_the_cache_is_filled_through_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that comes while it is filled, nor one that has its final name."""
    monkeypatch.setenv("DIM_CACHE", str(tmp_path / "cache"))
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "x").write_text("mine")
    bundles = private_cache.cache_folder("bundles")
    (bundles / "one").symlink_to(victim)
    with private_cache.fill_cached_folder("bundles/one") as create:
        with create("x") as file:
            file.write(b"new")
        with create("inner/y") as file:
            file.write(b"newer")
        (made,) = [path for path in bundles.iterdir() if path.name != "one"]
        (made / "link").symlink_to(victim)
        (made / "z").symlink_to(victim / "z")
        with pytest.raises(OutputError, match="/link is a link, which dim does not follow"):
            create("link/x")
        for taken in ("x", "z"):
            with pytest.raises(OSError):
                create(taken)
    assert (bundles / "one" / "x").read_bytes() == b"new" and not (bundles / "one").is_symlink()
    with private_cache.fill_cached_folder("bundles/one") as create, create("x") as file:
        file.write(b"another")
    assert (bundles / "one" / "x").read_bytes() == b"another" and not (bundles / "one" / "inner").exists()
    with pytest.raises(ZeroDivisionError), private_cache.fill_cached_folder("bundles/two"):
        raise ZeroDivisionError
    assert os.listdir(bundles) == ["one"] and os.listdir(victim) == ["x"] and (victim / "x").read_text() == "mine"
    (tmp_path / "cache" / "bundles").rename(tmp_path / "moved")
    (tmp_path / "cache" / "bundles").symlink_to(victim)
    with pytest.raises(DimError, match="cache/bundles is a link"), private_cache.fill_cached_folder("bundles/two"):
        pass
    assert os.listdir(victim) == ["x"]
