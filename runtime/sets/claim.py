"""Finding, beginning, resuming and replacing the set in a place."""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from dim.runtime.bundle import Bundle
from dim.runtime.choose_engine import open_engine
from dim.runtime.engines.base import Engine
from dim.runtime.errors import BadValueError, OutputError
from dim.runtime.set_formats.plan import Plan
from dim.runtime.sets.journal import (
    DATASET,
    SetFile,
    begin_set,
    own_names,
    read_set,
    refuse_clashes,
    refuse_foreign,
    remove_set,
    reopen,
)
from dim.runtime.sets.request import Wish, differs, engine_info
from dim.runtime.storage.local_store import LocalStore, Store
from dim.runtime.storage.object_store import is_remote
from dim.runtime.storage.remote_store import RemoteStore
from dim.version import __version__


@contextlib.contextmanager
def opened_store(out: str | Path) -> Iterator[Store]:
    """Open the place of a set and turn the operating system's errors there into sentences.

    Raises:
        BadValueError: the place is a URL that lacks a slash, or one that nothing can write to.
    """
    check_url(out)
    store: Store = RemoteStore(str(out)) if is_remote(out) else LocalStore(Path(str(out).removeprefix("file://")))
    try:
        yield store
    except OSError as error:
        raise store.explain(error) from error
    finally:
        store.close()


def check_url(out: str | Path) -> None:
    """Refuse `s3:/bucket/set`, which would become a local folder.

    Raises:
        BadValueError: the place is a URL that lacks a slash.
    """
    if slip := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)", str(out)):
        rest = str(out)[slip.end() :]
        raise BadValueError(
            f"{out} lacks a slash: write {slip[1]}://{rest} for the URL, or ./{out} for a folder of that name."
        )


def find_set(store: Store, wish: Wish, overwrite: bool) -> SetFile | None:
    """Return the set that is there if it is the one asked for, or None where a new one may begin.

    Raises:
        OutputError: another set, or foreign files, and no `overwrite`.
    """
    try:
        found = read_set(store)
    except OutputError:
        if not overwrite:
            raise
        return None
    if found is None:
        if not overwrite:
            refuse_foreign(store)
        return None
    difference = differs(found, wish)
    if difference is None:
        return found
    if not overwrite:
        raise OutputError(
            f"{store} holds another set ({difference}): choose another folder, or use --overwrite to replace that set."
        )
    return None


@contextlib.contextmanager
def engine_for(bundle: Bundle, found: SetFile | None, say: Callable[[str], None]) -> Iterator[Engine]:
    """Open the engine of a plan that was begun, else the bundle's own."""
    if found is None:
        yield bundle.engine
        return
    wanted, chosen = found.plan.engine, bundle.opened_engine
    if chosen is not None and engine_info(chosen) == wanted:
        yield chosen
        return
    options = replace(bundle.engine_options, engine=wanted.name, device=wanted.device, precision=wanted.precision)
    engine = open_engine(bundle.path, bundle.manifest, options, batch=wanted.batch, say=say)
    try:
        yield engine
    finally:
        engine.close()


def continued(store: Store, found: SetFile | None, plan: Plan, overwrite: bool) -> SetFile | None:
    """Return the set that is there if this machine would go on with the same bytes, or None where a new one begins.

    Args:
        store: the place.
        found: the set that is there, or None.
        plan: with the engine and the encoder of this machine; the rest is not looked at.
        overwrite: whether to begin anew rather than refuse.

    Raises:
        OutputError: the set was begun with another engine, version, batch or encoder, and no `overwrite`.
    """
    if found is None:
        return None
    difference = found.plan.difference(replace(found.plan, engine=plan.engine, encoder=plan.encoder))
    if difference is None:
        return found
    if not overwrite:
        raise OutputError(
            f"The set in {store} was begun with {difference}, and the rest would not be the same bytes: "
            "go on with that, or use --overwrite to start anew."
        )
    return None


def claim_set(store: Store, wish: Wish, found: SetFile | None, plan: Plan, overwrite: bool) -> SetFile:
    """Return the set to work on: the one found, or a new one, written down unless another worker was faster.

    Args:
        store: the place.
        wish: what was asked for.
        found: the set that is there, or None.
        plan: the plan to begin with, its engine and cut filled in.
        overwrite: whether to replace another set.
    """
    store.begin_state()
    if found is None:
        with store.lock("begin"):
            # Between the first look and the lock another worker may have begun this very set.
            if (found := continued(store, find_set(store, wish, overwrite), plan, overwrite)) is None:
                if overwrite:
                    _remove_old(store, plan)
                found = begin_set(store, plan, f"dim {__version__}")
    return reopen(store, found) if found.parts is not None else found


def old_bytes(store: Store) -> int:
    """Count the bytes that replacing the set in a place sets free."""
    try:
        old = read_set(store)
    except OutputError:
        return 0
    return sum(record.bytes for record in old.parts or ()) if old is not None else 0


def replaces(store: Store, plan: Plan) -> bool:
    """Say whether there is a set that `overwrite` would remove for a new one.

    Raises:
        OutputError: something else has a name that the new set needs.
    """
    try:
        old = read_set(store)
    except OutputError:
        # Malformed; its parts are not known, so everything else stays.
        refuse_clashes(store, plan, {DATASET})
        return True
    refuse_clashes(store, plan, own_names(old.plan) if old is not None else set())
    return old is not None


def _remove_old(store: Store, plan: Plan) -> None:
    """Remove the set that is to be replaced, and check that what stays does not mix with the new one."""
    try:
        old = read_set(store)
    except OutputError:
        old = None
        store.remove(DATASET)
    if old is not None:
        remove_set(store, old)
    refuse_clashes(store, plan)
