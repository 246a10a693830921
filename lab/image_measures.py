"""How near generated images are to real ones, as one classifier of real images sees them, and what students learn.

The classifier, here the judge, is a ConvNet-3 that learned from real training images alone. Its features decide all
distances, so figures of two generators compare where one judge saw both.

Shapes: N images, H, W, C as drawn, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dim.data.image_set import ImageSet
from dim.distillation.losses import energy_distance
from dim.evaluation.quality.fidelity import compare_neighbourhoods, frechet_distance
from dim.execution.compiled import can_compile
from dim.networks.classifiers import Classifier, build_classifier
from dim.runs.tensors import read_tensors, write_tensors
from dim.runtime.sampling.accepted import AcceptedCandidates, draw_accepted_latents
from dim.runtime.sampling.latents import draw_latents, order_slice
from dim.runtime.sampling.stream import StreamPlan
from dim.students.recipes import resolve_recipe
from dim.students.train import Batch, Normalizer, StudentSpec, choose_precision, measure_accuracy, train_student

CPU = torch.device("cpu")
MANIFOLD: tuple[Literal["precision", "recall", "density", "coverage"], ...] = (
    "precision",
    "recall",
    "density",
    "coverage",
)
JUDGE_WIDTH, JUDGE_STEPS = 64, 2500
_ROWS = 500

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Views:
    """What a judge makes of images of balanced classes, class after class."""

    features_ND: Tensor
    logits_NK: Tensor
    labels_N: Tensor


@dataclass(frozen=True)
class Judge:
    """A classifier of real images, which looks at others."""

    classifier: Classifier
    normalize: Normalizer

    @torch.inference_mode()
    def look(self, images: Images, labels: Labels) -> Views:
        """Look at images uint8 [N, H, W, C] with labels int64 [N]; they are sorted by class."""
        order = np.argsort(labels, kind="stable")
        parts = []
        for start in range(0, len(order), _ROWS):
            batch = torch.from_numpy(images[order[start : start + _ROWS]]).permute(0, 3, 1, 2)
            inputs = self.normalize(batch.float() / 255).contiguous(memory_format=self.classifier.memory_format)
            parts.append(self.classifier.outputs(inputs))
        features, logits = (torch.cat(each) for each in zip(*parts, strict=True))
        return Views(features, logits, torch.from_numpy(labels[order]))


def describe_student(data: ImageSet, recipe: str, width: int) -> StudentSpec:
    """A ConvNet-3 for these images, compiled where that works."""
    return StudentSpec(
        arch="convnet3",
        width=width,
        num_classes=len(data.classes),
        channels=data.channels,
        image_px=data.height,
        mean=data.mean,
        std=data.std,
        recipe=resolve_recipe(recipe, data.name),
        precision=choose_precision("auto", CPU),
        compiled=can_compile("auto", CPU),
    )


def train_judge(data: ImageSet, path: Path) -> Judge:
    """Train a judge on the training split by the recipe `default`, or read the one at `path`.

    Args:
        data: the images; its test split is not read.
        path: a file of weights, written where it is missing.
    """
    spec = describe_student(data, "default", JUDGE_WIDTH)
    normalize = Normalizer(spec.mean, spec.std, CPU)
    if path.exists():
        judge = build_classifier(spec.arch, spec.num_classes, spec.channels, spec.image_px, JUDGE_WIDTH)
        judge.load_state_dict(read_tensors(path.parent, path.name))
        return Judge(judge.eval(), normalize)
    pixels = torch.from_numpy(data.train_images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(data.train_labels)

    def batches() -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(0)
        while True:
            rows = torch.randint(0, len(labels), (spec.recipe.batch_size,), generator=generator)
            yield pixels[rows], labels[rows], None

    judge, _ = train_student(spec, batches(), JUDGE_STEPS, seed=2026, device=CPU)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path.parent, path.name, judge.state_dict())
    return Judge(judge, normalize)


def compare_images(real: Views, fake: Views) -> dict[str, float]:
    """Compare generated with real images, as many of each class on both sides.

    Returns:
        energy_distance: within classes, in features and logits of unit mean length, relative to that of real images.
        feature_distance: Frechet distance of the features of all classes (FD).
        precision, recall, density, coverage: within classes, means over them.
        recognised: part of the generated images whose label the judge finds.
        certainty, certainty_real: mean probability of the label, of generated and of real images.
    """
    count, num_classes = len(real.labels_N), real.logits_NK.shape[1]
    assert torch.equal(real.labels_N, fake.labels_N) and count % num_classes == 0
    points = []
    for view in (real, fake):
        scaled = [
            values / reference.norm(dim=1).mean()
            for values, reference in ((view.features_ND, real.features_ND), (view.logits_NK, real.logits_NK))
        ]
        points.append(torch.cat(scaled, dim=1))
    manifold = [
        compare_neighbourhoods(r.numpy(), f.numpy(), CPU)
        for r, f in zip(real.features_ND.chunk(num_classes), fake.features_ND.chunk(num_classes), strict=True)
    ]
    return {
        "energy_distance": float(energy_distance(points[0], points[1], count // num_classes)),
        "feature_distance": frechet_distance(real.features_ND.numpy(), fake.features_ND.numpy()),
        **{name: float(np.mean([each[name] for each in manifold])) for name in MANIFOLD},
        "recognised": float((fake.logits_NK.argmax(dim=1) == fake.labels_N).float().mean()),
        "certainty": float(measure_certainty(fake).mean()),
        "certainty_real": float(measure_certainty(real).mean()),
    }


def measure_certainty(views: Views) -> Tensor:
    """Probability that the judge gives to each image's label, float [N]."""
    return views.logits_NK.softmax(dim=1).gather(1, views.labels_N[:, None])[:, 0]


def teach(
    data: ImageSet, images: Images, labels: Labels, *, recipe: str, ipc: int, epochs: int, width: int, seed: int
) -> float:
    """Train a student on a stream of images and return its accuracy on the test split in percent.

    Args:
        data: whose test split is read.
        images: uint8 [N, H, W, C], index-major: `ipc` images of each class for every epoch.
        labels: int64 [N].
        recipe: a name of `dim.students.recipes`.
        ipc: images per class and epoch.
        epochs: how many.
        width: of the ConvNet-3.
        seed: of its weights and of the order within epochs.
    """
    spec = describe_student(data, recipe, width)
    num_classes = len(data.classes)
    size = min(spec.recipe.batch_size, num_classes * ipc)
    plan = StreamPlan(labels=tuple(range(num_classes)), ipc=ipc, batch_size=size, seed=seed, epochs=epochs)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)

    def batches() -> Iterator[Batch]:
        for classes, indices in plan.batches():
            rows = indices * num_classes + classes
            assert np.array_equal(labels[rows], classes)
            yield pixels[rows], torch.from_numpy(classes), None

    student, _ = train_student(spec, batches(), epochs * -(-num_classes * ipc // size), seed=seed, device=CPU)
    return measure_accuracy(student, data.test_images, data.test_labels, Normalizer(spec.mean, spec.std, CPU), CPU)


@torch.inference_mode()
def draw_stream(
    network: nn.Module,
    latent_std: float,
    shape: Mapping[str, int],
    *,
    seed: int,
    accepted: AcceptedCandidates | None = None,
) -> tuple[Images, Labels]:
    """Draw index-major images with a generator in torch, in bf16 where that is quicker.

    Args:
        network: in evaluation mode.
        latent_std: of its latents.
        shape: `num_classes`, `per_class` and `latent_dim`.
        seed: of the sampling contract.
        accepted: the candidates that samples are; None in version 1 of the contract.

    Returns:
        uint8 [N, H, W, C] and int64 [N].
    """
    classes, per_class = shape["num_classes"], shape["per_class"]
    labels, indices = order_slice([per_class] * classes, 0, per_class * classes)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parts = []
    for start in range(0, len(labels), _ROWS):
        rows = slice(start, start + _ROWS)
        how = seed, labels[rows], indices[rows], shape["latent_dim"], latent_std
        latents = draw_latents(*how) if accepted is None else draw_accepted_latents(accepted, *how)
        with torch.autocast("cpu", torch.bfloat16, enabled=choose_precision("auto", CPU) == "bf16"):
            values = network(torch.from_numpy(latents), torch.from_numpy(labels[rows]))
        pixels = (values.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        parts.append(pixels.permute(0, 2, 3, 1).contiguous().numpy())
    return np.concatenate(parts), labels


def pick_real(data: ImageSet, per_class: int, seed: int) -> tuple[Images, Labels]:
    """Pick index-major real training images, each class in a random order again and again."""
    rng = np.random.default_rng(seed)
    columns = []
    for label in range(len(data.classes)):
        mine = np.flatnonzero(data.train_labels == label)
        rounds = -(-per_class // len(mine))
        columns.append(np.concatenate([rng.permutation(mine) for _ in range(rounds)])[:per_class])
    rows = np.stack(columns, axis=1).reshape(-1)
    return data.train_images[rows], data.train_labels[rows].astype(np.int64)


def take_balanced(images: Images, labels: Labels, per_class: int) -> tuple[Images, Labels]:
    """Take the first `per_class` images of every class."""
    rows = np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)])
    return images[rows], labels[rows]
