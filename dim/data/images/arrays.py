"""Converts arrays of pixels (NHWC or NCHW; bytes, integers or floats) to uint8 NHWC."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.data.image_set import Images
from dim.data.images.decode import BYTE_BITS, choose_bits
from dim.runtime.errors import DataError

_STEP = 4096
_ROUNDING = 1e-3
"""How far floats may leave their range, as rounding makes them; they are clipped."""
_UNIT, _SIGNED, _TRUTH, _BYTES, _WIDE = "0 to 1", "-1 to 1", "true or false", "0 to 255", "above 255"
"""The forms of pixels."""


def read_pixels(
    arrays: Sequence[NDArray[Any]], where: str, bits: int | None = None
) -> tuple[list[Images], tuple[str, ...]]:
    """Bring the splits of a set to uint8 `[N, H, W, C]`, all by one rule.

    Args:
        arrays: one for each split: `[N, H, W]`, `[N, H, W, C]`, `[N, C, H, W]` or `[N, pixels]` of square grey images;
            C is 1, 3 or 4 (transparency becomes white). Bytes and whole numbers up to 255 are taken as they are, floats
            from 0 to 1 or from -1 to 1 are spread over 0 to 255, larger whole numbers keep the upper eight of the bits
            that they use.
        where: stands for them in messages.
        bits: that whole numbers above 255 use; None finds them.

    Returns:
        the images of each split, and what was done to them.

    Raises:
        DataError: other shapes, types or values, or splits of different ranges.
    """
    remarks: list[str] = []
    shaped = [_to_nhwc(array, where, remarks) for array in arrays]
    images = _to_bytes(shaped, where, bits, remarks)
    return [_over_white(part, remarks) for part in images], tuple(dict.fromkeys(remarks))


def has_wide_values(arrays: Sequence[NDArray[Any]]) -> bool:
    """Whether whole numbers above 255 are among the pixels, so that their number of bits matters."""
    return any(array.dtype.kind in "iu" and array.dtype != np.uint8 and array.max() > 255 for array in arrays)


def _to_nhwc(array: NDArray[Any], where: str, remarks: list[str]) -> NDArray[Any]:
    shape = list(array.shape)
    if array.ndim == 2:
        side = round(shape[1] ** 0.5)
        if side * side == shape[1] and side >= 4:
            remarks.append(f"rows of {shape[1]} values were taken for grey images of {side} x {side} pixels")
            return array.reshape(-1, side, side, 1)
    elif array.ndim == 3:
        return array[..., None]
    elif array.ndim == 4:
        if shape[3] in (1, 3, 4):
            return array
        if shape[1] in (1, 3, 4):
            remarks.append("images were stored channel by channel ([N, C, H, W])")
            return array.transpose(0, 2, 3, 1)
    raise DataError(f"{where}: images have shape {shape}, expected [N, H, W], [N, H, W, C] or [N, C, H, W], C 1 or 3.")


def _to_bytes(arrays: list[NDArray[Any]], where: str, bits: int | None, remarks: list[str]) -> list[Images]:
    form = find_form(dict(zip(("the training images", "the test images"), arrays, strict=False)), where)
    if form == _UNIT:
        remarks.append("floats from 0 to 1 became 0 to 255")
        return [_scale(part, 255.0, 0.0) for part in arrays]
    if form == _SIGNED:
        remarks.append("floats from -1 to 1 became 0 to 255")
        return [_scale(part, 127.5, 127.5) for part in arrays]
    if form == _TRUTH:
        remarks.append("pixels were true or false: 255 and 0")
        return [array.astype(np.uint8) * np.uint8(255) for array in arrays]
    if form == _WIDE:
        largest = max(int(array.max()) for array in arrays)
        used = choose_bits(largest, bits, where)
        remarks.append(f"values up to {largest} were read as using {used} bits")
        return [(part >> (used - BYTE_BITS)).clip(0, 255).astype(np.uint8) for part in arrays]
    if other := next((array.dtype for array in arrays if array.dtype != np.uint8), None):
        remarks.append(f"{other} values from 0 to 255 were taken as they are")
        return [part.astype(np.uint8) for part in arrays]
    if not any((part[at : at + _STEP] > 1).any() for part in arrays for at in range(0, len(part), _STEP)):
        remarks.append("no byte is above 1, so the images are nearly black; save them from 0 to 255")
    return list(arrays)


def find_form(arrays: Mapping[str, NDArray[Any]], where: str) -> str:
    """Find the one form that the pixels of several arrays have: their kind and range.

    Args:
        arrays: by what messages call them.
        where: stands for all of them in messages.

    Raises:
        DataError: an array is in no form that is read, or they are not all in the same.
    """
    bounds = {name: _bounds(array) for name, array in arrays.items()}
    wide = {
        array.dtype
        for name, array in arrays.items()
        if array.dtype.kind in "iu" and bounds[name][1] > np.iinfo("u1").max
    }
    forms = {name: _form_of(array, *bounds[name], array.dtype in wide, where) for name, array in arrays.items()}
    first, *others = forms
    for name in others:
        if forms[name] != forms[first]:
            shown = [
                f"{each} are {arrays[each].dtype} from {bounds[each][0]:g} to {bounds[each][1]:g}"
                for each in (first, name)
            ]
            raise DataError(f"{where}: {shown[0]} and {shown[1]}; save all in one range.")
    return forms[first]


def _form_of(array: NDArray[Any], low: float, high: float, whole: bool, is_wide: bool, where: str) -> str:
    kind = array.dtype.kind
    if kind == "b":
        return _TRUTH
    if kind not in "iuf":
        raise DataError(f"{where}: images are {array.dtype}, expected uint8, whole numbers or floats.")
    if not np.isfinite([low, high]).all():
        raise DataError(f"{where}: images hold values that are no numbers (nan or infinity); fix them first.")
    if kind == "f" and -1 - _ROUNDING <= low and high <= 1 + _ROUNDING:
        return _UNIT if low >= -_ROUNDING else _SIGNED
    if whole and low >= 0 and high <= 255 and not is_wide:
        return _BYTES
    if is_wide and low >= 0 and high < 2**16:
        return _WIDE
    raise DataError(
        f"{where}: images are {array.dtype} from {low:g} to {high:g}, expected 0 to 255, floats from 0 to 1 or "
        "from -1 to 1; undo their normalisation first."
    )


def _bounds(array: NDArray[Any]) -> tuple[float, float, bool]:
    """Return the smallest value, the largest, and whether all are whole; nan where one is."""
    low, high, whole = float("inf"), float("-inf"), True
    if array.dtype.kind not in "biuf" or array.dtype == np.uint8:
        return 0.0, 255.0, True  # refused by its type, or needs no look
    for start in range(0, len(array), _STEP):
        part = array[start : start + _STEP]
        low, high = float(np.minimum(low, part.min())), float(np.maximum(high, part.max()))
        whole = whole and (array.dtype.kind != "f" or bool((part == np.rint(part)).all()))
    return low, high, whole


def _scale(array: NDArray[Any], factor: float, offset: float) -> Images:
    images = np.empty(array.shape, dtype=np.uint8)
    for start in range(0, len(array), _STEP):
        part = array[start : start + _STEP].astype(np.float32)
        images[start : start + _STEP] = np.rint(part * factor + offset).clip(0, 255)
    return images


def _over_white(images: Images, remarks: list[str]) -> Images:
    if images.shape[3] != 4:
        return images
    remarks.append("transparency was composited on white")
    result = np.empty((*images.shape[:3], 3), dtype=np.uint8)
    for start in range(0, len(images), _STEP):
        part = images[start : start + _STEP].astype(np.uint32)
        alpha = part[..., 3:]
        result[start : start + _STEP] = (part[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return result
