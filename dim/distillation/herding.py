"""Chooses the latents of a fixed set greedily, so that every prefix resembles the whole class.

Kernel herding (Chen, Welling and Smola 2010) with the energy distance's kernel, on training images. `--ipc 10` is the
first ten of `--ipc 50`.

Shapes: K classes, M latents kept per class, Z latent dimension, n candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dim.distillation.extractors import MAX_REAL_IMAGES, FeatureExtractor, generate_class, mean_pair_distance
from dim.distillation.losses import MIN_RELATIVE_SCALE
from dim.distillation.session import Session
from dim.execution.device_data import step_generator, to_signed
from dim.runs.tensors import check_rows, explain_misfit, read_tensors, write_tensors

CANDIDATE_STDS = (1.0, 0.75, 0.5, 0.25)
"""Standard deviations of the candidates, as parts of the deployed one: the few images of a small set should be more
typical than random ones. With all four a ConvNet-3 of width 32 reached 73.8 % on one image per class of MNIST, with the
first alone 69.4 % (three students each)."""


@torch.no_grad()
def herd_latents(
    session: Session, network: nn.Module, extractors: Sequence[FeatureExtractor], latent_std: float, name: str
) -> Tensor | None:
    """Choose the latents of fixed sets for every class.

    Args:
        session: its `config.deployment` says how many latents, of how many candidates.
        network: the generator, in evaluation mode.
        extractors: in whose features and logits distances are taken.
        latent_std: standard deviation of the deployed latents.
        name: file of the run that receives the finished classes, and is read if it is there.

    Returns:
        float32 [K, M, Z] on the device; None if the time limit stopped it, after the last class too where a refinement
        is still to come.
    """
    num_classes = session.gan.data.num_classes
    chosen: list[Tensor] = []
    if (session.run_dir / name).exists():
        kept = read_tensors(session.run_dir, name)
        with explain_misfit(session.run_dir, name):
            shape = (session.config.deployment.fixed_latents, session.config.generator.latent_dim)
            chosen = list(check_rows(kept["latents"], num_classes, shape).to(session.gan.device))
    session.report("herding", len(chosen), num_classes)
    for label in range(len(chosen), num_classes):
        chosen.append(_herd_class(session, network, extractors, latent_std, label))
        session.report("herding", label + 1, num_classes)
        finished, late = label + 1 == num_classes, session.is_over
        if finished or late:
            write_tensors(session.run_dir, name, {"latents": torch.stack(chosen)})
        if late and not (finished and session.config.deployment.refine_steps == 0):
            return None
    return torch.stack(chosen)


def _herd_class(
    session: Session, network: nn.Module, extractors: Sequence[FeatureExtractor], latent_std: float, label: int
) -> Tensor:
    config, device = session.config.deployment, session.gan.device
    generator = step_generator(device, session.config.seed, "herding", label)
    size = (config.candidates, session.config.generator.latent_dim)
    stds = torch.tensor(CANDIDATE_STDS, device=device).repeat(-(-config.candidates // len(CANDIDATE_STDS)))
    latents = torch.randn(size, device=device, generator=generator) * (latent_std * stds[: config.candidates, None])
    real_images = to_signed(session.gan.data.draw_class_images(label, MAX_REAL_IMAGES, generator))
    images = generate_class(network, latents, label)
    to_real = torch.zeros(config.candidates, device=device)
    between = torch.zeros(config.candidates, config.candidates, device=device)
    for extractor in extractors:
        real, drawn = extractor.embed(real_images), extractor.embed(images)
        scale = mean_pair_distance(real).clamp_min(MIN_RELATIVE_SCALE)
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
