"""Two writers of one folder at once: one of them is refused in a sentence, and the set is the other one's alone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from set_tools import generate, tree

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.errors import OutputError
from dim.runtime.sets.claim import clear_up
from dim.runtime.sets.journal import SET_LOCK, clear_state, read_set
from dim.runtime.sets.verify_set import verify_set
from dim.runtime.storage.local_store import LocalStore
from dim.runtime.storage.place import make_place

COUNTS = (30, 20, 10)
FIRST: dict[str, Any] = {"counts": COUNTS, "seed": 1}
SECOND: dict[str, Any] = {"counts": COUNTS, "seed": 2}


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, engine="fake") as opened:
        yield opened


def refused(bundle: Bundle, out: Path, **call: Any) -> str:
    with pytest.raises(OutputError) as caught:
        generate(bundle, out, **call)
    return str(caught.value)


def once(action: Callable[[], None]) -> Callable[..., None]:
    """Return a callback that does something the first time it is called."""
    called: list[bool] = []

    def callback(*arguments: object) -> None:
        if not called:
            called.append(True)
            action()

    return callback


def check_whole(out: Path, expected: Path) -> None:
    assert tree(out) == tree(expected)
    rows: list[bool] = []
    verify_set(out, lambda subject, check, ok, found, allowed: rows.append(ok))
    assert rows and all(rows)


@pytest.mark.parametrize("format", ["imagefolder", "npy", "parquet"])
def test_a_set_that_is_being_written_is_not_replaced(bundle: Bundle, tmp_path: Path, format: str) -> None:
    out, said = tmp_path / "set", []

    def interfere() -> None:
        said.append(refused(bundle, out, **SECOND, format=format, overwrite=True))
        said.append(refused(bundle, out, **SECOND, format=format))
        said.append(refused(bundle, out, **FIRST, format=format))
        said.append(refused(bundle, out, counts=(1, 1, 1), format="npz", overwrite=True))

    assert generate(bundle, out, **FIRST, format=format, progress=once(interfere)).complete
    assert said[0] == said[3] == f"The set in {out} is being written by another process: wait for it, or stop it."
    assert said[1].startswith(f"{out} holds another set, begun and not finished (seed 1 instead of 2): finish it with")
    assert said[2] == f"Shard 0/1 of {out} is being written by another process: wait for it, or stop it."
    generate(bundle, tmp_path / "alone", **FIRST, format=format)
    check_whole(out, tmp_path / "alone")
    assert generate(bundle, out, **SECOND, format=format, overwrite=True).complete


def test_a_shard_that_another_one_writes_keeps_the_set_from_being_replaced(bundle: Bundle, tmp_path: Path) -> None:
    out, sizes = tmp_path / "set", {"format": "npy", "shard_images": 20}
    interfere = once(lambda: said.append(refused(bundle, out, **SECOND, **sizes, shard=(1, 2), overwrite=True)))
    said: list[str] = []
    assert not generate(bundle, out, **FIRST, **sizes, shard=(0, 2), progress=interfere).complete
    assert said == [f"The set in {out} is being written by another process: wait for it, or stop it."]
    assert generate(bundle, out, **FIRST, **sizes, shard=(1, 2)).complete
    generate(bundle, tmp_path / "alone", **FIRST, **sizes)
    check_whole(out, tmp_path / "alone")


@pytest.mark.parametrize("there", [None, {"counts": (1, 1, 1), "seed": 3}])
def test_one_that_began_in_the_meantime_is_not_mixed_with(bundle: Bundle, tmp_path: Path, there: Any) -> None:
    """Both have looked at the place before either begins."""
    out = tmp_path / "set"
    if there is not None:
        generate(bundle, out, **there)
    with open_bundle(bundle.path, engine="fake", say=once(lambda: begin_second())) as slow:

        def begin_second() -> None:
            assert generate(bundle, out, **SECOND, overwrite=True).complete

        line = refused(slow, out, **FIRST, overwrite=False) if there is None else None
        if there is not None:
            assert generate(slow, out, **FIRST, overwrite=True).complete
    if there is None:
        assert line == (
            f"{out} holds another set (seed 2 instead of 1): choose another folder, or use --overwrite to replace that "
            "set."
        )
    call = SECOND if there is None else FIRST
    generate(bundle, tmp_path / "alone", **call)
    check_whole(out, tmp_path / "alone")


def test_a_lock_that_was_removed_is_no_lock(tmp_path: Path) -> None:
    """Whoever waited for it while the set was completed must look again."""
    store = LocalStore(tmp_path / "set")
    make_place(store)
    flock = __import__("fcntl").flock

    def remove_first(descriptor: int, operation: int) -> None:
        (tmp_path / "set" / ".dim" / "locks" / SET_LOCK).unlink(missing_ok=True)
        flock(descriptor, operation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fcntl.flock", remove_first)
        with pytest.raises(FileNotFoundError), store.lock(SET_LOCK):
            pass
    with store.lock(SET_LOCK):
        pass


def test_clearing_up_leaves_what_another_one_began(bundle: Bundle, tmp_path: Path) -> None:
    generate(bundle, tmp_path, **FIRST)
    store = LocalStore(tmp_path)
    make_place(store)
    clear_up(store)
    assert ".dim" not in store.list()
    generate(bundle, tmp_path, **SECOND, format="npy", shard_images=20, shard=(0, 2), overwrite=True)
    journal = store.list(".dim/parts")
    clear_up(store)
    assert journal and store.list(".dim/parts") == journal
    clear_state(store)
    assert ".dim" not in store.list() and read_set(store) is not None
