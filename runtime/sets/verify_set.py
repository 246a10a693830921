"""Hash a set again and say what differs from its `dataset.json`; the images are not drawn again."""

import fnmatch
from collections.abc import Callable
from pathlib import Path

from dim.runtime.bundle_format.names import MANIFEST_NAME
from dim.runtime.errors import OutputError, printable
from dim.runtime.set_formats.part import PartRecord, name_file
from dim.runtime.set_formats.plan import Plan
from dim.runtime.set_formats.table import find_format
from dim.runtime.sets.croissant import PATTERN
from dim.runtime.sets.finished import hash_image_files
from dim.runtime.sets.journal import DATASET, SetFile, is_image, read_set
from dim.runtime.storage.local_store import STATE, Store
from dim.runtime.storage.object_store import is_remote
from dim.runtime.storage.place import find_folder, open_store

AddRow = Callable[[str, str, bool, str, str], None]
"""Takes subject, check, whether it passed, what was found, what is allowed."""
_SHOWN = 5
"""Foreign files of a folder that are named; more are counted."""


def is_set(place: str | Path) -> bool:
    """Say whether a set lies in a place rather than a bundle: a `dataset.json` and no `manifest.json`."""
    if is_remote(place) and str(place).startswith(("http://", "https://")):
        return False
    if not is_remote(place):
        folder = find_folder(place)
        return (folder / DATASET).exists() and not (folder / MANIFEST_NAME).exists()
    with open_store(place) as store:
        return store.read(DATASET) is not None


def verify_set(place: str | Path, add: AddRow) -> None:
    """Hash every file of a set again, and look for files that it does not list.

    Args:
        place: the set's folder, or a URL of an object store.
        add: gets one row per part, per other file and per folder with foreign files.

    Raises:
        OutputError: there is no set, its `dataset.json` is malformed, or the place cannot be read.
    """
    with open_store(place) as store:
        found = read_set(store)
        if found is None:
            raise OutputError(f"{store} holds no {DATASET}: name the folder of a set.")
        if found.written is None:
            add(DATASET, "complete", False, "not finished, or its records do not fit its plan", "complete")
            return
        add(DATASET, "complete", True, f"{found.plan.images:,} images in {found.plan.parts:,} parts", "complete")
        for record in found.written.parts:
            _verify_part(store, found.plan, record, add)
        for name, kept in sorted(found.written.files.items()):
            _verify_file(store, name, kept.sha256, add)
        _find_foreign_files(store, found, add)


def _verify_part(store: Store, plan: Plan, record: PartRecord, add: AddRow) -> None:
    for entry in record.files:
        _verify_file(store, entry.path, entry.sha256, add)
    if not record.files:
        paths = list(find_format(plan.format).files(plan, record.part))
        subject = f"part {record.part}, {paths[0]} to {paths[-1]}"
        try:
            sha256 = hash_image_files(store, plan, record)
        except OutputError as error:
            add(subject, "hash", False, str(error), "")
            return
        if sha256 is None:
            missing = next(path for path in paths if store.digest(path) is None)
            add(subject, "hash", False, f"{missing} is missing", "there")
        else:
            _add_hash(subject, sha256, record.sha256, add)


def _verify_file(store: Store, name: str, expected: str, add: AddRow) -> None:
    try:
        sha256 = store.digest(name)
    except OutputError as error:
        add(name, "hash", False, str(error), "")
        return
    if sha256 is None:
        add(name, "hash", False, "missing", "there")
    else:
        _add_hash(name, sha256, expected, add)


def _add_hash(subject: str, found: str, expected: str, add: AddRow) -> None:
    if found == expected:
        add(subject, "hash", True, "as it must be", "")
    else:
        add(subject, "hash", False, f"altered: {found[:12]}", f"{expected[:12]}")


def _find_foreign_files(store: Store, found: SetFile, add: AddRow) -> None:
    """Say which files lie in the set that it does not list; those that its readers would take are a failure."""
    plan, written = found.plan, found.written
    folders = find_format(plan.format).folders(plan)
    listed = {DATASET, STATE, *folders, *(written.files if written is not None else ())}
    counts: dict[str, int] = {}
    if plan.format != "imagefolder":
        listed |= {path for part in range(plan.parts) for path in find_format(plan.format).files(plan, part)}
    else:
        counts = dict(zip(plan.classes, plan.counts, strict=True))
        listed |= {name_file("logits", plan, part, ".npy") for part in range(plan.parts) if plan.soft_labels}
    for folder in ("", *folders):
        wrong: list[str] = []
        beside: list[str] = []
        for name in store.list(folder):
            path = f"{folder}/{name}" if folder else name
            if path in listed or (folder in counts and is_image(plan, name, counts[folder])):
                continue
            (wrong if folder or _is_read(store, name, PATTERN[plan.format]) else beside).append(printable(name))
        for names, check, ok, allowed in (
            (wrong, "not of this set", False, "nothing else"),
            (beside, "beside the set", True, "ignored"),
        ):
            if names:
                more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
                add(folder or ".", check, ok, ", ".join(names[:_SHOWN]) + more, allowed)


def _is_read(store: Store, name: str, pattern: str) -> bool:
    """Say whether a reader of the set would take a foreign name at its top for data."""
    folder, _, inside = pattern.rpartition("/")
    if folder:
        return fnmatch.fnmatchcase(name, folder) and bool(fnmatch.filter(store.list(name), inside))
    return fnmatch.fnmatchcase(name, pattern)
