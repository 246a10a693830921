"""The presets: named default configurations."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from dim.config import (
    AdversarialConfig,
    DeploymentConfig,
    DiscriminatorConfig,
    DistillConfig,
    FilterConfig,
    GeneratorConfig,
    MatchingConfig,
    PoolConfig,
    StageConfig,
    from_dict,
    to_dict,
)
from dim.policy import default_policy
from dim.runtime.errors import BadValueError

PAPER_MATCHING_WEIGHT = 0.01
"""Weight of the published matching loss, as published."""
MIN_IMAGES_WITHOUT_CROP = 1000
"""Training images per class from which on the discriminator's images are not shifted. Shifts keep it from memorising
few images. With the 6,000 of MNIST students of `stream` were 0.6 points better without them. With the 5,000 of four
classes of CIFAR-10 shifts made the position of objects unobservable."""

CANDIDATES, MAX_CLASSES_FILTERED = 16_384, 32
"""Candidates per class that `best` judges; 70 % of them are more than 1,000 epochs of ten images take. Those of ten
classes take 20 kB in the bundle. With more classes than `MAX_CLASSES_FILTERED` none are."""


class DataShape(Protocol):
    """What a preset asks of a dataset; `ImageSet` has it."""

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def class_counts(self) -> tuple[int, ...]: ...
    @property
    def height(self) -> int: ...
    @property
    def channels(self) -> int: ...


def _has_many_images(data: DataShape) -> bool:
    return sum(data.class_counts) >= MIN_IMAGES_WITHOUT_CROP * len(data.classes)


def _survives_flip(data: DataShape) -> bool:
    """Whether the classes are known to survive a horizontal flip."""
    return "flip" in default_policy(data.name)


def _discriminator_augment(data: DataShape, augment: str) -> str:
    """The discriminator's augmentation: `augment` for few images, none for many; flips too where classes allow them.

    The discriminator cannot observe what augmentation changes in real and generated images alike. With shifts,
    generated objects lie anywhere, and students that shift nothing learn less (docs/concepts/how-it-works.md).
    """
    kinds = ["flip"] * _survives_flip(data) + [augment] * (not _has_many_images(data))
    return "_".join(kinds)


def _tiny(data: DataShape) -> DistillConfig:
    """Small images in about a minute on two CPU cores: digits."""
    adversarial = AdversarialConfig(
        augment="crop=0.125", ema_halflife_kimg=5.0, generator_lr=2e-4, discriminator_lr=1e-3
    )
    return DistillConfig(
        name="",
        preset="tiny",
        generator=GeneratorConfig(latent_dim=32, width=32, max_width=64),
        discriminator=DiscriminatorConfig(width=32, max_width=64),
        stage1=StageConfig(steps=1200, batch_size=64, adversarial=adversarial),
        pool=PoolConfig(architectures=("convnet3", "resnet10"), width=16, ages=(50, 200), augment="crop=0.125"),
        stage2=StageConfig(steps=300, batch_size=64, adversarial=replace(adversarial, final_lr_fraction=0.1)),
        matching=MatchingConfig(augment="crop=0.125"),
        deployment=DeploymentConfig(latent_stds=(1.0, 1.15, 1.3), fixed_latents=50, candidates=300),
        grid_steps=300,
        checkpoint_steps=300,
    )


def _with_refinement(data: DataShape, deployment: DeploymentConfig) -> DeploymentConfig:
    """Add the refinement of fixed latents, with the parts that help natural images but not MNIST."""
    if data.channels == 3 or _survives_flip(data):
        deployment = replace(deployment, refine_cross_entropy=0.2, refine_draws=2, refine_learners=8)
    return replace(deployment, refine_steps=400)


def _gains_by_certainty(data: DataShape) -> bool:
    """Whether images of a surer label teach more: colour images with many examples.

    CIFAR-10 gained by it, FashionMNIST did not (lab/LOG.md).
    """
    return data.channels == 3 and _has_many_images(data)


def _choose_filter(data: DataShape) -> FilterConfig:
    """The surest 70 % of candidates where that gains.

    At ten images per class students gained 1.3 and 2.7 points by two recipes, and recall fell from 0.82 to 0.74; the
    surest half gained no more. Beside the pool's cross-entropy it was 1.2 and 0.9 points (lab/LOG.md).
    """
    fits = _gains_by_certainty(data) and len(data.classes) <= MAX_CLASSES_FILTERED
    return FilterConfig(candidates=CANDIDATES if fits else 0)


def _small(data: DataShape) -> DistillConfig:
    """MNIST and its like in under an hour on two CPU cores."""
    adversarial = AdversarialConfig(ema_halflife_kimg=20.0, augment=_discriminator_augment(data, "crop=0.07"))
    return DistillConfig(
        name="",
        preset="small",
        generator=GeneratorConfig(latent_dim=64, width=32, max_width=128, mirrored=_survives_flip(data)),
        discriminator=DiscriminatorConfig(width=16, max_width=128),
        stage1=StageConfig(steps=3000, batch_size=128, adversarial=adversarial),
        pool=PoolConfig(width=16, ages=(50, 200, 500), augment="crop=0.07"),
        matching=MatchingConfig(augment="crop=0.07"),
        deployment=_with_refinement(
            data, DeploymentConfig(latent_stds=(0.9, 1.0, 1.1, 1.2, 1.3), fixed_latents=100, candidates=1000)
        ),
        stage2=StageConfig(
            steps=600,
            batch_size=128,
            adversarial=replace(adversarial, final_lr_fraction=0.05),
        ),
    )


def _best(data: DataShape) -> DistillConfig:
    """For bundles of about 5 MB of grey images and 10 MB of colour images: hours of a CPU core."""
    matched = default_policy(data.name)
    # On a GPU two discriminator steps gave students 9 points more than one did (docs/concepts/how-it-works.md). Twice
    # the final rates in stage 1 were worth a third more steps (lab/LOG.md).
    slow = AdversarialConfig(
        # With colour and cutout too the discriminator stayed at chance.
        augment=_discriminator_augment(data, "crop" if _survives_flip(data) else "crop=0.07"),
        ema_halflife_kimg=20.0,
        discriminator_steps=2,
        generator_lr=1e-4,
        discriminator_lr=2.5e-4,
        final_lr_fraction=0.05,
        r1_gamma=0.05,
        r1_every=16,
    )
    fast = replace(slow, generator_lr=2e-4, discriminator_lr=5e-4, final_lr_fraction=0.5)
    # At 28 pixels the first layer of the wide one takes 5 MB. The narrow one brought MNIST to within 0.2 points of real
    # images (docs/results.md), and its fp32, fp16 and int8 files take 5 MB together.
    generator = GeneratorConfig(latent_dim=64, width=32, max_width=128, mirrored=_survives_flip(data))
    if data.channels == 3:
        generator = replace(generator, latent_dim=128, width=48, max_width=192)
    return DistillConfig(
        name="",
        preset="best",
        generator=generator,
        discriminator=DiscriminatorConfig(width=48, max_width=192, patch_px=2),
        stage1=StageConfig(steps=20_000, batch_size=64, adversarial=fast),
        pool=PoolConfig(architectures=("convnet3", "resnet10"), ages=(100, 400, 1600, 6400), augment=matched),
        stage2=StageConfig(steps=5000, batch_size=64, adversarial=slow),
        # The weight at which the pool is as sure of generated images as of real ones it has not seen (lab/LOG.md).
        matching=MatchingConfig(augment=matched, cross_entropy=0.3 if _gains_by_certainty(data) else 0.0),
        deployment=_with_refinement(
            data, DeploymentConfig(latent_stds=(0.9, 1.0, 1.1, 1.2, 1.3), fixed_latents=100, candidates=1000)
        ),
        filter=_choose_filter(data),
        grid_steps=1000,
    )


def _paper(data: DataShape) -> DistillConfig:
    """The published recipe (DiM, arXiv 2303.04707; defaults of its reference code); a GPU preset.

    Stage 1: 150 epochs at batch 128, Adam 1e-4 with betas 0 and 0.9. Stage 2: 100 epochs at batch 64 and 5e-6, a random
    classifier of the pool per epoch, trained by 16 SGD steps before every generator step. No moving average, no
    augmentation for the critic.
    """
    images = sum(data.class_counts)
    adversarial = AdversarialConfig(
        loss="wgan-gp-ac",
        generator_lr=1e-4,
        discriminator_lr=1e-4,
        beta1=0.0,
        beta2=0.9,
        r1_gamma=0.0,
        augment="",
        ema_halflife_kimg=0.0,
    )
    epoch = max(images // 64, 1)
    return DistillConfig(
        name="",
        preset="paper",
        generator=GeneratorConfig(kind="paper", latent_dim=max(100, len(data.classes) + 90), width=196, max_width=196),
        discriminator=DiscriminatorConfig(kind="paper", width=196, max_width=196, group_size=1),
        stage1=StageConfig(steps=150 * max(images // 128, 1), batch_size=128, adversarial=adversarial),
        pool=PoolConfig(
            kind="fresh",
            architectures=("convnet3", "resnet10-half", "resnet18-half", "resnetap10-half", "resnetap18-half"),
            steps_between=16,
            epoch_steps=epoch,
            batch_size=64,
            lr=0.01,
            augment="color_crop_cutout",
        ),
        stage2=StageConfig(
            steps=100 * epoch, batch_size=64, adversarial=replace(adversarial, generator_lr=5e-6, discriminator_lr=5e-6)
        ),
        matching=MatchingConfig(loss="paper", weight=PAPER_MATCHING_WEIGHT, augment="color_crop_cutout"),
    )


PRESETS = {"tiny": _tiny, "small": _small, "best": _best, "paper": _paper}
"""Every preset by name."""


def preset(name: str, *, data: DataShape, overrides: Mapping[str, Any] | None = None) -> DistillConfig:
    """Make the configuration of a preset for a dataset.

    Args:
        name: `tiny`, `small`, `best` or `paper`.
        data: the dataset; its name becomes the run's.
        overrides: fields to replace, nested ones with dots (`{"seed": 1, "stage1.steps": 2000}`). A `matching.loss` of
            `paper` brings its published weight along, unless `matching.weight` says another, and any but
            `distribution` leaves out the preset's `matching.cross_entropy`, which belongs to that loss.

    Returns:
        The checked configuration.

    Raises:
        BadValueError: an unknown preset or field, or a value out of range.
    """
    _check_preset(name)
    config = replace(PRESETS[name](data), name=data.name)
    overrides = overrides or {}
    if overrides.get("matching.loss") == "paper":
        overrides = {"matching.weight": PAPER_MATCHING_WEIGHT, **overrides}
    if overrides.get("matching.loss", "distribution") != "distribution":
        overrides = {"matching.cross_entropy": 0.0, **overrides}
    return change_fields(config, overrides)


@dataclass(frozen=True)
class _AnyData:
    """Stands for a dataset where only names of fields are asked for."""

    name: str = "any"
    classes: tuple[str, ...] = ("a", "b")
    class_counts: tuple[int, ...] = (2, 2)
    height: int = 32
    channels: int = 3


def change_fields(config: DistillConfig, overrides: Mapping[str, Any]) -> DistillConfig:
    """Make a configuration that differs from another in some fields.

    Args:
        config: the other one.
        overrides: fields to replace, as in `preset`.

    Raises:
        BadValueError: an unknown field, or a value out of range.
    """
    values = to_dict(config)
    for path, value in overrides.items():
        _override(values, path, value)
    return from_dict(values)


def check_overrides(config: DistillConfig | str, overrides: Mapping[str, Any], typed: Mapping[str, str]) -> None:
    """Refuse a preset, fields or values that cannot be, before any data are there.

    Args:
        config: what they replace fields of, or the name of a preset.
        overrides: as in `preset`.
        typed: by fields, what the user typed for them, as in "--steps".

    Raises:
        BadValueError: as `preset`, in the words of `typed`.
    """
    try:
        if isinstance(config, str):
            preset(config, data=_AnyData(), overrides=overrides)
        else:
            change_fields(config, overrides)
    except BadValueError as error:
        sentence = str(error)
        for field, words in typed.items():
            sentence = sentence.replace(f"The configuration's field {field} is", f"{words} is")
        raise BadValueError(sentence) from None


def _check_preset(name: str) -> None:
    if name not in PRESETS:
        choices = ", ".join(PRESETS)
        raise BadValueError(f"There is no preset named {name!r}{_nearest(name, PRESETS)}: choose one of {choices}.")


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _list_paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Give every field with its dots."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _list_paths(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _find_field(values: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """Return what holds a field, and the field's own name."""
    *parents, name = path.split(".")
    holder: Any = values
    for parent in parents:
        holder = holder.get(parent) if isinstance(holder, dict) else None
    if not isinstance(holder, dict) or name not in holder or isinstance(holder[name], dict):
        raise BadValueError(f"The configuration has no field {path!r}{_nearest(path, _list_paths(values))}.")
    return holder, name


def _override(values: dict[str, Any], path: str, value: Any) -> None:
    holder, name = _find_field(values, path)
    holder[name] = list(value) if isinstance(value, tuple) else value
