"""Training one classifier on batches of uint8 images, and measuring it: the student of `dim eval`.

Images stay uint8 until a batch is used, and are augmented on the device.

Shape legend: N batch, C channels, H = W image_px, K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dim.augment import augment
from dim.execution.compiled import run_compiled
from dim.execution.cuda_graphs import GraphedSteps, capturable_lr, set_lr, use_own_stream
from dim.execution.device import cpu_multiplies_bf16
from dim.execution.device_data import move_images, seed_of
from dim.networks.classifiers import GAIN_BY_COMPILING, Classifier, build_classifier
from dim.students.recipes import Recipe

TEST_BATCH_PIXELS = 2**20
"""Pixels of one test batch: bounds memory at every image size."""


def choose_precision(precision: str, device: torch.device) -> str:
    """Resolve `auto` into what pays on the device, `fp32` or `bf16`; these two are returned as they are.

    That is `bf16` where the hardware multiplies it natively: 0.65 of the time of fp32 on an AVX-512-BF16 CPU.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = cpu_multiplies_bf16()
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
    compiled: bool = False
    """Whether its steps are compiled if it gains by that; see `dim.execution.compiled.can_compile`."""

    @property
    def runs_compiled(self) -> bool:
        """Whether this student's steps are compiled."""
        return self.compiled and self.arch in GAIN_BY_COMPILING


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
    layout = torch.channels_last if spec.runs_compiled else student.memory_format
    student = student.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    student.train()
    steps_taken = GraphedSteps(device, wanted=graphs, remedy="--no-graphs")
    optimizer = torch.optim.SGD(
        student.parameters(),
        lr=capturable_lr(recipe.lr, steps_taken),
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
        inputs = prepare(images, normalize, recipe, generator).contiguous(memory_format=layout)
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
            logits = run_compiled(student, inputs)[1] if spec.runs_compiled else student(inputs)
        loss = _loss(logits.float(), labels, teacher_logits, recipe)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return {"loss": loss.detach()}

    loss = torch.zeros(())
    with use_own_stream(device):
        for step in range(steps):
            batch = [tensor for tensor in next(batches) if tensor is not None]
            set_lr(optimizer, recipe.lr_at(step, steps))
            loss = steps_taken.take(len(batch[0]), learn, *batch, left=steps - step)["loss"]
            progress(step + 1)
    student.to(memory_format=student.memory_format).eval()
    return student, float(loss.item())


def _loss(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None, recipe: Recipe) -> Tensor:
    if teacher_logits is None:
        return F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    t = recipe.temperature
    student, teacher = F.log_softmax(logits / t, dim=1), F.log_softmax(teacher_logits / t, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * t**2


def measure_accuracy(
    classifier: Classifier,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    normalize: Normalizer,
    device: torch.device,
) -> float:
    """Return the share of images whose highest logit is their label's, in percent; as `predict_classes`."""
    predicted = predict_classes(classifier, images, normalize, device)
    return 100.0 * int((predicted == labels).sum()) / len(images)


def split_test_images(
    images: NDArray[np.uint8], normalize: Normalizer, device: torch.device, layout: torch.memory_format
) -> Iterator[Tensor]:
    """Give images uint8 `[M, H, W, C]` part by part as normalised float32 `[N, C, H, W]` on the device."""
    rows = max(1, TEST_BATCH_PIXELS // (images.shape[1] * images.shape[2]))
    for start in range(0, len(images), rows):
        batch = move_images(images[start : start + rows], device)
        yield normalize(batch.float() / 255).contiguous(memory_format=layout)


@torch.no_grad()
def predict_classes(
    classifier: Classifier,
    images: NDArray[np.uint8],
    normalize: Normalizer,
    device: torch.device,
    *,
    compiled: bool = False,
) -> NDArray[np.int64]:
    """Return the class with the highest logit of every image, int64 `[M]`; fp32, no augmentation.

    Args:
        classifier: in `eval()` mode.
        images: uint8 `[M, H, W, C]`.
        normalize: as in training.
        device: where the classifier is.
        compiled: by compiled code, which rounds differently.
    """
    assert not classifier.training
    layout = torch.channels_last if compiled else classifier.memory_format
    classifier.to(memory_format=layout)  # type: ignore[call-overload]
    predicted = []
    for inputs in split_test_images(images, normalize, device, layout):
        logits = run_compiled(classifier, inputs)[1] if compiled else classifier(inputs)
        predicted.append(logits.argmax(dim=1).cpu().numpy())
    classifier.to(memory_format=classifier.memory_format)  # type: ignore[call-overload]
    return np.concatenate(predicted)
