"""Checks a configuration against its data and the number of processes, before a run starts."""

from __future__ import annotations

import torch

from dim.config import DistillConfig
from dim.distillation.stage2 import matching_group_size, wants_pool
from dim.execution.distributed import World
from dim.networks.classifiers import build_classifier
from dim.runs.record import ImageSpec
from dim.runtime.errors import BadValueError
from dim.runtime.sampling.accepted import MAX_CANDIDATES


def check_config(config: DistillConfig, images: ImageSpec, world: World) -> None:
    """Refuse a configuration, valid by itself, that cannot distil such images with so many processes.

    Raises:
        BadValueError: an unknown classifier, a batch that does not divide into groups and processes, too many
            candidates, or images that the published generator cannot draw.
    """
    _check_classifiers(config, images)
    group = config.discriminator.group_size
    for name, stage in (("stage1", config.stage1), ("stage2", config.stage2)):
        if stage.batch_size % (group * world.size):
            raise BadValueError(
                f"{name}.batch_size is {stage.batch_size}; it must be a multiple of {group * world.size} "
                f"({world.size} processes, groups of {group})."
            )
    group = matching_group_size(config)
    if config.stage2.steps and config.stage2.batch_size % (group * world.size):
        raise BadValueError(
            f"stage2.batch_size is {config.stage2.batch_size}; it must be a multiple of {group * world.size} "
            f"({world.size} processes, matched in groups of {group}): change it, or set matching.classes_per_step, the "
            f"least number of groups, to {world.size} or a multiple of it."
        )
    most = MAX_CANDIDATES // images.num_classes // 8 * 8
    if config.filter.candidates > most:
        raise BadValueError(
            f"filter.candidates is {config.filter.candidates}; with {images.num_classes} classes it must be at most "
            f"{most}."
        )
    if config.generator.kind == "paper":
        _check_published_generator(config, images)


def _check_classifiers(config: DistillConfig, images: ImageSpec) -> None:
    wanted = {config.deployment.teacher} - {""}
    if wants_pool(config):
        wanted |= set(config.pool.architectures)
    with torch.device("meta"):
        for arch in sorted(wanted):
            build_classifier(arch, images.num_classes, images.channels, images.image_px)


def _check_published_generator(config: DistillConfig, images: ImageSpec) -> None:
    if images.image_px % 8 and images.image_px != 28:
        raise BadValueError(
            f"The published generator draws multiples of 8 and 28 pixels, not {images.image_px}: "
            "choose such a --size, or another preset."
        )
    if config.generator.latent_dim <= images.num_classes:
        raise BadValueError(
            f"generator.latent_dim is {config.generator.latent_dim}; the published generator overwrites one latent "
            f"per class, so it must exceed {images.num_classes}."
        )
