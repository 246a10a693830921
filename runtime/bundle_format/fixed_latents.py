"""`latents.npz`: latents optimised for fixed sets, float32 [K, M, Z] under the one key `latents`."""

import io
import math
import re
import zipfile
import zlib

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.errors import BundleError

MAX_LATENTS_BYTES = 256 * 2**20
_MEMBER = "latents.npy"
# What NumPy writes before a numeric array, read without evaluating it.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([^']{1,16})', 'fortran_order': (True|False), "
    rb"'shape': \(([0-9, ]{0,60})\), \} *\n",
    re.DOTALL,
)
_PREFIX_BYTES = 10
_END_BYTES = 22
_MAX_DIRECTORY_BYTES = 1024


def read_fixed_latents(data: bytes, manifest: Manifest) -> NDArray[np.float32]:
    """Read the optimised latents of a bundle, without pickle and in bounded memory.

    Args:
        data: the bytes of `latents.npz`.
        manifest: gives K and Z.

    Returns:
        float32 [K, M, Z], M at least 1, read-only.

    Raises:
        BundleError: anything but one finite float32 array of that shape.
    """
    content = _read_only_member(data)
    header = _HEADER.match(content)
    if header is None:
        raise BundleError("latents.npz is not an archive of NumPy arrays: latents.npy has no header of format 1.0.")
    dtype, order, sizes = (group.decode("latin-1") for group in header.groups())
    shape = tuple(int(size) for size in sizes.replace(",", " ").split())
    num_classes, latent_dim = manifest.num_classes, manifest.latent_dim
    if len(shape) != 3 or (shape[0], shape[2]) != (num_classes, latent_dim) or shape[1] < 1:
        raise BundleError(f"latents.npz has the shape {shape}; it must be ({num_classes}, images, {latent_dim}).")
    if dtype != "<f4" or order != "False":
        raise BundleError(f"latents.npz holds {dtype} values; it must hold <f4 (float32) in C order.")
    start = _PREFIX_BYTES + int.from_bytes(content[_PREFIX_BYTES - 2 : _PREFIX_BYTES], "little")
    if start != header.end() or len(content) - start != 4 * math.prod(shape):
        raise BundleError("latents.npz is truncated or longer than its header says.")
    latents = np.frombuffer(content, "<f4", offset=start).reshape(shape).astype(np.float32, copy=False)
    if not np.isfinite(latents).all():
        raise BundleError("latents.npz holds values that are not finite.")
    return latents


def _read_only_member(data: bytes) -> bytes:
    """Unpack the archive's one member, never more bytes than its directory and the limit allow."""
    end = data[-_END_BYTES:]
    # The reader makes an object of every entry in the directory, whatever number the archive admits to.
    long_directory = int.from_bytes(end[12:16], "little") > _MAX_DIRECTORY_BYTES
    if end[:4] != b"PK\x05\x06" or long_directory or data[-_END_BYTES - 20 : -_END_BYTES - 16] == b"PK\x06\x07":
        raise BundleError(f"latents.npz is not an archive of NumPy arrays that holds {_MEMBER} alone.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if [member.filename for member in members] != [_MEMBER]:
                raise BundleError(f"latents.npz must hold {_MEMBER} alone; it holds {len(members)} files.")
            if members[0].file_size > MAX_LATENTS_BYTES:
                raise BundleError(
                    f"latents.npz unpacks to {members[0].file_size:,} bytes; at most {MAX_LATENTS_BYTES:,} are read."
                )
            if members[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise BundleError("latents.npz is packed by a method that NumPy does not write.")
            with archive.open(members[0]) as stream:
                # The size in the directory is the writer's word; one byte more shows that it was a lie.
                return stream.read(members[0].file_size + 1)
    except (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, OSError, EOFError, RuntimeError) as error:
        raise BundleError(f"latents.npz is not an archive of NumPy arrays: {error}.") from None


def write_fixed_latents(latents: NDArray[np.float32]) -> bytes:
    """Write optimised latents as the bytes of `latents.npz`: the same bytes for the same values.

    Args:
        latents: float32 [K, M, Z].
    """
    array = io.BytesIO()
    np.lib.format.write_array(array, np.ascontiguousarray(latents, np.float32), version=(1, 0), allow_pickle=False)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as writer:
        # A fixed date, the earliest that the format knows, keeps the bytes free of the clock.
        writer.writestr(zipfile.ZipInfo(_MEMBER, (1980, 1, 1, 0, 0, 0)), array.getvalue())
    return archive.getvalue()
