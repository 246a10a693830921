"""Lists the contents of a set's place: the requested set, another one, foreign files, and what blocks a new one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dim.runtime.bundle import Bundle
from dim.runtime.engines.names import ENGINES
from dim.runtime.errors import OutputError
from dim.runtime.gpu.driver import require_gpu
from dim.runtime.set_formats.part import name_file
from dim.runtime.set_formats.plan import Plan
from dim.runtime.set_formats.table import find_format
from dim.runtime.sets.journal import (
    DATASET,
    WITH_CLASS_NAMES,
    SetFile,
    UnreadableSetError,
    list_files_there,
    read_set,
)
from dim.runtime.sets.request import NO_ENGINE, SetRequest, name_options
from dim.runtime.storage.local_store import STATE, Store

MAX_NAMES = 20
"""Names in one sentence; more are counted."""


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
        _refuse_missing_engine(bundle)
        use = _say_overwrite(store, Contents(other=found), request.plan(bundle, found.plan.engine))
        if found.written is None:
            options = name_options(found.plan, bundle)
            raise OutputError(
                f"{store} holds another set, begun and not finished ({difference}): finish it with the arguments that "
                f"began it{f' ({options})' if options else ''}, choose another folder, or {use} to replace it."
            )
        raise OutputError(
            f"{store} holds another set ({difference}): choose another folder, or {use} to replace that set."
        )
    return Contents(other=found)


def _refuse_missing_engine(bundle: Bundle) -> None:
    """Raise what keeps the engine that was asked for from drawing any set here; no GPU engine is built to find out."""
    options = bundle.engine_options
    if options.device == "gpu" or ENGINES.get(options.engine) == "gpu":
        require_gpu("run with --device gpu" if options.device == "gpu" else f"run {options.engine}")
    elif options.engine != "auto" or options.precision is not None:
        _ = bundle.engine


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


def check_replaceable(store: Store, contents: Contents, plan: Plan) -> bool:
    """Check, without removing anything, that what stays would not mix with a new set.

    Returns:
        whether a set, or a `dataset.json` that cannot be read, would be removed.

    Raises:
        OutputError: something that is not replaced has a name that the new set needs.
    """
    refuse_clashes(store, list_clashes(store, contents, plan))
    return contents.other is not None or contents.unreadable


def _say_overwrite(store: Store, contents: Contents, plan: Plan) -> str:
    """Say what `--overwrite` needs to succeed, as a phrase."""
    clashes = list_clashes(store, contents, plan)
    return f"move {_name_some(clashes)} away and use --overwrite" if clashes else "use --overwrite"


def refuse_clashes(store: Store, clashes: Sequence[str]) -> None:
    """Raise OutputError, which names them, if there are clashes."""
    if clashes:
        raise OutputError(
            f"{store} holds {_name_some(clashes)}, in the way of the new set and not of an earlier one: move "
            f"{'it' if len(clashes) == 1 else 'them'} away first."
        )


def list_clashes(store: Store, contents: Contents, plan: Plan) -> list[str]:
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
