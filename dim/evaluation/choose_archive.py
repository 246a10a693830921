"""Chooses the best archive of real images in a generator's bytes, on a hold-out of the training split."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from dim.data.image_set import ImageSet
from dim.evaluation.archive import LOSSLESS, Archive, find_candidates
from dim.evaluation.choose_recipe import TimeOverError, split_holdout
from dim.evaluation.files import write_json
from dim.evaluation.measure import Evaluation, Say, measure
from dim.evaluation.plan import bundle_bytes
from dim.evaluation.protocol import EvalProtocol, Execution
from dim.evaluation.subjects import Subject
from dim.evaluation.table import format_bytes
from dim.runtime.errors import BundleError
from dim.runtime.progress.show import Progress
from dim.runtime.storage import strict_json
from dim.runtime.storage.below import read_file
from dim.runtime.storage.records import from_plain, to_plain
from dim.students.recipes import resolve_recipe

CHOICE_NAME = "archive.json"
MAX_CHOICE_BYTES = 2**20


def choose_archive(
    data: ImageSet,
    subjects: Sequence[Subject],
    protocol: EvalProtocol,
    execution: Execution,
    *,
    out: Path,
    deadline: float | None,
    say: Say,
    progress: Progress,
) -> Archive | None:
    """Train a student on each of several archives of equal bytes and return the one with the best on the hold-out.

    Args:
        subjects: bundles; the size of the file that the first one's stream is drawn from is the archive's largest.
        protocol: of the evaluation; its first size, network and seed are taken. Its recipe is chosen already.
        out: folder of the students; `archive.json` holds the choice and the accuracy of every archive.
        data, execution, deadline, say, progress: as in `measure`.

    Returns:
        The archive; None where no image fits, or all of them do without loss, which is the control `real`.

    Raises:
        TimeOverError: the deadline left students untrained; the same call goes on.
        OutputError: `out` cannot be written.
        DataError: a class has a single image, so that nothing can be held out.
    """
    max_bytes = bundle_bytes(subjects[0].manifest, execution.image_precision, soft=False)
    single = _ask_once(protocol, data)
    asked = {
        "fingerprint": data.fingerprint(),
        "max_bytes": max_bytes,
        "protocol": to_plain(single),
        "precision": execution.choose_precision(),
    }
    path = out / CHOICE_NAME
    if execution.resume and (earlier := _read_choice(path, asked)):
        return earlier
    say(f"Looking for the best archive of real images in {format_bytes(max_bytes)}.")
    candidates = find_candidates(data, max_bytes)
    everything = max(data.class_counts)
    if not candidates:
        say(f"Not one image per class fits into {format_bytes(max_bytes)}, so no archive is compared.")
        return None
    if candidates[0].codec == LOSSLESS and candidates[0].images_per_class == everything:
        say(f"All real images fit into {format_bytes(max_bytes)} without loss, so `real` stands for the archive too.")
        return None
    chosen, rows = candidates[0], []
    if len(candidates) > 1:
        found = measure(
            (),
            split_holdout(data),
            single,
            execution,
            out,
            archives=candidates,
            deadline=deadline,
            progress=progress,
        )
        if not found.finished:
            raise TimeOverError(found)
        chosen, rows = _take_best(candidates, found, say), found.rows
    write_json(path, {"chosen": asdict(chosen), "asked": asked, "rows": rows}, f"The choice {path}")
    say(f"The archive of real images: {chosen}.")
    return chosen


def _ask_once(protocol: EvalProtocol, data: ImageSet) -> EvalProtocol:
    """The protocol of the students that decide: the first size, network and seed, archives alone."""
    return replace(
        protocol,
        ipcs=protocol.ipcs[:1],
        archs=protocol.archs[:1],
        seeds=protocol.seeds[:1],
        modes=("stream",),
        labels=("hard",),
        controls=("archive",),
        recipe=resolve_recipe(protocol.recipe, data.name, protocol.ipcs[0]),
        real_percents=(),
        whole_epochs=0,
        quality=False,
        privacy=False,
        features="",
    )


def _take_best(candidates: Sequence[Archive], found: Evaluation, say: Say) -> Archive:
    """The archive whose student is best on the hold-out; says what each one reached."""
    accuracies = {result.cell.archive: result.accuracy for result in found.results}
    for archive in candidates:
        say(f"Hold-out accuracy of {archive}: {accuracies[archive]:.2f} %.")
    return max(candidates, key=lambda archive: accuracies[archive])


def _read_choice(path: Path, asked: dict[str, object]) -> Archive | None:
    """Return what an earlier call chose, if it was asked the same."""
    try:
        described = strict_json.parse(
            read_file(path.parent, path.name, MAX_CHOICE_BYTES + 1), str(path), MAX_CHOICE_BYTES
        )
        if described["asked"] != asked:
            return None
        return from_plain(Archive, described["chosen"], str(path))
    except (OSError, BundleError, TypeError, KeyError):
        return None
