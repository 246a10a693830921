"""The last choices of a distillation: how far the deployed latents spread, and which latents a fixed set uses.

Both minimise the energy distance that stage 2 minimises, between generated and real images as the kept pool sees them;
`dim.distillation.refinement` may then move the first ones of every class. The spread is judged on images cut from the
training split before anything was trained; the latents are fitted to the training images. No accuracy is consulted and
no test image is read.

Shapes: K classes, M latents kept per class, Z latent dimension, n candidates, r real images, D features.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dim.distillation.losses import MIN_SPREAD
from dim.distillation.pool import KeptPool, PoolMember, new_member
from dim.distillation.pool_training import train_in_pieces
from dim.distillation.refinement import JUDGES, UNTRAINED, Refinement
from dim.distillation.session import Progress, Session
from dim.execution.device_data import step_generator, to_signed
from dim.runs.checkpoint import read_tensors, write_atomically, write_json, write_tensors
from dim.runtime.bundle_format.fixed_latents import write_fixed_latents

SPREAD_IMAGES = 128
"""Images per class by which a spread of the latents is judged."""
MAX_REAL_IMAGES = 1000
"""Real images per class that candidates are compared with."""
CANDIDATE_SPREADS = (1.0, 0.75, 0.5, 0.25)
"""Spreads of the candidates for fixed sets, as parts of the deployed one: the few images of a small set should be more
typical than random ones are. One image per class of MNIST taught a ConvNet-3 of width 32 69.4 % with the first alone,
judged by the oldest snapshot of every architecture, 73.8 % with all four, 76.9 % with `HERDING_JUDGE` as well (three
students each); ten per class 96.2 %, 96.0 % and 96.2 %."""
HERDING_JUDGE = "convnet3"
"""The architecture that judges candidates for fixed sets, at every age: its features keep where things are, and call
those images typical that make a good small set; features averaged over the map do not."""
BATCH = 500


def choose_deployment(session: Session, pool: KeptPool) -> bool:
    """Choose the deployed `latent_std` and the latents of fixed sets; write `deployment.json` and `latents.npz`.

    Args:
        session: after stage 2.
        pool: the kept pool; the oldest snapshot of each architecture judges the spread, and every snapshot of the
            ConvNet-3, where there is one, the latents; those of `dim.distillation.refinement.JUDGES` what they are
            moved to.

    Returns:
        False if the time limit stopped it; what was measured, chosen and refined so far is kept.
    """
    config, path = session.config.deployment, session.run_dir / "deployment.json"
    ages = len(session.config.pool.ages)
    judges = _judges(session, pool.members[ages - 1 :: ages])
    network = session.game.deployed_generator()
    report: dict[str, Any] = {"latent_std": session.config.latent_std}
    if path.exists():
        report = json.loads(path.read_bytes())
    elif len(config.latent_stds) > 1:
        distances = spread_distances(session, network, judges, config.latent_stds)
        if distances is None:
            return False
        report["energy_distances"] = {f"{std:g}": round(distance, 6) for std, distance in distances.items()}
        report["latent_std"] = min(distances, key=lambda std: distances[std])
        session.say(f"Latents spread {report['latent_std']:g} times as far fit the real images best.")
    elif config.latent_stds:
        report["latent_std"] = config.latent_stds[0]
    write_json(path, report)
    _unfinished(session, "spread").unlink(missing_ok=True)
    latents_path = session.run_dir / "latents.npz"
    if config.fixed_latents and not latents_path.exists():  # else they were chosen before the teacher was begun
        convnets = [member for member in pool.members if member.name == HERDING_JUDGE]
        latents_KMZ = herd_latents(session, network, _judges(session, convnets) or judges, report["latent_std"])
        if latents_KMZ is None:
            return False
        if config.refine_steps:
            asked = [member for member in pool.members if member.name in JUDGES]
            refined_KMZ = _refine(session, network, asked, latents_KMZ)
            if refined_KMZ is None:
                return False
            latents_KMZ = refined_KMZ
        write_atomically(latents_path, write_fixed_latents(latents_KMZ.cpu().numpy()))
        session.say(f"Chose {config.fixed_latents} latents per class for fixed sets.")
    for what in ("latents", "refinement", "moved-latents"):  # the second of earlier versions
        _unfinished(session, what).unlink(missing_ok=True)
    return True


def _refine(
    session: Session,
    network: nn.Module,
    members: Sequence[PoolMember],
    latents_KMZ: Tensor,
) -> Tensor | None:
    """The latents of fixed sets, the first of every class moved; None if the time limit stopped it."""
    width = session.config.pool.width
    untrained = [new_member(session, HERDING_JUDGE, width, "refinement", i).eval() for i in range(UNTRAINED)]
    for module in (network, *members, *untrained):
        module.requires_grad_(False)
    refinement = Refinement(
        network,
        latents_KMZ,
        members,
        untrained,
        session.game.data,
        steps=session.config.deployment.refine_steps,
        policy=session.config.pool.augment,
        seed=session.config.seed,
        cross_entropy=session.config.deployment.refine_cross_entropy,
        draws=session.config.deployment.refine_draws,
        learners=session.config.deployment.refine_learners,
        fresh=lambda number: new_member(session, HERDING_JUDGE, width, "refinement learner", number),
    )
    finished = train_in_pieces(
        session,
        refinement.state,
        refinement.optimiser,
        refinement.step,
        refinement.total,
        what="Refining the latents of small fixed sets",
        path=_unfinished(session, "moved-latents"),
        report=lambda done: session.progress(_report("refining", done, refinement.total)),
    )
    return refinement.result() if finished else None


def _unfinished(session: Session, what: str) -> Path:
    return session.run_dir / "checkpoints" / f"{what}-unfinished.safetensors"


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A classifier of the pool, and how long its features and logits of real images are on average."""

    member: PoolMember
    feature_length: Tensor
    logit_length: Tensor

    def embed(self, images_NCHW: Tensor) -> Tensor:
        """Features and logits side by side, each of about unit length, float32 `[N, D]`."""
        parts = []
        for images in torch.split(images_NCHW, BATCH):
            features, logits = self.member(self.member.normalise(images))
            parts.append(torch.cat([features.float() / self.feature_length, logits.float() / self.logit_length], dim=1))
        return torch.cat(parts)


@torch.no_grad()
def _judges(session: Session, members: Sequence[PoolMember]) -> list[Judge]:
    """Classifiers of the pool, measured on real images of all classes."""
    data = session.game.data
    generator = step_generator(data.device, session.config.seed, "judges")
    images = to_signed(data.draw_images(data.draw_labels(BATCH, 1, generator), generator))
    judges = []
    for member in members:
        features, logits = (output.float().norm(dim=1).mean() for output in member(member.normalise(images)))
        judges.append(
            Judge(member=member, feature_length=features.clamp_min(1e-6), logit_length=logits.clamp_min(1e-6))
        )
    return judges


@torch.no_grad()
def spread_distances(
    session: Session, network: nn.Module, judges: Sequence[Judge], latent_stds: Sequence[float]
) -> dict[float, float] | None:
    """The energy distance between held-out and generated images for each spread of the latents, mean over classes.

    A class counts by its held-out images less one: those of a rare class say little of a distribution, and one image
    says nothing of how far the others spread.

    Returns:
        The distance of each spread; None if the time limit stopped it: the sums over the finished classes are kept.
    """
    holdout, path = session.holdout, _unfinished(session, "spread")
    assert holdout is not None  # there are several spreads
    kept = read_tensors(path) if path.exists() else {"classes": torch.tensor(0), "sums": torch.zeros(len(latent_stds))}
    totals = dict(zip(latent_stds, kept["sums"].tolist(), strict=True))
    weights_K = class_weights(holdout.counts_K)
    labels = weights_K.nonzero().flatten().tolist()  # a class of one image keeps it for training
    for number, label in enumerate(labels[int(kept["classes"]) :], start=int(kept["classes"]) + 1):
        generator = step_generator(session.game.device, session.config.seed, "spread", label)
        images = to_signed(holdout.images_of(label, MAX_REAL_IMAGES, generator))
        real = [judge.embed(images) for judge in judges]
        size = (SPREAD_IMAGES, session.config.generator.latent_dim)
        noise = torch.randn(size, device=session.game.device, generator=generator)
        scales = [_mean_distance(r, r) for r in real]
        for std in latent_stds:
            images = _generate(session, network, noise * std, label)
            fake = [judge.embed(images) for judge in judges]
            for r, f, within in zip(real, fake, scales, strict=True):
                distance = 2 * torch.cdist(r, f).mean() - within - _mean_distance(f, f)
                totals[std] += float(distance / within.clamp_min(MIN_SPREAD)) * float(weights_K[label]) / len(judges)
        session.progress(_report("spread", number, len(labels)))
        if time.monotonic() > session.deadline and number < len(labels):
            # Doubles, as they are added up: a run in pieces ends in the same bytes.
            sums = torch.tensor(list(totals.values()), dtype=torch.float64)
            write_tensors(path, {"classes": torch.tensor(number), "sums": sums})
            return None
    return totals


def class_weights(counts_K: Tensor) -> Tensor:
    """Weights of the classes by how many images of them were held out, float64 `[K]` with the sum 1.

    Args:
        counts_K: held-out images of each class, int64 `[K]`, at least one in all.
    """
    freedom_K = counts_K.clamp(1, MAX_REAL_IMAGES).double() - 1
    if not freedom_K.any():  # single images are all there is
        freedom_K = counts_K.clamp_max(1).double()
    return freedom_K / freedom_K.sum()


@torch.no_grad()
def herd_latents(session: Session, network: nn.Module, judges: Sequence[Judge], latent_std: float) -> Tensor | None:
    """Pick latents greedily so that every prefix of a class's images resembles the whole class (kernel herding, Chen,
    Welling and Smola 2010, with the energy distance's kernel): `--ipc 10` is the first ten of `--ipc 50`.

    Returns:
        float32 [K, M, Z] on the device; None if the time limit stopped it, after the last class too where a refinement
        is still to come: the finished classes are kept.
    """
    path, num_classes = _unfinished(session, "latents"), session.game.data.num_classes
    chosen = list(read_tensors(path)["latents"].to(session.game.device)) if path.exists() else []
    for label in range(len(chosen), num_classes):
        chosen.append(_herd_class(session, network, judges, latent_std, label))
        session.progress(_report("herding", label + 1, num_classes))
        finished, late = label + 1 == num_classes, time.monotonic() > session.deadline
        if finished or late:
            write_tensors(path, {"latents": torch.stack(chosen)})
        if late and not (finished and session.config.deployment.refine_steps == 0):
            return None
    return torch.stack(chosen)


def _herd_class(session: Session, network: nn.Module, judges: Sequence[Judge], latent_std: float, label: int) -> Tensor:
    config, device = session.config.deployment, session.game.device
    generator = step_generator(device, session.config.seed, "herding", label)
    size = (config.candidates, session.config.generator.latent_dim)
    spreads = torch.tensor(CANDIDATE_SPREADS, device=device).repeat(-(-config.candidates // len(CANDIDATE_SPREADS)))
    latents = torch.randn(size, device=device, generator=generator) * (latent_std * spreads[: config.candidates, None])
    real_images = to_signed(session.game.data.images_of(label, MAX_REAL_IMAGES, generator))
    images = _generate(session, network, latents, label)
    to_real = torch.zeros(config.candidates, device=device)
    between = torch.zeros(config.candidates, config.candidates, device=device)
    for judge in judges:
        real, drawn = judge.embed(real_images), judge.embed(images)
        scale = _mean_distance(real, real).clamp_min(MIN_SPREAD)
        to_real += torch.cdist(drawn, real).mean(dim=1) / scale
        between += torch.cdist(drawn, drawn) / scale
    return latents[herd(to_real, between, config.fixed_latents)].float()


def herd(to_real_n: Tensor, between_nn: Tensor, count: int) -> Tensor:
    """Greedy choice of `count` candidates whose every prefix has the least energy distance to the real images.

    Args:
        to_real_n: mean distance of each candidate to the real images, `[n]`.
        between_nn: distances between candidates, `[n, n]`.
        count: how many, at most n.

    Returns:
        indices int64 `[count]`, without repetition, in the order of choice.
    """
    picked: list[int] = []
    repulsion = torch.zeros_like(to_real_n)
    for number in range(count):
        scores = to_real_n - repulsion / (number + 1)
        scores[picked] = torch.inf
        best = int(scores.argmin())
        picked.append(best)
        repulsion += between_nn[best]
    return torch.tensor(picked, device=to_real_n.device)


def _generate(session: Session, network: nn.Module, latents_nZ: Tensor, label: int) -> Tensor:
    """Images as they will be deployed: rounded to 256 levels."""
    parts = []
    for part in torch.split(latents_nZ, BATCH):
        images = network(part, torch.full((len(part),), label, device=part.device))
        parts.append(to_signed(((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)))
    return torch.cat(parts)


def _mean_distance(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """Mean distance between different points of one set."""
    count = len(a_ND)
    return torch.cdist(a_ND, b_ND).sum() / max(count * (count - 1), 1)


def _report(stage: str, step: int, steps: int) -> Progress:
    return Progress(stage=stage, step=step, steps=steps, images_per_s=0.0, losses={})
