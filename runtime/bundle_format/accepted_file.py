"""`accepted.bin`: the candidates that a bundle draws (`dim.runtime.sampling.accepted`).

The file holds unsigned little-endian integers: the candidates' key (8 bytes), the number of classes K and of candidates
per class M (4 bytes each). M / 8 bytes for each class follow. Candidate 8i + j is bit j of byte i, lowest bit first; 1
is accepted.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from dim.runtime.errors import BadValueError, BundleError
from dim.runtime.sampling.accepted import MAX_CANDIDATES, AcceptedCandidates, list_accepted

_HEAD = struct.Struct("<QII")
MAX_ACCEPTED_BYTES = _HEAD.size + MAX_CANDIDATES // 8


def read_accepted(data: bytes, num_classes: int) -> AcceptedCandidates:
    """Read which candidates were accepted.

    Args:
        data: the bytes of `accepted.bin`.
        num_classes: K, of the bundle.

    Returns:
        the accepted candidates of every class.

    Raises:
        BundleError: the file is truncated or too long, of other classes, or a class has no accepted candidate.
    """
    key, found, per_class = _HEAD.unpack_from(data) if len(data) >= _HEAD.size else (0, 0, 0)
    if found != num_classes:
        raise BundleError(f"accepted.bin is of {found} classes; the bundle has {num_classes}.")
    if per_class < 8 or per_class % 8 or len(data) != _HEAD.size + num_classes * per_class // 8:
        raise BundleError(
            f"accepted.bin has {len(data):,} bytes and speaks of {per_class:,} candidates per class; that does not fit."
        )
    if len(data) > MAX_ACCEPTED_BYTES:
        raise BundleError(f"accepted.bin has {len(data):,} bytes; at most {MAX_ACCEPTED_BYTES:,} are read.")
    packed = np.frombuffer(data, np.uint8, offset=_HEAD.size).reshape(num_classes, per_class // 8)
    try:
        return list_accepted(key, np.unpackbits(packed, axis=1, bitorder="little").view(np.bool_))
    except BadValueError as error:
        raise BundleError(f"accepted.bin is malformed: {error}") from None


def write_accepted(key: int, accepted_KM: NDArray[np.bool_]) -> bytes:
    """Write which candidates were accepted as the bytes of `accepted.bin`.

    Args:
        key: seed of the candidates' latents, 0 to 2**64 - 1.
        accepted_KM: bool [K, M], M a multiple of 8.

    Raises:
        BadValueError: a class has no accepted candidate, M is no multiple of 8, or there are too many.
    """
    list_accepted(key, accepted_KM)
    if accepted_KM.shape[1] % 8:
        raise BadValueError(f"There are {accepted_KM.shape[1]} candidates per class; it must be a multiple of 8.")
    return _HEAD.pack(key, *accepted_KM.shape) + np.packbits(accepted_KM, axis=1, bitorder="little").tobytes()
