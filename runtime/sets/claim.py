"""What lies in the place of a set, and how a set is claimed there: resumed, begun, or begun instead of another one."""

import contextlib
from collections.abc import Callable, Iterator
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
    WITH_CLASS_NAMES,
    SetFile,
    begin_set,
    read_set,
    remove_set,
)
from dim.runtime.sets.request import SetRequest, describe_engine
from dim.runtime.storage.local_store import STATE, LocalStore, Store
from dim.runtime.storage.place import make_place
from dim.version import __version__


@dataclass(frozen=True, kw_only=True)
class Occupant:
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


def examine_place(store: Store, bundle: Bundle, request: SetRequest, overwrite: bool) -> Occupant:
    """Look at what lies in a place.

    Raises:
        OutputError: another set, or foreign files, and no `overwrite`.
    """
    try:
        found = read_set(store)
    except OutputError:
        if not overwrite:
            raise
        return Occupant(unreadable=True)
    if found is None:
        if not overwrite and (foreign := [name for name in store.list() if name != STATE]):
            raise OutputError(
                f"{store} already holds '{foreign[0]}' and no set of ours: choose an empty folder, "
                "or use --overwrite to write beside what is there."
            )
        return Occupant()
    difference = request.describe_difference(bundle, found.plan)
    if difference is None:
        return Occupant(same=found)
    if not overwrite:
        if found.written is None:
            raise OutputError(
                f"{store} holds another set, begun and not finished ({difference}): finish it with the arguments that "
                "began it, choose another folder, or use --overwrite to replace it."
            )
        raise OutputError(
            f"{store} holds another set ({difference}): choose another folder, or use --overwrite to replace that set."
        )
    return Occupant(other=found)


def check_resumable(store: Store, occupant: Occupant, plan: Plan, overwrite: bool) -> Occupant:
    """Check that this machine would finish the set that is there with the same bytes.

    Args:
        store: the place.
        occupant: what lies there.
        plan: a plan with the engine and the encoder of this machine.
        overwrite: whether a set that cannot be resumed is replaced.

    Returns:
        the occupant; one that cannot be resumed became another set.

    Raises:
        OutputError: the set was begun with another engine, version, batch or encoder, and no `overwrite`.
    """
    if occupant.same is None:
        return occupant
    begun = occupant.same.plan
    difference = begun.describe_difference(replace(begun, engine=plan.engine, encoder=plan.encoder))
    if difference is None:
        return occupant
    if not overwrite:
        raise OutputError(
            f"The set in {store} was begun with {difference}, and the rest would not be the same bytes: "
            "go on with that, or use --overwrite to start anew."
        )
    return Occupant(other=occupant.same)


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
        OutputError: the place holds what is not to be replaced, or a set that this machine would finish otherwise.
    """
    make_place(store)
    with store.lock("begin"):
        occupant = check_resumable(store, examine_place(store, bundle, request, overwrite), plan, overwrite)
        if occupant.same is not None:
            claimed = occupant.same if occupant.same.written is None else reopen(store, occupant.same)
        else:
            if overwrite:
                check_replaceable(store, occupant, plan)
            if occupant.other is not None:
                remove_set(store, occupant.other)
            if occupant.unreadable:
                store.remove(DATASET)
            if overwrite:
                refuse_clashes(store, plan)
            claimed = begin_set(store, plan, f"dim {__version__}")
            # Where there are no locks, another worker may have begun it with another engine.
            check_resumable(store, Occupant(same=claimed), plan, overwrite=False)
    if isinstance(store, LocalStore):
        for folder in find_format(plan.format).folders(plan):
            store.make_folder(folder)
    return claimed


def check_replaceable(store: Store, occupant: Occupant, plan: Plan) -> bool:
    """Check, without removing anything, that what stays would not mix with a new set.

    Returns:
        whether a set, or a `dataset.json` that cannot be read, would be removed.

    Raises:
        OutputError: something that is not replaced has a name that the new set needs.
    """
    if occupant.other is not None:
        refuse_clashes(store, plan, replaced=_list_own_names(occupant.other.plan))
    else:
        refuse_clashes(store, plan, replaced={DATASET} if occupant.unreadable else None)
    return occupant.other is not None or occupant.unreadable


def refuse_clashes(store: Store, plan: Plan, replaced: set[str] | None = None) -> None:
    """Check that a new set would not mix with what is in its place; names in `replaced` go with the old set.

    Raises:
        OutputError: a file or folder has a name that the set needs.
    """
    clashing = sorted(_list_own_names(plan).intersection(store.list()) - {STATE} - (replaced or set()))
    if clashing:
        raise OutputError(
            f"{store} holds '{clashing[0]}', which the new set needs and no earlier set lists: move it away first."
        )


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
