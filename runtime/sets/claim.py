"""What lies in the place of a set, and how a set is claimed there: resumed, begun, or begun instead of another one."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from dim.runtime.bundle import Bundle
from dim.runtime.choose_engine import open_engine
from dim.runtime.engines.base import Engine
from dim.runtime.errors import OutputError
from dim.runtime.set_formats.part import name_file
from dim.runtime.set_formats.plan import Plan
from dim.runtime.set_formats.table import find_format
from dim.runtime.sets.finished import reopen
from dim.runtime.sets.journal import (
    DATASET,
    SET_LOCK,
    WITH_CLASS_NAMES,
    SetFile,
    UnreadableSetError,
    begin_set,
    clear_state,
    list_files_there,
    read_set,
    remove_set,
)
from dim.runtime.sets.request import NO_ENGINE, SetRequest, describe_engine
from dim.runtime.storage.local_store import STATE, LocalStore, Store
from dim.runtime.storage.place import make_place
from dim.version import __version__

MAX_NAMES = 20
"""Names in one sentence; more are counted."""
_SHARD_LOCK = "shard-"
_LOCK_TRIES = 5


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What is in the output folder already. All fields empty: nothing, or only files that are not part of a set."""

    same: SetFile | None = None
    """The set that is asked for, begun or complete."""
    other: SetFile | None = None
    """Another set, which the new one replaces."""
    unreadable: bool = False
    """Whether there is a `dataset.json` that cannot be read. It is replaced; the files that it listed are kept."""

    @property
    def freed_bytes(self) -> int:
        """Bytes that replacing the other set sets free."""
        return self.other.written.bytes if self.other is not None and self.other.written is not None else 0


def examine_place(store: Store, bundle: Bundle, request: SetRequest, overwrite: bool) -> Contents:
    """Look at what lies in a place.

    Raises:
        OutputError: another set, or foreign files, and no `overwrite`.
    """
    try:
        found = read_set(store)
    except UnreadableSetError:
        if not overwrite:
            raise
        return Contents(unreadable=True)
    if found is None:
        if not overwrite and (foreign := [name for name in store.list() if name != STATE]):
            use = _say_overwrite(store, Contents(), request.plan(bundle, NO_ENGINE))
            raise OutputError(
                f"{store} already holds '{foreign[0]}' and no set of ours: choose an empty folder, "
                f"or {use} to write beside what is there."
            )
        return Contents()
    difference = request.describe_difference(bundle, found.plan)
    if difference is None:
        return Contents(same=found)
    if not overwrite:
        use = _say_overwrite(store, Contents(other=found), request.plan(bundle, found.plan.engine))
        if found.written is None:
            raise OutputError(
                f"{store} holds another set, begun and not finished ({difference}): finish it with the arguments that "
                f"began it, choose another folder, or {use} to replace it."
            )
        raise OutputError(
            f"{store} holds another set ({difference}): choose another folder, or {use} to replace that set."
        )
    return Contents(other=found)


def check_resumable(store: Store, contents: Contents, plan: Plan, overwrite: bool) -> Contents:
    """Check that this machine would finish the set that is there with the same bytes.

    Args:
        store: the place.
        contents: what lies there.
        plan: a plan with the engine and the encoder of this machine.
        overwrite: whether a set that cannot be resumed is replaced.

    Returns:
        the contents; one that cannot be resumed became another set.

    Raises:
        OutputError: the set was begun with another engine, version, batch or encoder, and no `overwrite`.
    """
    if contents.same is None:
        return contents
    begun = contents.same.plan
    difference = begun.describe_difference(replace(begun, engine=plan.engine, encoder=plan.encoder))
    if difference is None:
        return contents
    if not overwrite:
        raise OutputError(
            f"The set in {store} was begun with {difference}, and the rest would not be the same bytes: "
            f"go on with that, or {_say_overwrite(store, Contents(other=contents.same), plan)} to start anew."
        )
    return Contents(other=contents.same)


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
    engine = open_engine(bundle.path, bundle.manifest, options, batch=wanted.batch, say=say)
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
            _refuse_clashes(store, _list_clashes(store, Contents(), plan))
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


def check_replaceable(store: Store, contents: Contents, plan: Plan) -> bool:
    """Check, without removing anything, that what stays would not mix with a new set.

    Returns:
        whether a set, or a `dataset.json` that cannot be read, would be removed.

    Raises:
        OutputError: something that is not replaced has a name that the new set needs.
    """
    _refuse_clashes(store, _list_clashes(store, contents, plan))
    return contents.other is not None or contents.unreadable


def _say_overwrite(store: Store, contents: Contents, plan: Plan) -> str:
    """Say what `--overwrite` needs to succeed, as a phrase."""
    clashes = _list_clashes(store, contents, plan)
    return f"move {_name_some(clashes)} away and use --overwrite" if clashes else "use --overwrite"


def _refuse_clashes(store: Store, clashes: Sequence[str]) -> None:
    if clashes:
        raise OutputError(
            f"{store} holds {_name_some(clashes)}, in the way of the new set and not of an earlier one: move "
            f"{'it' if len(clashes) == 1 else 'them'} away first."
        )


def _list_clashes(store: Store, contents: Contents, plan: Plan) -> list[str]:
    """List what would stay and is in the way of a new set: under one of its names, or in a folder of an earlier set."""
    in_the_way = _list_own_names(plan).intersection(store.list()) - {STATE}
    if contents.unreadable:
        in_the_way.discard(DATASET)
    if contents.other is None:
        return sorted(in_the_way)
    old = contents.other.plan
    clashes = in_the_way - _list_own_names(old)
    if shared := in_the_way.intersection(find_format(old.format).folders(old)):
        goes = set(list_files_there(store, old))
        clashes |= {f"{folder}/{name}" for folder in shared for name in store.list(folder)} - goes
    return sorted(clashes)


def _name_some(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:MAX_NAMES])
    return shown if len(names) <= MAX_NAMES else f"{shown} and {len(names) - MAX_NAMES:,} more"


def _list_own_names(plan: Plan) -> set[str]:
    """List the names that a set uses at the top of its folder."""
    formats = find_format(plan.format)
    names = {DATASET, STATE, "README.md", "croissant.json"}
    names |= {folder.partition("/")[0] for folder in formats.folders(plan)}
    for part in range(plan.parts):
        if plan.format == "imagefolder":
            names |= {name_file("logits", plan, part, ".npy")} if plan.soft_labels else set()
        else:
            names |= {path.partition("/")[0] for path in formats.files(plan, part)}
    return names | ({"classes.json"} if plan.format in WITH_CLASS_NAMES else set())
