"""Claims the place of a set under a lock: resumes it, begins it, or begins it instead of another one."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from dim.runtime.bundle import Bundle
from dim.runtime.choose_engine import open_engine
from dim.runtime.engines.base import Engine
from dim.runtime.errors import OutputError
from dim.runtime.set_formats.plan import Plan
from dim.runtime.set_formats.table import find_format
from dim.runtime.sets.contents import (
    Contents,
    check_replaceable,
    check_resumable,
    examine_place,
    list_clashes,
    refuse_clashes,
)
from dim.runtime.sets.finished import reopen
from dim.runtime.sets.journal import (
    DATASET,
    SET_LOCK,
    SetFile,
    UnreadableSetError,
    begin_set,
    clear_state,
    read_set,
    remove_set,
)
from dim.runtime.sets.request import SetRequest, describe_engine
from dim.runtime.storage.local_store import STATE, LocalStore, Store
from dim.runtime.storage.place import make_place
from dim.version import __version__

_SHARD_LOCK = "shard-"
_LOCK_TRIES = 5


@contextlib.contextmanager
def open_engine_for(bundle: Bundle, found: SetFile | None, say: Callable[[str], None]) -> Iterator[Engine]:
    """Open the engine of a set that was begun, else the bundle's own."""
    if found is None:
        yield bundle.engine
        return
    wanted, opened = found.plan.engine, bundle.opened_engine
    if opened is not None and describe_engine(opened) == wanted:
        yield opened
        return
    options = replace(bundle.engine_options, engine=wanted.name, device=wanted.device, precision=wanted.precision)
    engine = open_engine(
        bundle.path, bundle.manifest, options, batch=wanted.batch, reason="as the set was begun", say=say
    )
    try:
        yield engine
    finally:
        engine.close()


@contextlib.contextmanager
def claim_shard(
    store: Store, bundle: Bundle, request: SetRequest, plan: Plan, shard: tuple[int, int], overwrite: bool
) -> Iterator[SetFile]:
    """Claim a set as `claim_set`, and hold the lock of a shard of it while the block runs.

    Args:
        store: the place.
        bundle: the bundle.
        request: what was asked for.
        plan: the plan of a new set.
        shard: (i, n), the parts that this process makes.
        overwrite: whether another set is replaced.

    Returns:
        the set, unfinished.

    Raises:
        OutputError: as `claim_set`, or another process writes this shard.
    """
    name = f"{_SHARD_LOCK}{shard[0]}-of-{shard[1]}"
    refusal = f"Shard {shard[0]}/{shard[1]} of {store} is being written by another process: wait for it, or stop it."
    with contextlib.ExitStack() as stack:
        with _lock_set(store):
            claimed = _begin_or_resume(store, bundle, request, plan, overwrite)
            # Taken before others may look: nobody replaces a set of which a shard is locked.
            stack.enter_context(store.lock(name, refusal))
        yield claimed


def claim_set(store: Store, bundle: Bundle, request: SetRequest, plan: Plan, overwrite: bool) -> SetFile:
    """Begin a set, or resume the one that is there, which another worker may have begun a moment ago.

    Args:
        store: the place.
        bundle: the bundle.
        request: what was asked for.
        plan: the plan of a new set.
        overwrite: whether another set is replaced.

    Returns:
        the set, unfinished.

    Raises:
        OutputError: the place holds what is not to be replaced, a set that this machine would finish otherwise, or
            another one that is being written.
    """
    with _lock_set(store):
        return _begin_or_resume(store, bundle, request, plan, overwrite)


def clear_up(store: Store) -> None:
    """Remove what a run that was cut off left beside a complete set, unless another set was begun meanwhile."""
    with contextlib.suppress(OSError):
        if STATE in store.list():
            with _lock_set(store):
                _clear_if_complete(store)


def _clear_if_complete(store: Store) -> None:
    with contextlib.suppress(UnreadableSetError):
        if (found := read_set(store)) is not None and found.complete:
            clear_state(store)


@contextlib.contextmanager
def _lock_set(store: Store) -> Iterator[None]:
    """Make a place and hold the lock under which its set is begun, replaced and completed."""
    with contextlib.ExitStack() as stack:
        for tries_left in reversed(range(_LOCK_TRIES)):
            make_place(store)
            try:
                stack.enter_context(store.lock(SET_LOCK))
                break
            except FileNotFoundError:
                # Whoever held the lock completed the set and removed it.
                if not tries_left:
                    raise
        try:
            yield
        except OutputError:
            _clear_if_complete(store)
            raise


def _begin_or_resume(store: Store, bundle: Bundle, request: SetRequest, plan: Plan, overwrite: bool) -> SetFile:
    contents = check_resumable(store, examine_place(store, bundle, request, overwrite), plan, overwrite)
    if contents.same is not None:
        claimed = contents.same if contents.same.written is None else reopen(store, contents.same)
    else:
        if contents.other is not None or contents.unreadable:
            _refuse_writers(store)
        if overwrite:
            check_replaceable(store, contents, plan)
        if contents.other is not None:
            remove_set(store, contents.other)
        if contents.unreadable:
            store.remove(DATASET)
        if overwrite:
            refuse_clashes(store, list_clashes(store, Contents(), plan))
        claimed = begin_set(store, plan, f"dim {__version__}")
        # Where there are no locks, another worker may have begun it with another engine.
        check_resumable(store, Contents(same=claimed), plan, overwrite=False)
    if isinstance(store, LocalStore):
        for folder in find_format(plan.format).folders(plan):
            store.make_folder(folder)
    return claimed


def _refuse_writers(store: Store) -> None:
    """Raise OutputError if another process writes a shard of the set that is to be replaced."""
    if isinstance(store, LocalStore):
        refusal = f"The set in {store} is being written by another process: wait for it, or stop it."
        for name in store.list(f"{STATE}/locks"):
            if name.startswith(_SHARD_LOCK):
                with store.lock(name, refusal):
                    pass
