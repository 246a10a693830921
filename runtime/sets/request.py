"""What a caller asks for, checked before anything is touched, and how it compares with the set that is there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dim.runtime.bundle import Bundle
from dim.runtime.bundle_format.folder_names import check_folder_names
from dim.runtime.bundle_format.names import FIXED_LATENTS, TEACHER_ONNX
from dim.runtime.engines.base import Engine
from dim.runtime.errors import BadValueError, BundleError
from dim.runtime.sampling.counts import MAX_PER_CLASS, check_shard
from dim.runtime.set_formats.plan import EngineInfo, Plan, choose_part_images
from dim.runtime.set_formats.table import part_format
from dim.runtime.sets.journal import SetFile
from dim.runtime.sets.soft_labels import teacher_version

_NO_ENGINE = EngineInfo(name="", version="", device="", precision="", batch=None)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A set as a caller asks for it: the plan without its engine and its cut."""

    plan: Plan
    shard: tuple[int, int]
    shard_images: int | None
    shard_bytes: int | None
    engine: dict[str, str | None]
    """Name, device and precision where the caller chose them."""

    def cut(self, batch: int | None) -> int:
        """Decide how many images make a part, for an engine's padded batch."""
        plan = self.plan
        shape = (plan.height, plan.width, plan.channels)
        return choose_part_images(
            plan.format,
            plan.images,
            shape,
            batch,
            self.shard_images,
            self.shard_bytes,
            plan.classes,
            plan.soft_labels,
        )


def make_wish(
    bundle: Bundle,
    *,
    counts: Sequence[int],
    seed: int,
    start: int,
    format: str,
    shard: tuple[int, int],
    shard_images: int | None,
    shard_bytes: int | None,
    soft_labels: bool,
) -> Wish:
    """Check a caller's arguments, which are those of `dim.runtime.sets.generate.generate`.

    Raises:
        BadValueError: one is out of range, or a class cannot be a folder.
        BundleError: soft labels are wanted and the bundle has no teacher.
        MissingExtraError: the format needs a package that is not installed.
    """
    manifest = bundle.manifest
    part_format(format)
    if len(counts) != len(manifest.classes) or not any(counts):
        raise BadValueError(
            f"counts has {len(counts)} numbers, the largest {max(counts, default=0)}; give one number for each of "
            f"{len(manifest.classes)} classes, at least one of them above 0."
        )
    if min(counts) < 0 or start < 0 or start + max(counts) > MAX_PER_CLASS:
        raise BadValueError(
            f"start is {start} and the counts go from {min(counts)} to {max(counts)}; indices go from 0 to 2**32 - 1."
        )
    if not 0 <= seed < 2**64:
        raise BadValueError(f"The seed is {seed}; it must lie between 0 and 2**64 - 1.")
    if format == "imagefolder":
        check_folder_names(manifest.classes, counts)
        if shard_images is not None or shard_bytes is not None:
            raise BadValueError("The format imagefolder has no shards; leave out their size, or choose another format.")
    if soft_labels and TEACHER_ONNX not in manifest.files:
        raise BundleError(f"The bundle {bundle.path} has no {TEACHER_ONNX} to make soft labels; leave them out.")
    plan = Plan(
        bundle=manifest.name,
        content_id=manifest.content_id,
        sampling_version=manifest.sampling.sampling_version,
        seed=seed,
        start=start,
        fixed_latents=bundle.fixed_latents and FIXED_LATENTS in manifest.files,
        classes=manifest.classes,
        counts=tuple(int(count) for count in counts),
        height=manifest.height,
        width=manifest.width,
        channels=manifest.channels,
        format=format,
        part_images=1,
        teacher=manifest.files[TEACHER_ONNX].sha256 if soft_labels else "",
        encoder=encoder_here(format, soft_labels),
        engine=_NO_ENGINE,
    )
    options = bundle.engine_options
    wish = Wish(
        plan=plan,
        shard=check_shard(shard),
        shard_images=shard_images,
        shard_bytes=shard_bytes,
        engine={
            "name": options.engine if options.engine != "auto" else None,
            "device": options.device if options.device != "auto" else None,
            "precision": options.precision,
        },
    )
    # The batch that rounds the default is not known yet; this checks the caller's own sizes.
    wish.cut(None)
    return wish


def encoder_here(format: str, soft_labels: bool) -> str:
    """Name the packages of this machine that decide a set's bytes besides the engine.

    Raises:
        MissingExtraError: one is not installed.
    """
    encoder = part_format(format).encoder()
    return f"{encoder}, teacher on {teacher_version()}" if soft_labels else encoder


def differs(found: SetFile, wish: Wish) -> str | None:
    """Say where the set on disk is not the one asked for, or return None.

    Engine and cut count only where the caller chose them; the encoder counts where there is something left to encode.
    """
    old = found.plan
    if (difference := old.difference(wish.plan, ignore=["engine", "part_images", "encoder"])) is not None:
        return difference
    if (wish.shard_images or wish.shard_bytes) and (cut := wish.cut(old.engine.batch)) != old.part_images:
        return f"part_images {old.part_images} instead of {cut}"
    for key, wanted in wish.engine.items():
        if wanted is not None and getattr(old.engine, key) != wanted:
            return f"engine {key} {getattr(old.engine, key)} instead of {wanted}"
    return None


def engine_info(engine: Engine) -> EngineInfo:
    """Describe an engine as a plan has it."""
    fields: dict[str, Any] = {
        name: getattr(engine, name) for name in ("name", "version", "device", "precision", "batch", "reason")
    }
    return EngineInfo(**fields)
