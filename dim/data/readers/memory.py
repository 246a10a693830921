"""Reads data that is already in memory: arrays, PyTorch datasets, Hugging Face datasets."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.data.image_set import Images, RawSet, Source
from dim.data.images.decode import resize_batch
from dim.data.images.sizes import choose_size
from dim.data.readers.hugging_face import read_dataset
from dim.data.readers.npz import make_raw_set
from dim.runtime.errors import BadValueError, DataError


def read_memory(found: Any, source: Source) -> RawSet:
    """Read `(images, labels)`, a dataset of `(image, label)` pairs, or a pair of either as training and test split.

    Args:
        found: arrays as `dim.data.images.arrays` and `dim.data.classes.labels` take them; or anything with a length
            whose items are pairs of an image (PIL, array or tensor) and a label, as in a map-style dataset of PyTorch.
        source: what the user wishes.

    Raises:
        BadValueError: something else.
        DataError: the arrays or images cannot be read.
    """
    if type(found).__module__.partition(".")[0] == "datasets":
        return read_dataset(found, source)
    pair = isinstance(found, tuple | list) and len(found) == 2
    splits = [found] if not pair or _is_array(found[0]) else list(found)
    parts = [_read_split(split, source) for split in splits]
    arrays = dict(zip(("images", "labels"), parts[0], strict=True))
    if any(not len(array) for part in parts for array in part):
        raise DataError(f"{source.name}: an array is empty; give at least one image, and its label, per split.")
    if len(parts) == 2:
        arrays |= dict(zip(("test_images", "test_labels"), parts[1], strict=True))
    names = _class_names(splits[0]) or _names_of_subset(splits[0], arrays["labels"])
    return make_raw_set(arrays, source, "images in memory", names)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _as_array(value: Any) -> NDArray[Any]:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def _class_names(split: Any) -> tuple[str, ...] | None:
    names = getattr(split, "classes", None)
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def _names_of_subset(split: Any, labels: NDArray[Any]) -> tuple[str, ...] | None:
    """Take the class names of the dataset that a PyTorch Subset is of, where it holds every class."""
    while hasattr(split, "indices") and hasattr(split, "dataset"):
        split = split.dataset
    names = _class_names(split)
    return names if names is not None and len(np.unique(labels)) == len(names) else None


def _read_split(split: Any, source: Source) -> tuple[NDArray[Any], NDArray[Any]]:
    if isinstance(split, tuple | list) and len(split) == 2 and _is_array(split[0]):
        return _as_array(split[0]), _as_array(split[1])
    if isinstance(split, Mapping) or not (hasattr(split, "__len__") and hasattr(split, "__getitem__")):
        raise BadValueError(
            f"data is {type(split).__name__}: give a name or path, (images, labels), or a dataset with a length whose "
            "items are (image, label)."
        )
    images: list[NDArray[Any]] = []
    labels: list[Any] = []
    for number in range(len(split)):
        item = split[number]
        if not (isinstance(item, tuple | list) and len(item) >= 2):
            raise BadValueError(f"item {number} of data is {type(item).__name__}, expected a pair of image and label.")
        images.append(_image_array(item[0]))
        labels.append(item[1].item() if hasattr(item[1], "item") and getattr(item[1], "size", 1) == 1 else item[1])
        if number % 256 == 0:
            source.progress(f"{source.name}: reading images", number, len(split), "")
    if not images:
        raise DataError(f"{source.name}: the dataset is empty.")
    return _stack(images, source), np.asarray([_as_array(label) for label in labels])


def _image_array(image: Any) -> NDArray[Any]:
    if hasattr(image, "convert") and image.mode not in ("L", "RGB", "RGBA", "I;16"):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode in ("LA", "PA") else "RGB")
    array = _as_array(image)
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    return array[..., None] if array.ndim == 2 else array


def _stack(images: list[NDArray[Any]], source: Source) -> NDArray[Any]:
    """Join images of one shape, or bring bytes of several sizes to one."""
    if len({(image.shape, image.dtype) for image in images}) == 1:
        return np.stack(images)
    if any(image.ndim != 3 or image.dtype != np.uint8 for image in images):
        raise DataError(
            f"{source.name}: images of different sizes must be uint8 [H, W, C]; convert or resize them first."
        )
    channels = max(image.shape[2] for image in images)
    size, sentence = choose_size(Counter(image.shape[:2] for image in images), source.options.size)
    if sentence:
        source.say(f"{source.name}: {sentence}")
    result: Images = np.empty((len(images), size, size, channels), dtype=np.uint8)
    for row, image in enumerate(images):
        whole = np.repeat(image, channels, axis=2) if image.shape[2] == 1 else image
        result[row] = resize_batch(whole[None, ..., :channels], size)[0]
    return result
