"""What `generate` would do, told without writing anything: images, bytes, time, and what it would refuse."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dim.runtime.bundle import Bundle
from dim.runtime.messages import say_to_log
from dim.runtime.sets.claim import continued, engine_for, find_set, old_bytes, opened_store, replaces
from dim.runtime.sets.estimate import check_space, try_out
from dim.runtime.sets.generate import drawing, images_left, is_whole, missing_parts, name_engine, parts_of, planned
from dim.runtime.sets.journal import part_is_there
from dim.runtime.sets.request import make_wish


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
    out: str | Path,
    *,
    counts: Sequence[int],
    seed: int = 0,
    start: int = 0,
    format: str = "imagefolder",
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    shard_images: int | None = None,
    shard_bytes: int | None = None,
    soft_labels: bool = False,
    workers: int = 1,
    say: Callable[[str], None] = say_to_log,
) -> SetEstimate:
    """Say what `generate` would do with the same arguments, from a few images drawn and encoded; writes nothing.

    Args:
        workers: workers that share the images, each as fast as this machine; they share no part.
        the rest: as `generate`.

    Raises:
        as `generate`, as far as it can be told beforehand.
    """
    wish = make_wish(
        bundle,
        counts=counts,
        seed=seed,
        start=start,
        format=format,
        shard=shard,
        shard_images=shard_images,
        shard_bytes=shard_bytes,
        soft_labels=soft_labels,
    )
    with opened_store(out) as store:
        found = find_set(store, wish, overwrite)
        if found is None or not is_whole(store, found):
            store.check_place()
        if found is None:
            check_space(store, wish.plan, wish.plan.images, None, old_bytes(store))
        with engine_for(bundle, found, say) as engine:
            plan = planned(wish, engine)
            if found is None or found.parts is None:
                found = continued(store, found, plan, overwrite)
            plan = found.plan if found is not None else plan
            draw = drawing(bundle, engine, plan)
            mine = parts_of(plan, shard)
            if found is None:
                check_space(store, plan, plan.images, draw, old_bytes(store))
                missing = plan.images_of(mine)
            elif found.parts is not None:
                missing = plan.images_of(
                    r.part for r in found.parts if r.part in mine and not part_is_there(store, plan, r)
                )
            else:
                check_space(store, plan, images_left(store, plan), draw)
                missing = plan.images_of(missing_parts(store, plan, mine))
            free = store.free()
            trial = try_out(plan, draw, free.block if free is not None else 1)
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
                resumes=found is not None,
                replaces=found is None and overwrite and replaces(store, plan),
            )
