"""Arrays of pixels as people keep them, NHWC or NCHW, bytes, whole numbers or floats, to uint8 NHWC."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.data.image_set import Images
from dim.data.images.decode import BYTE_BITS, choose_bits
from dim.runtime.errors import DataError

_STEP = 4096


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
        DataError: other shapes, types or values.
    """
    remarks: list[str] = []
    shaped = [_to_nhwc(array, where, remarks) for array in arrays]
    images = _to_bytes(shaped, where, bits, remarks)
    return [_over_white(part, remarks) for part in images], tuple(dict.fromkeys(remarks))


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
    kinds = {array.dtype.kind for array in arrays}
    if all(array.dtype == np.uint8 for array in arrays):
        if not any(
            (array[start : start + _STEP] > 1).any() for array in arrays for start in range(0, len(array), _STEP)
        ):
            remarks.append("no byte is above 1, so the images are nearly black; save them from 0 to 255")
        return list(arrays)
    if kinds == {"b"}:
        remarks.append("pixels were true or false: 255 and 0")
        return [array.astype(np.uint8) * np.uint8(255) for array in arrays]
    if not kinds <= set("iuf"):
        raise DataError(f"{where}: images are {arrays[0].dtype}, expected uint8, whole numbers or floats.")
    bounds = [_bounds(part) for part in arrays]
    low, high = min(low for low, _, _ in bounds), max(high for _, high, _ in bounds)
    whole = all(whole for _, _, whole in bounds)
    if not np.isfinite([low, high]).all():
        raise DataError(f"{where}: images hold values that are no numbers (nan or infinity); mend them first.")
    if "f" in kinds and low >= 0 and high <= 1:
        remarks.append("floats from 0 to 1 became 0 to 255")
        return [_scale(part, 255.0, 0.0) for part in arrays]
    if "f" in kinds and low >= -1 and high <= 1:
        remarks.append("floats from -1 to 1 became 0 to 255")
        return [_scale(part, 127.5, 127.5) for part in arrays]
    if whole and low >= 0 and high <= 255:
        remarks.append(f"{arrays[0].dtype} values from 0 to 255 were taken as they are")
        return [part.astype(np.uint8) for part in arrays]
    if whole and low >= 0 and high < 2**16 and "f" not in kinds:
        used = choose_bits(int(high), bits, where)
        remarks.append(f"values up to {int(high)} were read as using {used} bits")
        return [(part >> (used - BYTE_BITS)).clip(0, 255).astype(np.uint8) for part in arrays]
    raise DataError(
        f"{where}: images are {arrays[0].dtype} from {low:g} to {high:g}, expected 0 to 255, floats from 0 to 1 or "
        "from -1 to 1; undo their normalisation first."
    )


def _bounds(array: NDArray[Any]) -> tuple[float, float, bool]:
    """Return the smallest value, the largest, and whether all are whole; nan where one is."""
    low, high, whole = float("inf"), float("-inf"), True
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
