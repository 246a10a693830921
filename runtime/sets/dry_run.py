"""Says what `generate` would do without writing anything: images, bytes, time, and what it would refuse."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dim.runtime.bundle import Bundle
from dim.runtime.messages import say_to_log
from dim.runtime.sets.claim import open_engine_for
from dim.runtime.sets.contents import check_replaceable, examine_place
from dim.runtime.sets.estimate import Trial, try_out
from dim.runtime.sets.finished import is_whole, list_missing_parts
from dim.runtime.sets.generate import check_shard, list_parts, name_engine, prepare, say_what_seed_keeps
from dim.runtime.sets.request import SetRequest
from dim.runtime.storage.place import check_place, measure_free, open_store


@dataclass(frozen=True, kw_only=True)
class SetEstimate:
    """What a run would do."""

    out: str
    format: str
    images: int
    """Images of the whole set."""
    images_missing: int
    """Images that this worker would draw."""
    parts: int
    part_images: int
    """Images of a part: of a file, where the format has several images in one."""
    bytes: int
    """About what the missing images will take, from a few that were drawn and encoded."""
    free_bytes: int | None
    """What is free there; None where nobody knows."""
    seconds: float
    """About how long it will take, by workers as fast as this machine."""
    workers: int
    """Workers at once; no more than there are parts."""
    engine: str
    resumes: bool
    """Whether the set is there already, in part or whole."""
    replaces: bool
    """Whether another set is there and would be removed."""


def estimate_set(
    bundle: Bundle,
    request: SetRequest,
    out: str | Path,
    *,
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    workers: int = 1,
    say: Callable[[str], None] = say_to_log,
) -> SetEstimate:
    """Say what `generate` would do with the same arguments, from a few images drawn and encoded; writes nothing.

    Args:
        workers: how many at once share the images, each as fast as this machine; they share no part.
        the rest: as `dim.runtime.sets.generate.generate`.

    Raises:
        as `generate`, as far as it can be told beforehand.
    """
    check_shard(shard)
    request.check(bundle)
    say_what_seed_keeps(bundle, request, say)
    with open_store(out) as store:
        contents = examine_place(store, bundle, request, overwrite)
        if contents.same is not None and is_whole(store, contents.same):
            free, replaces = measure_free(store), False
            plan, missing, resumes, trial = contents.same.plan, 0, True, Trial(image_bytes=0, seconds=0)
        else:
            check_place(store)
            free = measure_free(store)
            with open_engine_for(bundle, contents.same, say) as engine:
                prepared = prepare(store, bundle, request, contents, engine, overwrite)
                plan, begun = prepared.plan, prepared.contents.same
                resumes = begun is not None
                replaces = begun is None and overwrite and check_replaceable(store, prepared.contents, plan)
                mine = list_parts(plan, shard)
                missing = plan.images_of(list_missing_parts(store, begun, mine) if begun is not None else mine)
                trial = try_out(plan, prepared.draw, free.block if free is not None else 1)
    at_work = max(1, min(workers, plan.parts))
    return SetEstimate(
        out=str(store),
        format=plan.format,
        images=plan.images,
        images_missing=missing,
        parts=plan.parts,
        part_images=plan.part_images,
        bytes=round(missing * trial.image_bytes),
        free_bytes=free.bytes if free is not None else None,
        seconds=missing * trial.seconds / at_work,
        workers=at_work,
        engine=name_engine(plan),
        resumes=resumes,
        replaces=replaces,
    )
