"""Finds the finished parts of a set: the record fits the plan, the files exist and, if asked, match their hashes.

In a folder the sizes of all parts are checked, which is cheap. When a set is resumed, the newest parts are hashed,
because a power cut may have damaged them; all parts are hashed if the caller asks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from dim.runtime.set_formats.part import FileEntry, PartRecord, make_record
from dim.runtime.set_formats.plan import Plan
from dim.runtime.set_formats.table import find_format
from dim.runtime.sets.journal import DATASET, FileHash, SetFile, list_noted_parts, note_part, read_part, read_set
from dim.runtime.storage.local_store import LocalStore, Store, make_altered_error
from dim.runtime.storage.object_store import is_remote
from dim.runtime.storage.place import open_store

FILES_AT_ONCE = 256
"""Image files of which the hashes are asked for together."""
NEWEST_BYTES = 2**28
"""Files of the newest finished parts that are always hashed, together; at least one part."""
NEWEST_OBJECT_BYTES = 2**26
"""The same in an object store, from which they are fetched."""


def is_part_there(store: Store, plan: Plan, record: PartRecord) -> bool:
    """Check that a finished part's files still have their sizes; an object store is believed."""
    if not isinstance(store, LocalStore):
        return True
    if record.files:
        return all(store.size(entry.path) == entry.bytes for entry in record.files)
    total = 0
    for path in find_format(plan.format).files(plan, record.part):
        size = store.size(path)
        if size is None:
            return False
        total += size
    return total == record.bytes


def is_whole(store: Store, found: SetFile) -> bool:
    """Say whether a set is complete and its files are there: parts with their sizes, its other files as they were.

    Raises:
        OutputError: the card, or another file beside the parts, was altered.
    """
    return (
        found.written is not None
        and all(is_part_there(store, found.plan, part) for part in found.written.parts)
        and all(_is_other_there(store, name, known) for name, known in found.written.files.items())
    )


def _is_other_there(store: Store, name: str, known: FileHash) -> bool:
    """Check that one of the set's small files is there and unaltered; an object store is believed."""
    if not isinstance(store, LocalStore):
        return True
    if (size := store.size(name)) is None:
        return False
    if size != known.bytes or store.digest(name) != known.sha256:
        raise make_altered_error(store, name)
    return True


def list_finished_parts(store: Store, found: SetFile, parts: Iterable[int]) -> list[PartRecord]:
    """List the records of those of some parts that are finished and of which no file went missing."""
    if found.written is not None:
        written = {record.part: record for record in found.written.parts}
        records = [written.get(part) for part in parts]
    else:
        noted = list_noted_parts(store)
        records = [read_part(store, found.plan, part) for part in parts if part in noted]
    return [record for record in records if record is not None and is_part_there(store, found.plan, record)]


def list_missing_parts(store: Store, found: SetFile, parts: Iterable[int]) -> list[int]:
    """List those of some parts that were not finished or of which a file went missing."""
    parts = list(parts)
    finished = {record.part for record in list_finished_parts(store, found, parts)}
    return [part for part in parts if part not in finished]


def count_images_left(store: Store, found: SetFile) -> int:
    """Count the images that are not finished, of all shards; the files of parts in the journal are not looked at."""
    parts = range(found.plan.parts)
    if found.written is not None:
        return found.plan.images_of(list_missing_parts(store, found, parts))
    return found.plan.images_of(set(parts) - list_noted_parts(store))


def list_altered_parts(store: Store, plan: Plan, records: Iterable[PartRecord], every: bool = False) -> list[int]:
    """List the finished parts of which a file is no longer what was written, by hashing it again.

    Args:
        store: the set's place.
        plan: its plan.
        records: finished parts, in order.
        every: all of them; otherwise the newest.

    Returns:
        the parts of which a file went missing, or an image differs.

    Raises:
        OutputError: a file that has a hash of its own differs.
    """
    return [record.part for record in _choose(store, list(records), every) if not _is_unaltered(store, plan, record)]


def _choose(store: Store, records: list[PartRecord], every: bool) -> Iterator[PartRecord]:
    if every:
        yield from records
        return
    left = NEWEST_BYTES if isinstance(store, LocalStore) else NEWEST_OBJECT_BYTES
    for number, record in enumerate(reversed(records)):
        if number and record.bytes > left:
            return
        left -= record.bytes
        yield record


def _is_unaltered(store: Store, plan: Plan, record: PartRecord) -> bool:
    if not record.files:
        # Images are drawn again, which finds the file that differs.
        return hash_image_files(store, plan, record) == record.sha256
    digests = [store.digest(entry.path) for entry in record.files]
    for entry, sha256 in zip(record.files, digests, strict=True):
        if sha256 not in (None, entry.sha256):
            raise make_altered_error(store, entry.path)
    return None not in digests


def hash_image_files(store: Store, plan: Plan, record: PartRecord) -> str | None:
    """Hash the files of a part whose record does not list them, or return None where one is missing."""
    paths = list(find_format(plan.format).files(plan, record.part))
    entries: list[FileEntry] = []
    for start in range(0, len(paths), FILES_AT_ONCE):
        some = paths[start : start + FILES_AT_ONCE]
        for path, sha256 in zip(some, store.digest_small(some), strict=True):
            if sha256 is None:
                return None
            entries.append(FileEntry(path=path, bytes=0, sha256=sha256))
    return make_record(record.part, record.images, entries).sha256


def describe_kept(out: str | Path) -> str:
    """Say in one sentence what an interrupted run left of a set."""
    if is_remote(out):
        return f"What is finished is kept in {out}: the same command completes the set."
    with open_store(out) as store:
        found = read_set(store)
        images = 0 if found is None else found.plan.images - count_images_left(store, found)
        if found is None or not images:
            return f"No part of the set in {store} is finished yet, so nothing is kept: the same command begins again."
        return (
            f"What is finished is kept in {store}, {images:,} of {found.plan.images:,} images: the same command "
            "completes the set."
        )


def reopen(store: Store, found: SetFile) -> SetFile:
    """Turn a complete set of which files went missing back into an unfinished one."""
    for record in found.written.parts if found.written is not None else ():
        if is_part_there(store, found.plan, record):
            note_part(store, record)
    unfinished = replace(found, complete=False, written=None)
    store.put(DATASET, unfinished.to_json(), durable=True)
    return unfinished
