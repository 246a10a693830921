"""Features in which images are compared: those of a classifier trained here on real images, or of a given function.

A tenth of the training split is held out from the classifier and used as the training images of the comparison. The
classifier has seen neither these nor the test split, so in its features the two differ only by chance.
"""

import hashlib
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from dim.data.holdout import holdout_mask
from dim.data.image_set import ImageSet
from dim.evaluation.files import write_file
from dim.evaluation.images import fixed_images
from dim.execution.device_data import seed_of
from dim.networks.classifiers import Classifier, build_classifier
from dim.runtime.errors import BadValueError
from dim.students.recipes import resolve_recipe
from dim.students.train import (
    Normalizer,
    StudentSpec,
    choose_precision,
    measure_accuracy,
    split_test_images,
    train_student,
)

ARCH, WIDTH, STEPS = "convnet3", 32, 2000
"""Of the classifier: small enough for two cores."""
HELD_OUT = 0.1
"""Part of the training split that the classifier does not see."""

Images = NDArray[np.uint8]
Features = NDArray[np.float32]
Progress = Callable[[int, int], None]
"""Called with the finished steps and all steps."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A function from images to features."""

    description: str
    """What it is, in words, with its accuracy where it is a classifier."""
    accuracy: float | None
    """Percent of the test split; None for a function that is no classifier of ours."""
    extract: Callable[[Images], Features]
    """Images uint8 `[N, H, W, C]` to features float32 `[N, D]`."""


def hold_out(data: ImageSet) -> NDArray[np.bool_]:
    """Say which images of the training split the classifier does not see."""
    return holdout_mask(data.train_labels, len(data.classes), HELD_OUT, seed_of("features"))


def train_extractor(data: ImageSet, folder: Path, device: torch.device, progress: Progress) -> Extractor:
    """Train a classifier on real images, or read the one that an earlier call left in the folder.

    Returns its features.

    Raises:
        OutputError: the disk refused.
    """
    spec = StudentSpec(
        arch=ARCH,
        width=WIDTH,
        num_classes=len(data.classes),
        channels=data.channels,
        image_px=data.height,
        mean=data.mean,
        std=data.std,
        recipe=resolve_recipe("default", data.name),
        precision=choose_precision("auto", device),
    )
    seen = ~hold_out(data)
    asked = json.dumps([data.fingerprint(), STEPS, repr(spec)])
    path = folder / f"classifier-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.safetensors"
    network = _read_weights(path, spec)
    if network is None:
        images = fixed_images(
            data.train_images[seen], data.train_labels[seen], spec.recipe.batch_size, 0, torch.device(device), None
        )
        network, _ = train_student(
            spec, images.batches, STEPS, seed=0, device=device, progress=lambda step: progress(step, STEPS)
        )
        weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
        write_file(path, save(weights), f"The classifier {path}")
    network = network.to(device)
    normalize = Normalizer(data.mean, data.std, device)
    accuracy = measure_accuracy(network, data.test_images, data.test_labels, normalize, device)
    return Extractor(
        description=(
            f"features of a {ARCH} of width {WIDTH}, trained here on {int(seen.sum()):,} images of the training split "
            f"of {data.name} for {STEPS:,} steps, which reaches {accuracy:.1f} % on the test split"
        ),
        accuracy=accuracy,
        extract=lambda images: _extract(network, images, normalize, device),
    )


def _read_weights(path: Path, spec: StudentSpec) -> Classifier | None:
    """Return the classifier in a file; None where there is none, or only what a crash left."""
    network = build_classifier(spec.arch, spec.num_classes, spec.channels, spec.image_px, spec.width)
    try:
        network.load_state_dict(load(path.read_bytes()))
    except (OSError, SafetensorError, RuntimeError):
        return None
    return network.eval()


@torch.no_grad()
def _extract(network: Classifier, images: Images, normalize: Normalizer, device: torch.device) -> Features:
    parts = split_test_images(images, normalize, device, network.memory_format)
    return np.concatenate([network.features(inputs).float().cpu().numpy() for inputs in parts])


def load_extractor(name: str) -> Extractor:
    """Load a function of the user's, called `MODULE:FUNCTION`, from images to features.

    Args:
        name: a module on Python's path or in this folder, and a function in it. It takes uint8 `[N, H, W, C]` and
            returns numbers `[N, D]`.

    Raises:
        BadValueError: there is none, or it returns something else.
    """
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        raise BadValueError(f"--features got {name!r}; it takes MODULE:FUNCTION, as in my_features:embed.")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise BadValueError(f"--features {name} is not to be had: {error}.") from error
    if not callable(function):
        raise BadValueError(f"--features {name} is no function.")

    def extract(images: Images) -> Features:
        found = np.asarray(function(images), dtype=np.float32)
        if found.ndim != 2 or len(found) != len(images) or not np.isfinite(found).all():
            raise BadValueError(
                f"--features {name} returned the shape {list(found.shape)} for {len(images)} images; it must return "
                "finite numbers, one row per image."
            )
        return found

    return Extractor(description=f"features by {name}", accuracy=None, extract=extract)
