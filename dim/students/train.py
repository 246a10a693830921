"""Training one classifier on batches of uint8 images, and measuring it: the student of `dim eval`.

A recipe is everything about the training but the images, so that generated and real images get the same one. Images
stay uint8 until a batch is used, and are augmented on the device.

Shape legend: N batch, C channels, H = W image_px, K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dim.augment import augment, default_policy, parse_policy
from dim.execution.cuda_graphs import GraphedSteps, own_stream, recordable_rate, set_rate
from dim.execution.device_data import seed_of
from dim.networks.classifiers import Classifier, build_classifier
from dim.runtime.errors import BadValueError

TEST_BATCH_PIXELS = 2**20
"""Pixels of one test batch: bounds memory at every image size."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a student is trained, whatever it is trained on."""

    name: str
    """What tables call it."""
    lr: float
    """Peak learning rate of SGD."""
    schedule: str = "onecycle"
    """`constant`; `step`, a tenth of it in the second half; or `onecycle`: linear warm-up over the first fifth of the
    steps, then linear decay to zero."""
    momentum: float = 0.9
    """SGD momentum."""
    nesterov: bool = False
    """Nesterov's form of the momentum."""
    weight_decay: float = 5e-4
    """L2 penalty on all weights, as in torch's SGD."""
    label_smoothing: float = 0.0
    """Part of the target spread evenly over all classes; hard labels only."""
    temperature: float = 1.0
    """Divides the logits of student and teacher; soft labels only."""
    batch_size: int = 64
    """Images per step; the last batch of an epoch may be smaller."""
    augment: str = "none"
    """Policy of `dim.augment`."""
    fill: str = "black"
    """What comes into view at the borders: `black` pixels, or the `mean` of the set (augmenting after normalising)."""

    def __post_init__(self) -> None:
        for field, low, high in [
            ("lr", 1e-8, 100.0),
            ("momentum", 0.0, 0.9999),
            ("weight_decay", 0.0, 1.0),
            ("label_smoothing", 0.0, 0.9),
            ("temperature", 0.1, 100.0),
            ("batch_size", 1, 65_536),
        ]:
            value = getattr(self, field)
            if not low <= value <= high:
                raise BadValueError(f"Recipe.{field} is {value}; it must lie between {low:g} and {high:g}.")
        for field, allowed in [("schedule", ("constant", "step", "onecycle")), ("fill", ("black", "mean"))]:
            if getattr(self, field) not in allowed:
                raise BadValueError(
                    f"Recipe.{field} is {getattr(self, field)!r}; it must be one of {', '.join(allowed)}."
                )
        parse_policy(self.augment)

    def lr_at(self, step: int, steps: int) -> float:
        """Return the learning rate of step 0 <= `step` < `steps`."""
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "step":
            return self.lr if 2 * step < steps else 0.1 * self.lr
        warmup = max(1.0, 0.2 * steps)
        return self.lr * min((step + 1) / warmup, (steps - step) / max(1.0, steps - warmup), 1.0)


PUBLISHED = Recipe(name="published", lr=0.01, schedule="constant", augment="color_crop", fill="mean")
"""The student of the DiM code: SGD 0.01 constant, momentum 0.9, weight decay 5e-4, colour and crop, batch 64."""

CONDENSATION = Recipe(
    name="condensation",
    lr=0.01,
    schedule="step",
    batch_size=256,
    augment="color|crop|cutout|flip|scale|rotate",
    fill="mean",
)
"""The student of the Dataset Condensation code for DSA (arXiv 2102.08259) and DM (arXiv 2110.04181): SGD 0.01, a tenth
of it in the second half, batch 256, one kind of augmentation per batch. That code trains for one epoch more, keeps the
first rate for two epochs longer and begins the second with a new optimiser. `resolve_recipe` leaves out mirroring where
it may not keep the class."""

DEFAULT = Recipe(name="default", lr=0.06, label_smoothing=0.1)
"""One cycle with label smoothing; `resolve_recipe` adds the augmentation that suits the dataset."""


def resolve_recipe(recipe: str | Recipe, data_name: str) -> Recipe:
    """Return the recipe of that name, with the dataset's augmentation.

    Args:
        recipe: `default`, `published`, `condensation`, `condensation-all`, which is the same with every kind of
            augmentation at once, or a finished recipe, which is returned as it is.
        data_name: the dataset's name; decides whether images may be mirrored (see `default_policy`).

    Raises:
        BadValueError: there is no recipe of that name.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe == "published":
        return PUBLISHED
    if recipe == "default":
        return replace(DEFAULT, augment=default_policy(data_name))
    if recipe in ("condensation", "condensation-all"):
        mirrored = "flip" in default_policy(data_name)
        kinds = [kind for kind in CONDENSATION.augment.split("|") if mirrored or kind != "flip"]
        return replace(CONDENSATION, name=recipe, augment=("_" if recipe == "condensation-all" else "|").join(kinds))
    raise BadValueError(
        f"There is no student recipe '{recipe}'; there are default, published, condensation and condensation-all."
    )


def choose_precision(precision: str, device: torch.device) -> str:
    """Resolve `auto` into what pays on the device.

    Args:
        precision: `auto`, `fp32` or `bf16`.
        device: where the student trains.

    Returns:
        `bf16` where the hardware multiplies it natively (0.65 of the time of fp32 on an AVX-512-BF16 CPU), else `fp32`.

    Raises:
        BadValueError: another precision.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise BadValueError(f"The students' precision is {precision!r}; it must be auto, fp32 or bf16.")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
    return "bf16" if native else "fp32"


class Normalizer:
    """Turns uint8 pixels into what a student takes: (pixel / 255 - mean) / std, per channel.

    Args:
        mean, std: one number per channel, on the scale 0 to 1, of the real training split.
        device: where the images are.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        # A channel without any contrast carries nothing; it must not divide by zero.
        self.std = torch.tensor(std, dtype=torch.float32, device=device).clamp_min(1e-3).view(1, -1, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise float pixels in [0, 1], `[N, C, H, W]`."""
        return (pixels - self.mean) / self.std


def prepare(images: Tensor, normalize: Normalizer, recipe: Recipe, generator: torch.Generator | None) -> Tensor:
    """Turn a batch of uint8 images `[N, C, H, W]` into an augmented, normalised float32 batch of the same shape."""
    pixels = images.float() / 255
    if recipe.fill == "mean":
        return augment(normalize(pixels), recipe.augment, generator)
    return normalize(augment(pixels, recipe.augment, generator))


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """Which student is trained, and on what kind of machine."""

    arch: str
    """A name of `dim.networks.classifiers`."""
    width: int | None
    """Its width; None for the published one."""
    num_classes: int
    channels: int
    image_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recipe: Recipe
    precision: str
    """`fp32`, or `bf16` for bfloat16 autocast."""


Batch = tuple[Tensor, Tensor, Tensor | None]
"""Images uint8 `[N, C, H, W]`, labels int64 `[N]`, a teacher's logits float32 `[N, K]` or None; all on the device."""


def train_student(
    spec: StudentSpec,
    batches: Iterator[Batch],
    steps: int,
    *,
    seed: int,
    device: torch.device,
    graphs: bool = True,
    progress: Callable[[int], None] = lambda step: None,
) -> tuple[Classifier, float]:
    """Train a fresh classifier for a given number of steps.

    The first weights and the augmentation depend on the seed alone: students of one seed differ in their images only.

    Args:
        spec: network, normalisation and recipe.
        batches: at least `steps` batches.
        steps: SGD steps.
        seed: of the weights and the augmentation.
        device: where to train.
        graphs: replay the steps as CUDA graphs on a GPU.
        progress: called with the number of finished steps after each one.

    Returns:
        The classifier after the last step, in `eval()` mode, and its last loss, which is not finite if it diverged.
    """
    recipe = spec.recipe
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = build_classifier(spec.arch, spec.num_classes, spec.channels, spec.image_px, spec.width)
    student = student.to(device).to(memory_format=student.memory_format)  # type: ignore[call-overload]
    student.train()
    steps_taken = GraphedSteps(device, wanted=graphs, remedy="--no-graphs")
    optimizer = torch.optim.SGD(
        student.parameters(),
        lr=recordable_rate(recipe.lr, steps_taken),
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    normalize = Normalizer(spec.mean, spec.std, device)
    steps_taken.generator.manual_seed(seed_of("student augmentation", seed))

    def learn(
        generator: torch.Generator, images: Tensor, labels: Tensor, teacher_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        inputs = prepare(images, normalize, recipe, generator).contiguous(memory_format=student.memory_format)
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
            logits = student(inputs)
        loss = _loss(logits.float(), labels, teacher_logits, recipe)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return {"loss": loss.detach()}

    loss = torch.zeros(())
    with own_stream(device):
        for step in range(steps):
            batch = [tensor for tensor in next(batches) if tensor is not None]
            set_rate(optimizer, recipe.lr_at(step, steps))
            loss = steps_taken.take(len(batch[0]), learn, *batch, left=steps - step)["loss"]
            progress(step + 1)
    student.eval()
    return student, float(loss.item())


def _loss(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None, recipe: Recipe) -> Tensor:
    if teacher_logits is None:
        return F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    t = recipe.temperature
    student, teacher = F.log_softmax(logits / t, dim=1), F.log_softmax(teacher_logits / t, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * t**2


@torch.no_grad()
def measure_accuracy(
    classifier: Classifier,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    normalize: Normalizer,
    device: torch.device,
) -> float:
    """Return the share of images whose highest logit is their label's, in percent; fp32, no augmentation.

    Args:
        classifier: in `eval()` mode.
        images: uint8 `[M, H, W, C]`.
        labels: int64 `[M]`.
        normalize: as in training.
        device: where the classifier is.
    """
    assert not classifier.training
    rows = max(1, TEST_BATCH_PIXELS // (images.shape[1] * images.shape[2]))
    right = 0
    for start in range(0, len(images), rows):
        batch = torch.from_numpy(images[start : start + rows]).to(device).permute(0, 3, 1, 2)
        inputs = normalize(batch.float() / 255).contiguous(memory_format=classifier.memory_format)
        predicted = classifier(inputs).argmax(dim=1).cpu()
        right += int((predicted == torch.from_numpy(labels[start : start + rows])).sum())
    return 100.0 * right / len(images)
