"""`dataset.json` and the journal: the plan of a set, and its finished parts.

`dataset.json` holds the plan from the start and, once every part is done, what was written, with hashes. Until then
`.dim/parts/` holds one record per finished part, so that workers share nothing; whoever finds the last part done
completes the set, and everybody would write the same bytes.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from dim.runtime.errors import BundleError, OutputError
from dim.runtime.set_formats.part import PartRecord, make_record, name_file
from dim.runtime.set_formats.plan import Plan
from dim.runtime.set_formats.table import find_format
from dim.runtime.storage import strict_json
from dim.runtime.storage.local_store import STATE, LocalStore, Store
from dim.runtime.storage.records import from_plain, parse_versioned, to_plain

DATASET = "dataset.json"
SET_LOCK = "begin"
"""The lock under which a set is begun, replaced and completed."""
ELSEWHERE = "make the set in another folder, or move this one away first."
"""What to do about a set that cannot be read; what belongs to it is not known, so nothing of it can be replaced."""
FORMAT_VERSION = 1
# The largest set has 65,536 classes with long names and MAX_PARTS parts of three files.
MAX_BYTES, MAX_VALUES = 2**28, 2**22
_IMAGE_NAME = re.compile(r"[0-9]{8,10}\.png")
# Formats whose files hold label numbers only.
WITH_CLASS_NAMES = ("npy", "webdataset")


@dataclass(frozen=True, kw_only=True)
class FileHash:
    """What is known of one of the set's other files: card, Croissant, class names."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a complete set holds."""

    images: int
    bytes: int
    parts: tuple[PartRecord, ...]
    files: Mapping[str, FileHash]
    """The set's other files by name."""


@dataclass(frozen=True, kw_only=True)
class SetFile:
    """The contents of `dataset.json`."""

    created_by: str
    complete: bool
    plan: Plan
    written: Written | None
    """None until every part is there."""

    def to_json(self) -> bytes:
        """Write the file."""
        return strict_json.write_indented({"format_version": FORMAT_VERSION} | to_plain(self))

    @staticmethod
    def from_json(data: bytes, place: str) -> "SetFile":
        """Read the file.

        Raises:
            OutputError: it is malformed or of a newer format.
        """
        where = f"{place}/{DATASET}"
        block = parse_versioned(
            data,
            where,
            version=FORMAT_VERSION,
            max_bytes=MAX_BYTES,
            max_values=MAX_VALUES,
            error=OutputError,
            advice=ELSEWHERE,
        )
        found = from_plain(SetFile, block, where, error=OutputError, advice=ELSEWHERE)
        found.plan.check()
        if found.written is None or not _fit(found.written.parts, found.plan):
            # Every part is looked at again.
            return replace(found, complete=False, written=None)
        return found


def _fit(parts: tuple[PartRecord, ...], plan: Plan) -> bool:
    """Say whether a complete set's records are those of its plan's parts, one for each, in order."""
    return [record.part for record in parts] == list(range(plan.parts)) and all(fits(plan, part) for part in parts)


def fits(plan: Plan, record: PartRecord) -> bool:
    """Say whether a record is that of its part in the plan: images, files by name, a hash that covers theirs."""
    if not record.part < plan.parts or record.images != plan.images_of([record.part]):
        return False
    if plan.format == "imagefolder":
        return not record.files
    paths = list(find_format(plan.format).files(plan, record.part))
    return [entry.path for entry in record.files] == paths and record == make_record(
        record.part, record.images, record.files
    )


class UnreadableSetError(OutputError):
    """A `dataset.json` is there and is malformed, of a newer dim, or no plain file."""


def read_set(store: Store) -> SetFile | None:
    """Read the `dataset.json` of a place, or return None where there is none.

    Raises:
        UnreadableSetError: it is malformed, of a newer format, or no plain file.
    """
    try:
        data = store.read(DATASET)
    except OutputError:
        if not isinstance(store, LocalStore):
            raise
        raise UnreadableSetError(f"{store}/{DATASET} is a link, no file, or too long: {ELSEWHERE}") from None
    try:
        return SetFile.from_json(data, str(store)) if data is not None else None
    except OutputError as error:
        raise UnreadableSetError(str(error)) from None


def begin_set(store: Store, plan: Plan, created_by: str) -> SetFile:
    """Write the plan, unless another worker has just done so; return what is there."""
    fresh = SetFile(created_by=created_by, complete=False, plan=plan, written=None)
    store.create(DATASET, fresh.to_json())
    found = read_set(store)
    if found is None:
        raise OutputError(f"{store}/{DATASET} vanished right after it was written: see whether {store} is still there.")
    return found


def note_part(store: Store, record: PartRecord) -> None:
    """Enter a finished part into the journal; an entry that a power cut takes costs one part."""
    store.put(f"{STATE}/parts/{record.part:06d}.json", strict_json.write_canonical(to_plain(record)))


def list_noted_parts(store: Store) -> set[int]:
    """List the parts that the journal has."""
    stems = [name.partition(".")[0] for name in store.list(f"{STATE}/parts")]
    return {int(stem) for stem in stems if stem.isdecimal()}


def read_part(store: Store, plan: Plan, part: int) -> PartRecord | None:
    """Read the journal's record of a part, or return None where it has none that is whole and of this plan."""
    data = store.read(f"{STATE}/parts/{part:06d}.json")
    if data is None:
        return None
    try:
        block = strict_json.parse(data, "the journal", 2**20)
        record = from_plain(PartRecord, block, "A record of a finished part")
    except BundleError:
        return None
    return record if record.part == part and fits(plan, record) else None


def complete_set(store: Store, found: SetFile, records: Iterable[PartRecord], extras: Mapping[str, bytes]) -> SetFile:
    """Write the set's other files, then `dataset.json` with everything in it, then remove the journal."""
    for name, data in extras.items():
        if store.read(name) != data:
            store.put(name, data, durable=True)
    parts = tuple(records)
    written = Written(
        images=sum(record.images for record in parts),
        bytes=sum(record.bytes for record in parts),
        parts=parts,
        files={
            name: FileHash(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in extras.items()
        },
    )
    complete = replace(found, complete=True, written=written)
    store.flush()
    store.put(DATASET, complete.to_json(), durable=True)
    clear_state(store)
    return complete


def clear_state(store: Store) -> None:
    """Remove all that is not the finished set; the caller holds `SET_LOCK`."""
    if not isinstance(store, LocalStore):
        store.remove(STATE, with_contents=True)
        return
    # The lock goes last: whoever waited for it finds that it is gone, and nothing that is being removed.
    locks = f"{STATE}/locks"
    for name in store.list(STATE):
        if (path := f"{STATE}/{name}") != locks:
            store.remove(path, with_contents=True)
            store.remove(path)
    for name in sorted(store.list(locks), key=lambda each: each == SET_LOCK):
        store.remove(f"{locks}/{name}")
    store.remove(locks)
    store.remove(STATE)


def remove_set(store: Store, found: SetFile) -> None:
    """Remove what an earlier set lists and nothing else; its `dataset.json` goes last, so this can be repeated."""
    there = set(store.list())
    folders = [folder for folder in find_format(found.plan.format).folders(found.plan) if folder in there]
    if isinstance(store, LocalStore):
        store.refuse_links(folders)
    for path in list_files_there(store, found.plan):
        store.remove(path)
    for folder in folders:
        store.remove(folder)
    for name in ("README.md", "croissant.json", *(["classes.json"] if found.plan.format in WITH_CLASS_NAMES else [])):
        store.remove(name)
    store.remove(f"{STATE}/parts", with_contents=True)
    if isinstance(store, LocalStore):
        store.make_folder(f"{STATE}/parts")
    store.remove(DATASET)


def is_image(plan: Plan, name: str, count: int) -> bool:
    """Say whether an image of a class with so many images has that name."""
    index = int(name[:-4]) if _IMAGE_NAME.fullmatch(name) else -1
    return plan.start <= index < plan.start + count and name == f"{index:08d}.png"


def list_files_there(store: Store, plan: Plan) -> Iterator[str]:
    """List the files of a plan that are there, in time that grows with the folder, not with what the plan says."""
    there = set(store.list())
    if plan.format == "imagefolder":
        for name, count in zip(plan.classes, plan.counts, strict=True):
            if count and name in there:
                yield from (f"{name}/{file}" for file in store.list(name) if is_image(plan, file, count))
        if plan.soft_labels:
            yield from (
                name for part in range(plan.parts) if (name := name_file("logits", plan, part, ".npy")) in there
            )
        return
    formats = find_format(plan.format)
    below = {folder: set(store.list(folder)) for folder in formats.folders(plan) if folder in there}
    for part in range(plan.parts):
        for path in formats.files(plan, part):
            folder, _, file = path.rpartition("/")
            if file in below.get(folder, there if not folder else ()):
                yield path
