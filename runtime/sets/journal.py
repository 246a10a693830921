"""`dataset.json` and the journal: what a set is to hold, and what of it is there.

`dataset.json` holds the plan from the start and, once every part is done, what was written, with hashes. Until then
`.dim/parts/` holds one record per finished part, so that workers share nothing; whoever finds the last part done
completes the set, and everybody would write the same bytes.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, replace
from typing import Any

from dim.runtime.errors import BundleError, OutputError
from dim.runtime.set_formats.part import PartRecord, numbered
from dim.runtime.set_formats.plan import Plan
from dim.runtime.set_formats.table import part_format
from dim.runtime.storage import strict_json
from dim.runtime.storage.local_store import STATE, Store

DATASET = "dataset.json"
FORMAT_VERSION = 1
# The largest set has 65,536 classes with long names and MAX_PARTS parts of three files.
MAX_BYTES, MAX_VALUES = 2**28, 2**22
_IMAGE_NAME = re.compile(r"[0-9]{8,10}\.png")
# Formats whose files hold label numbers only.
WITH_CLASS_NAMES = ("npy", "webdataset")


@dataclass(frozen=True, kw_only=True)
class SetFile:
    """The contents of `dataset.json`."""

    created_by: str
    plan: Plan
    parts: tuple[PartRecord, ...] | None
    """The finished parts; None until all are."""
    extras: dict[str, dict[str, Any]]
    """Bytes and SHA-256 of the set's other files: card, Croissant, class names."""

    def to_json(self) -> bytes:
        """Write the file."""
        written: dict[str, Any] | None = None
        if self.parts is not None:
            written = {
                "images": sum(record.images for record in self.parts),
                "bytes": sum(record.bytes for record in self.parts),
                "parts": [record.to_dict() for record in self.parts],
                "files": self.extras,
            }
        return strict_json.indented(
            {
                "format_version": FORMAT_VERSION,
                "created_by": self.created_by,
                "complete": written is not None,
                "plan": self.plan.to_dict(),
                "written": written,
            }
        )

    @staticmethod
    def from_json(data: bytes, place: str) -> "SetFile":
        """Read the file.

        Raises:
            OutputError: it is malformed or of a newer format.
        """
        try:
            block = strict_json.parse(data, f"{place}/{DATASET}", MAX_BYTES, MAX_VALUES)
        except BundleError as error:
            raise OutputError(f"{error} Move the folder's contents away, or choose another folder.") from None
        if not isinstance(block, dict) or type(block.get("format_version")) is not int or "plan" not in block:
            raise OutputError(f"{place}/{DATASET} was not written by dim; choose another folder.")
        if block["format_version"] > FORMAT_VERSION:
            raise OutputError(
                f"The set in {place} has format version {block['format_version']} and was made by a newer dim; "
                "run  pip install --upgrade dim-distill"
            )
        plan = Plan.from_dict(block["plan"])
        written, parts, extras = block.get("written"), None, {}
        if written is not None:
            if not isinstance(written, dict) or not isinstance(written.get("parts"), list):
                raise OutputError(f"{place}/{DATASET} is malformed at written; use --overwrite to start anew.")
            parts = tuple(PartRecord.from_dict(record) for record in written["parts"])
            extras = written.get("files", {})
            if not _fits(parts, plan):
                parts, extras = None, {}  # not complete, so every part is looked at again
        return SetFile(created_by=str(block.get("created_by", "")), plan=plan, parts=parts, extras=extras)


def _fits(parts: tuple[PartRecord, ...], plan: Plan) -> bool:
    """Say whether a complete set's records are those of its plan's parts, one for each, in order."""
    if [(record.part, record.images) for record in parts] != [(p, plan.images_of([p])) for p in range(plan.parts)]:
        return False
    if plan.format == "imagefolder":
        return not any(record.files for record in parts)
    files = part_format(plan.format).files
    return all([entry.path for entry in record.files] == list(files(plan, record.part)) for record in parts)


def read_set(store: Store) -> SetFile | None:
    """Read the `dataset.json` of a place, or return None where there is none."""
    data = store.read(DATASET)
    return SetFile.from_json(data, str(store)) if data is not None else None


def own_names(plan: Plan) -> set[str]:
    """List the names that a set uses at the top of its folder."""
    formats = part_format(plan.format)
    names = {DATASET, STATE, "README.md", "croissant.json"}
    names |= {folder.partition("/")[0] for folder in formats.folders(plan)}
    for part in range(plan.parts):
        if plan.format == "imagefolder":
            names |= {numbered("logits", plan, part, ".npy")} if plan.soft_labels else set()
        else:
            names |= {path.partition("/")[0] for path in formats.files(plan, part)}
    return names | ({"classes.json"} if plan.format in WITH_CLASS_NAMES else set())


def refuse_foreign(store: Store) -> None:
    """Check that a place without a set of ours is empty.

    Raises:
        OutputError: it is not.
    """
    if foreign := [name for name in store.list() if name != STATE]:
        raise OutputError(
            f"{store} already holds '{foreign[0]}' and no set of ours: choose an empty folder, "
            "or use --overwrite to write beside what is there."
        )


def refuse_clashes(store: Store, plan: Plan, replaced: Set[str] = frozenset()) -> None:
    """Check that a new set would not mix with what is in its place; names in `replaced` go with the old set.

    Raises:
        OutputError: a file or folder has a name that the set needs.
    """
    if clashing := sorted(own_names(plan).intersection(store.list()) - {STATE} - replaced):
        raise OutputError(
            f"{store} holds '{clashing[0]}', which the new set needs and no earlier set lists: move it away first."
        )


def begin_set(store: Store, plan: Plan, created_by: str) -> SetFile:
    """Write the plan, unless another worker has just done so; return what is there."""
    fresh = SetFile(created_by=created_by, plan=plan, parts=None, extras={})
    store.create(DATASET, fresh.to_json())
    found = read_set(store)
    if found is None:
        raise OutputError(f"{store}/{DATASET} vanished right after it was written: see whether {store} is still there.")
    return found


def make_folders(store: Store, plan: Plan) -> None:
    """Make the folders of a set's files."""
    for folder in part_format(plan.format).folders(plan):
        store.make_folder(folder)


def note_part(store: Store, record: PartRecord) -> None:
    """Enter a finished part into the journal; an entry that a power cut takes costs one part."""
    store.put(f"{STATE}/parts/{record.part:06d}.json", strict_json.canonical(record.to_dict()))


def noted_parts(store: Store) -> set[int]:
    """List the parts that the journal has."""
    stems = [name.partition(".")[0] for name in store.list(f"{STATE}/parts")]
    return {int(stem) for stem in stems if stem.isdecimal()}


def read_part(store: Store, part: int) -> PartRecord | None:
    """Read the journal's record of a part, or return None where it has none that is whole."""
    data = store.read(f"{STATE}/parts/{part:06d}.json")
    if data is None:
        return None
    try:
        record = PartRecord.from_dict(strict_json.parse(data, "the journal", 2**20))
    except (BundleError, OutputError):
        return None
    return record if record.part == part else None


def part_is_there(store: Store, plan: Plan, record: PartRecord) -> bool:
    """Check that a finished part's files still have their sizes; an object store is believed."""
    if store.remote:
        return True
    if record.files:
        return all(store.size(entry.path) == entry.bytes for entry in record.files)
    total = 0
    for path in part_format(plan.format).files(plan, record.part):
        size = store.size(path)
        if size is None:
            return False
        total += size
    return total == record.bytes


def reopen(store: Store, found: SetFile) -> SetFile:
    """Turn a complete set of which files went missing back into an unfinished one."""
    for record in found.parts or ():
        if part_is_there(store, found.plan, record):
            note_part(store, record)
    unfinished = replace(found, parts=None, extras={})
    store.put(DATASET, unfinished.to_json(), durable=True)
    return unfinished


def complete_set(store: Store, found: SetFile, records: Iterable[PartRecord], extras: dict[str, bytes]) -> SetFile:
    """Write the set's other files, then `dataset.json` with everything in it, then remove the journal."""
    store.put_all({name: data for name, data in extras.items() if store.read(name) != data})
    listed = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in extras.items()}
    complete = replace(found, parts=tuple(records), extras=listed)
    store.flush()
    store.put(DATASET, complete.to_json(), durable=True)
    store.clear_state()
    return complete


def remove_set(store: Store, found: SetFile) -> None:
    """Remove what an earlier set lists and nothing else; its `dataset.json` goes last, so this can be repeated."""
    there = set(store.list())
    folders = [folder for folder in part_format(found.plan.format).folders(found.plan) if folder in there]
    store.refuse_links(folders)
    for path in files_there(store, found.plan):
        store.remove(path)
    for folder in folders:
        store.remove_folder(folder)
    for name in ("README.md", "croissant.json", *(["classes.json"] if found.plan.format in WITH_CLASS_NAMES else [])):
        store.remove(name)
    store.clear_journal()
    store.remove(DATASET)


def files_there(store: Store, plan: Plan) -> Iterator[str]:
    """List the files of a plan that are there, in time that grows with the folder, not with what the plan says."""
    there = set(store.list())
    if plan.format == "imagefolder":
        for name, count in zip(plan.classes, plan.counts, strict=True):
            if count and name in there:
                for file in store.list(name):
                    index = int(file[:-4]) if _IMAGE_NAME.fullmatch(file) else -1
                    if plan.start <= index < plan.start + count and file == f"{index:08d}.png":
                        yield f"{name}/{file}"
        if plan.soft_labels:
            yield from (name for part in range(plan.parts) if (name := numbered("logits", plan, part, ".npy")) in there)
        return
    formats = part_format(plan.format)
    below = {folder: set(store.list(folder)) for folder in formats.folders(plan) if folder in there}
    for part in range(plan.parts):
        for path in formats.files(plan, part):
            folder, _, file = path.rpartition("/")
            if file in below.get(folder, there if not folder else ()):
                yield path
