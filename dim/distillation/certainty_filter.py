"""Chooses the candidates that a bundle draws: those classified with the highest confidence (`accepted.bin`).

At the end of a distillation, classifiers that were trained only on the training images classify every candidate's
image. Those with the highest confidence in each class are accepted; `dim.runtime.sampling.accepted` draws from them.

Shapes: K classes, M candidates per class, Z latent dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dim.distillation.extractors import BATCH_SIZE, generate_class
from dim.distillation.pool import KeptPool, PoolMember, build_member, load_snapshots
from dim.distillation.session import Session
from dim.execution.device_data import seed_of
from dim.runs.checkpoint import FOLDER
from dim.runs.deployment import DEPLOYMENT_FILE, read_deployment
from dim.runs.files import make_folder, remove_file, write_file, write_json
from dim.runs.tensors import check_rows, explain_misfit, read_tensors, write_tensors
from dim.runtime.bundle_format.accepted_file import write_accepted
from dim.runtime.bundle_format.names import ACCEPTED
from dim.runtime.sampling.latents import draw_latents

PARTIAL = f"{FOLDER}/accepted-unfinished.safetensors"
"""Certainties of the classes judged so far."""


def accept_candidates(session: Session, pool: KeptPool) -> bool:
    """Judge the candidates of every class and write `accepted.bin`; `deployment.json` gets what was found.

    Args:
        session: after everything else of a run.
        pool: the kept pool; with `filter.judge` `pool`, the oldest snapshot of every architecture judges.

    Returns:
        False if the time limit stopped it after a class; judged classes are kept.
    """
    config, run_dir = session.config.filter, session.run_dir
    if (run_dir / ACCEPTED).exists():
        remove_file(run_dir, PARTIAL)
        return True
    report: dict[str, Any] = {"latent_std": session.config.latent_std}
    if (run_dir / DEPLOYMENT_FILE).exists():
        report |= read_deployment(run_dir)
    judges = _list_judges(session, pool)
    network = session.gan.copy_ema_generator()
    key, num_classes = seed_of(session.config.seed, "candidates"), session.images.num_classes
    certainties: list[Tensor] = []
    if (run_dir / PARTIAL).exists():
        kept = read_tensors(run_dir, PARTIAL)
        with explain_misfit(run_dir, PARTIAL):
            certainties = list(check_rows(kept["certainty_KM"], num_classes, (config.candidates,)))
    session.report("certainty", len(certainties), num_classes)
    for label in range(len(certainties), num_classes):
        certainties.append(_judge_class(session, network, judges, key, label, report["latent_std"]))
        session.report("certainty", label + 1, num_classes)
        if session.is_over and label + 1 < num_classes:
            make_folder(run_dir, FOLDER)
            write_tensors(run_dir, PARTIAL, {"certainty_KM": torch.stack(certainties)})
            return False
    certainty_KM = torch.stack(certainties)
    accepted_KM = choose_surest(certainty_KM, config.keep)
    report["filter"] = {
        "certainty": round(float(certainty_KM.mean()), 4),
        "accepted_certainty": round(float(certainty_KM[accepted_KM].mean()), 4),
    }
    write_json(run_dir, DEPLOYMENT_FILE, report)
    write_file(run_dir, ACCEPTED, write_accepted(key, accepted_KM.numpy()))
    remove_file(run_dir, PARTIAL)
    session.say(
        f"Accepted {config.keep:.0%} of {config.candidates:,} candidates per class: mean certainty "
        f"{report['filter']['accepted_certainty']:.2f}, of all {report['filter']['certainty']:.2f}."
    )
    return True


def choose_surest(certainty_KM: Tensor, keep: float) -> Tensor:
    """Choose the part of every class with the highest certainty, bool [K, M]; among equals the lower numbers.

    Args:
        certainty_KM: float [K, M].
        keep: the part, above 0 and at most 1; one candidate at least.
    """
    count = max(1, round(keep * certainty_KM.shape[1]))
    chosen = certainty_KM.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(certainty_KM, dtype=torch.bool).scatter_(1, chosen, True)


def _list_judges(session: Session, pool: KeptPool) -> Sequence[PoolMember]:
    """The classifiers that judge, in evaluation mode."""
    if session.config.filter.judge == "pool":
        ages = len(session.config.pool.ages)
        return pool.members[ages - 1 :: ages]
    deployment = session.config.deployment
    teacher = build_member(session, deployment.teacher, deployment.teacher_width, "teacher")
    load_snapshots([teacher], session.run_dir, "teacher.safetensors")
    return [teacher.eval()]


@torch.no_grad()
def _judge_class(
    session: Session, network: nn.Module, judges: Sequence[PoolMember], key: int, label: int, latent_std: float
) -> Tensor:
    """Mean probability, over the judges, of the label of every candidate of a class, float32 [M] on the CPU."""
    gan, count, latent_dim = session.gan, session.config.filter.candidates, session.config.generator.latent_dim
    parts = []
    for start in range(0, count, BATCH_SIZE):
        numbers = torch.arange(start, min(start + BATCH_SIZE, count)).numpy()
        latents = draw_latents(key, [label] * len(numbers), numbers, latent_dim, latent_std)
        with gan.autocast():
            images = generate_class(network, torch.from_numpy(latents).to(gan.device), label)
            logits = [judge(judge.normalise(images))[1].float() for judge in judges]
        parts.append(torch.stack([each.softmax(dim=1)[:, label] for each in logits]).mean(dim=0).cpu())
    return torch.cat(parts)
