"""A caller's request for a set, and the plan made from it once bundle and engine are known."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dim.runtime.bundle import Bundle
from dim.runtime.bundle_format.folder_names import check_folder_names
from dim.runtime.bundle_format.names import FIXED_LATENTS, TEACHER_ONNX
from dim.runtime.engines.base import Engine
from dim.runtime.errors import BadValueError, BundleError
from dim.runtime.sampling.counts import check_size, resolve_counts
from dim.runtime.set_formats.plan import EngineInfo, Plan, choose_part_images
from dim.runtime.set_formats.table import find_format
from dim.runtime.sets.pipeline import check_encoders
from dim.runtime.sets.soft_labels import name_teacher_library

_MAX_OPTIONS_CHARS = 200
NO_ENGINE = EngineInfo(name="", version="", device="", precision="", batch=None)
"""Stands for an engine that nobody has chosen yet."""


@dataclass(frozen=True, kw_only=True)
class SetRequest:
    """A training set as a caller asks for it; any bundle can serve it that has the classes named.

    Its size is said by exactly one of `ipc`, `ratio`, `total` and `per_class`.

    Raises:
        BadValueError: no size or two, or a value out of range.
        MissingExtraError: the format needs a package that is not installed.

    Examples:
        >>> request = SetRequest(ipc=50, format="npz", seed=1)
    """

    ipc: int | None = None
    """Images per class, 1 to 2**32."""
    ratio: float | None = None
    """Size relative to the source set, above 0; keeps the source's balance of classes."""
    total: int | None = None
    """Images in all, at least one per class; keeps the source's balance of classes."""
    per_class: Mapping[str, int] | Sequence[int] | None = None
    """Images by class name, others get none; or one number for each class of the bundle, in its order."""
    classes: str | Sequence[str | int] | None = None
    """Names or labels of the classes wanted; None for all. Does not go with `per_class`."""
    start: int = 0
    """The first index of every class; continues another set of the same seed."""
    seed: int = 0
    """0 to 2**64 - 1; another seed draws other images, except those whose latents the bundle optimised for fixed sets
    (`open_bundle(fixed_latents=False)` leaves these out)."""
    format: str = "imagefolder"
    """"imagefolder", "npz", "npy", "parquet" or "webdataset"."""
    shard_images: int | None = None
    """Images per file; by default NPZ and NPY are one file, shards of the others grow with the set."""
    shard_bytes: int | None = None
    """Largest file in bytes, instead of `shard_images`."""
    soft_labels: bool = False
    """Whether the logits of the bundle's teacher are written beside the images, float16 [N, K]."""
    encoders: int | None = None
    """PNG files made at once, 1 to 64, by processes of 15 MiB each; None for the usable cores less one, between 1
    and 2."""

    def __post_init__(self) -> None:
        check_size(self.ipc, self.ratio, self.total, self.per_class, self.classes, self.start)
        check_encoders(self.encoders)
        find_format(self.format)
        if not 0 <= self.seed < 2**64:
            raise BadValueError(f"The seed is {self.seed}; it must lie between 0 and 2**64 - 1.")
        if self.format == "imagefolder" and (self.shard_images is not None or self.shard_bytes is not None):
            raise BadValueError("The format imagefolder has no shards; leave out their size, or choose another format.")

    def check(self, bundle: Bundle) -> None:
        """Check that a bundle can serve the request, before any engine is opened.

        Args:
            bundle: the bundle.

        Raises:
            BadValueError: the bundle was opened in the precision "auto", a class is unknown or cannot be a folder, or a
                size is out of range.
            BundleError: soft labels are wanted and the bundle has no teacher.
            MissingExtraError: a package that writes the format or runs the teacher is not installed.
        """
        if bundle.engine_options.precision == "auto":
            raise BadValueError(
                "The precision auto differs between machines, so a set needs a fixed one: fp32 (the default), "
                "bf16, fp16 or int8."
            )
        self.plan(bundle, NO_ENGINE)

    def plan(self, bundle: Bundle, engine: EngineInfo) -> Plan:
        """Decide everything that makes the bytes of the set.

        Args:
            bundle: the bundle.
            engine: the engine that is to draw; its padded batch rounds the default size of a part.

        Returns:
            the plan, with the PNG encoder of this machine.

        Raises:
            BadValueError: a class is unknown or cannot be a folder, or a size is out of range.
            BundleError: soft labels are wanted and the bundle has no teacher.
            MissingExtraError: a package that writes the format or runs the teacher is not installed.
        """
        manifest = bundle.manifest
        counts = resolve_counts(
            manifest, self.ipc, self.ratio, self.total, self.per_class, self.classes, start=self.start
        )
        if self.format == "imagefolder":
            check_folder_names(manifest.classes, counts)
        if self.soft_labels and TEACHER_ONNX not in manifest.files:
            raise BundleError(f"The bundle {bundle.path} has no {TEACHER_ONNX} to make soft labels; leave them out.")
        part_images = choose_part_images(
            self.format,
            sum(counts),
            (manifest.height, manifest.width, manifest.channels),
            engine.batch,
            self.shard_images,
            self.shard_bytes,
            manifest.classes,
            self.soft_labels,
        )
        return Plan(
            bundle=manifest.name,
            content_id=manifest.content_id,
            sampling_version=manifest.sampling.sampling_version,
            seed=self.seed,
            start=self.start,
            fixed_latents=bundle.fixed_latents and FIXED_LATENTS in manifest.files,
            classes=manifest.classes,
            counts=counts,
            height=manifest.height,
            width=manifest.width,
            channels=manifest.channels,
            format=self.format,
            part_images=part_images,
            teacher=manifest.files[TEACHER_ONNX].sha256 if self.soft_labels else "",
            encoder=_name_encoder(self.format, self.soft_labels),
            engine=engine,
        )

    def describe_difference(self, bundle: Bundle, found: Plan) -> str | None:
        """Say where the plan of a set that is there is not what is asked for, or return None.

        Engine and images per part count only where the caller chose them; the encoder counts where there is something
        left to encode.

        Args:
            bundle: the bundle.
            found: the plan of the set that is there.

        Returns:
            what differs, as a clause; None where the set that is there is the one that is asked for.
        """
        chose_cut = self.shard_images is not None or self.shard_bytes is not None
        ignore = ["encoder"] if chose_cut else ["encoder", "part_images"]
        if (difference := found.describe_difference(self.plan(bundle, found.engine), ignore)) is not None:
            return difference
        options = bundle.engine_options
        for name, old, wanted in (
            ("name", found.engine.name, options.engine),
            ("device", found.engine.device, options.device),
            ("precision", found.engine.precision, options.precision),
        ):
            if wanted not in (None, "auto", old):
                return f"engine {name} {old} instead of {wanted}"
        return None


def describe_engine(engine: Engine) -> EngineInfo:
    """Describe an engine as a plan has it."""
    return EngineInfo(
        name=engine.name,
        version=engine.version,
        device=engine.device,
        precision=engine.precision,
        batch=engine.batch,
        reason=engine.reason,
    )


def name_options(plan: Plan, bundle: Bundle) -> str | None:
    """Return the options of `dim generate` that ask for the set of a plan, in one of the ways there are.

    Args:
        plan: of a set that was begun; its engine and the size of its parts need no option.
        bundle: the bundle that is open.

    Returns:
        options and values; None where the set is of another bundle, or they are too long to type.
    """
    if plan.content_id != bundle.manifest.content_id:
        return None
    counts = {name: count for name, count in zip(plan.classes, plan.counts, strict=True) if count}
    some = tuple(counts) if len(counts) < len(plan.classes) else ()
    classes = [f"--class {shlex.quote(name)}" for name in some]
    if len(set(counts.values())) == 1:
        words = [f"--ipc {max(plan.counts)}", *classes]
    elif _share_total(plan, bundle, some) == plan.counts:
        words = [f"--total {plan.images}", *classes]
    elif any("," in name or '"' in name or name != name.strip() for name in counts):
        return None
    else:
        words = ["--per-class " + shlex.quote(",".join(f"{name}={count}" for name, count in counts.items()))]
    words += [f"--start {plan.start}"] * (plan.start > 0) + [f"--seed {plan.seed}"] * (plan.seed > 0)
    words += [f"--format {plan.format}"] * (plan.format != "imagefolder") + ["--soft-labels"] * plan.soft_labels
    words += ["--no-fixed-latents"] * (FIXED_LATENTS in bundle.manifest.files and not plan.fixed_latents)
    options = " ".join(words)
    return options if len(options) <= _MAX_OPTIONS_CHARS else None


def _share_total(plan: Plan, bundle: Bundle, classes: tuple[str, ...]) -> tuple[int, ...] | None:
    """Share a plan's images among classes as `--total` does; None where that cannot be."""
    try:
        return resolve_counts(bundle.manifest, total=plan.images, classes=classes or None)
    except BadValueError:
        return None


def _name_encoder(format: str, soft_labels: bool) -> str:
    """Name the packages of this machine that decide a set's bytes besides the engine."""
    encoder = find_format(format).encoder()
    return f"{encoder}, teacher on {name_teacher_library()}" if soft_labels else encoder
