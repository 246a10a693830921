"""Choices after training, made on training images only: the latent std and the latents of fixed sets.

`latent_std` compares candidates on held-out images, `herding` picks the latents of fixed sets, and `refinement` moves
the first ones of every class. The results are the run's `deployment.json` and `latents.npz`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dim.distillation.extractors import make_extractors
from dim.distillation.herding import herd_latents
from dim.distillation.latent_std import measure_latent_stds
from dim.distillation.pool import KeptPool, PoolMember, build_member
from dim.distillation.pool_training import train_in_pieces
from dim.distillation.refinement import REFINEMENT_ARCHITECTURES, UNTRAINED_EXTRACTORS, Refinement
from dim.distillation.session import Session
from dim.runs.checkpoint import FOLDER
from dim.runs.deployment import DEPLOYMENT_FILE, read_deployment
from dim.runs.files import remove_file, write_file, write_json
from dim.runtime.bundle_format.fixed_latents import write_fixed_latents

LATENTS_FILE = "latents.npz"
HERDING_ARCHITECTURE = "convnet3"
"""The architecture, at every age, that compares candidates for fixed sets. Its features keep where things are, unlike
features averaged over the map: one image per class of MNIST reached 76.9 % by it and 73.8 % by all architectures."""


def choose_latents(session: Session, pool: KeptPool) -> bool:
    """Choose the deployed `latent_std` and the latents of fixed sets; write `deployment.json` and `latents.npz`.

    Args:
        session: after stage 2.
        pool: the kept pool. The oldest snapshot of each architecture compares latent stds, every snapshot of the
            ConvNet-3, where there is one, the candidates for fixed sets.

    Returns:
        False if the time limit stopped it; what was measured, chosen and refined so far is kept.
    """
    config, run_dir = session.config.deployment, session.run_dir
    ages = len(session.config.pool.ages)
    oldest = make_extractors(session, pool.members[ages - 1 :: ages])
    network = session.gan.copy_ema_generator()
    report: dict[str, Any] = {"latent_std": session.config.latent_std}
    if (run_dir / DEPLOYMENT_FILE).exists():
        report = read_deployment(run_dir)
    elif len(config.latent_stds) > 1:
        distances = measure_latent_stds(session, network, oldest, config.latent_stds, _partial("latent-std"))
        if distances is None:
            return False
        report["energy_distances"] = {f"{std:g}": round(distance, 6) for std, distance in distances.items()}
        report["latent_std"] = min(distances, key=lambda std: distances[std])
        session.say(f"Images of latents with standard deviation {report['latent_std']:g} fit the real ones best.")
    elif config.latent_stds:
        report["latent_std"] = config.latent_stds[0]
    write_json(run_dir, DEPLOYMENT_FILE, report)
    remove_file(run_dir, _partial("latent-std"))
    # Latents that are there were chosen before the teacher was begun.
    if config.fixed_latents and not (run_dir / LATENTS_FILE).exists():
        convnets = [member for member in pool.members if member.name == HERDING_ARCHITECTURE]
        extractors = make_extractors(session, convnets) or oldest
        latents_KMZ = herd_latents(session, network, extractors, report["latent_std"], _partial("latents"))
        if latents_KMZ is not None and config.refine_steps:
            latents_KMZ = _refine(session, network, pool.members, latents_KMZ)
        if latents_KMZ is None:
            return False
        write_file(run_dir, LATENTS_FILE, write_fixed_latents(latents_KMZ.cpu().numpy()))
        session.say(f"Chose {config.fixed_latents} latents per class for fixed sets.")
    for what in ("latents", "refinement"):
        remove_file(run_dir, _partial(what))
    return True


def _refine(session: Session, network: nn.Module, members: Sequence[PoolMember], latents_KMZ: Tensor) -> Tensor | None:
    """The latents of fixed sets, the first of every class moved; None if the time limit stopped it."""
    width = session.config.pool.width
    trained = [member for member in members if member.name in REFINEMENT_ARCHITECTURES]
    untrained = [
        build_member(session, HERDING_ARCHITECTURE, width, "refinement", number).eval()
        for number in range(UNTRAINED_EXTRACTORS)
    ]
    for module in (network, *trained, *untrained):
        module.requires_grad_(False)
    refinement = Refinement(
        network,
        latents_KMZ,
        trained,
        untrained,
        session.gan.data,
        session.config.deployment,
        policy=session.config.pool.augment,
        seed=session.config.seed,
        build_learner=lambda number: build_member(session, HERDING_ARCHITECTURE, width, "refinement learner", number),
    )
    finished = train_in_pieces(
        session,
        refinement.state,
        refinement.optimiser,
        refinement.step,
        refinement.total,
        what="Refining the latents of small fixed sets",
        name=_partial("refinement"),
        report=lambda done: session.report("refining", done, refinement.total),
    )
    return refinement.result() if finished else None


def _partial(what: str) -> str:
    """Name the file of the run where an unfinished choice is kept."""
    return f"{FOLDER}/{what}-unfinished.safetensors"
