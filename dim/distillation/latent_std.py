"""Chooses the standard deviation of the deployed latents (GaFi, arXiv 2305.10118).

It is the one whose images have the least energy distance to held-out training images, in the features of the oldest
snapshot of every architecture in the pool. It uses no accuracy and reads no test image.

Shapes: K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dim.distillation.extractors import MAX_REAL_IMAGES, FeatureExtractor, generate_class, mean_pair_distance
from dim.distillation.losses import MIN_RELATIVE_SCALE
from dim.distillation.session import Session
from dim.execution.device_data import step_generator, to_signed
from dim.runs.tensors import check_finite, explain_misfit, read_tensors, write_tensors

GENERATED_PER_CLASS = 128
"""Generated images per class by which a standard deviation is measured."""


@torch.no_grad()
def measure_latent_stds(
    session: Session,
    network: nn.Module,
    extractors: Sequence[FeatureExtractor],
    latent_stds: Sequence[float],
    name: str,
) -> dict[float, float] | None:
    """Measure the energy distance between held-out and generated images for each latent std, mean over classes.

    Args:
        session: with images held out.
        network: the generator, in evaluation mode.
        extractors: in whose features and logits distances are taken.
        latent_stds: the candidates.
        name: file of the run that receives the sums over the finished classes where the time limit stops it; it is read
            if it is there.

    Returns:
        The distance of each latent std; None if the time limit stopped it.
    """
    holdout, device = session.holdout, session.gan.device
    assert holdout is not None  # there are several candidates
    kept = {"classes": torch.tensor(0), "sums": torch.zeros(len(latent_stds))}
    if (session.run_dir / name).exists():
        kept = read_tensors(session.run_dir, name)
    with explain_misfit(session.run_dir, name):
        check_finite(kept)
        totals = dict(zip(latent_stds, kept["sums"].tolist(), strict=True))
        classes_done = int(kept["classes"])
    weights_K = class_weights(holdout.counts_K)
    labels = weights_K.nonzero().flatten().tolist()  # a class of one image keeps it for training
    session.report("latent std", classes_done, len(labels))
    for number, label in enumerate(labels[classes_done:], start=classes_done + 1):
        generator = step_generator(device, session.config.seed, "spread", label)  # a new name would change the draws
        images = to_signed(holdout.draw_class_images(label, MAX_REAL_IMAGES, generator))
        real = [extractor.embed(images) for extractor in extractors]
        size = (GENERATED_PER_CLASS, session.config.generator.latent_dim)
        noise = torch.randn(size, device=device, generator=generator)
        scales = [mean_pair_distance(r) for r in real]
        for std in latent_stds:
            images = generate_class(network, noise * std, label)
            fake = [extractor.embed(images) for extractor in extractors]
            for r, f, within in zip(real, fake, scales, strict=True):
                distance = 2 * torch.cdist(r, f).mean() - within - mean_pair_distance(f)
                relative = float(distance / within.clamp_min(MIN_RELATIVE_SCALE))
                totals[std] += relative * float(weights_K[label]) / len(extractors)
        session.report("latent std", number, len(labels))
        if session.is_over and number < len(labels):
            # Doubles, as they are added up: a run in pieces ends in the same bytes.
            sums = torch.tensor(list(totals.values()), dtype=torch.float64)
            write_tensors(session.run_dir, name, {"classes": torch.tensor(number), "sums": sums})
            return None
    return totals


def class_weights(counts_K: Tensor) -> Tensor:
    """Weights of the classes by how many images of them were held out, float64 `[K]` with the sum 1.

    A class counts by its held-out images less one: a few say little of a distribution, and one has no distance to
    another.

    Args:
        counts_K: held-out images of each class, int64 `[K]`, at least one in all.
    """
    freedom_K = counts_K.clamp(1, MAX_REAL_IMAGES).double() - 1
    if not freedom_K.any():  # single images are all there is
        freedom_K = counts_K.clamp_max(1).double()
    return freedom_K / freedom_K.sum()
