"""`latents.npz`: latents optimised for fixed sets, float32 [K, M, Z] under the one key `latents`."""

import io
import zipfile

import numpy as np
from numpy.typing import NDArray

from dim.runtime.errors import BundleError
from dim.runtime.manifest import Manifest

MAX_LATENTS_BYTES = 256 * 2**20
_MEMBER = "latents.npy"
_MAX_HEADER_BYTES = 4096


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
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if [member.filename for member in members] != [_MEMBER]:
                raise BundleError(f"latents.npz must hold {_MEMBER} alone; it holds {len(members)} files.")
            if members[0].file_size > MAX_LATENTS_BYTES:
                raise BundleError(
                    f"latents.npz unpacks to {members[0].file_size:,} bytes; at most {MAX_LATENTS_BYTES:,} are read."
                )
            with archive.open(members[0]) as stream:
                # The size in the archive's directory is the writer's word; one byte more shows that it was a lie.
                content = stream.read(members[0].file_size + 1)
        file = io.BytesIO(content)
        if np.lib.format.read_magic(file) != (1, 0):
            raise BundleError("latents.npz must hold an array of NumPy's format 1.0.")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=_MAX_HEADER_BYTES)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError, RuntimeError) as error:
        raise BundleError(f"latents.npz is not an archive of NumPy arrays: {error}.") from None
    num_classes, latent_dim = manifest.num_classes, manifest.latent_dim
    if len(shape) != 3 or (shape[0], shape[2]) != (num_classes, latent_dim) or shape[1] < 1:
        raise BundleError(f"latents.npz has the shape {shape}; it must be ({num_classes}, images, {latent_dim}).")
    if dtype != np.dtype("<f4") or fortran_order:
        raise BundleError(f"latents.npz holds {dtype} values; it must hold float32 in C order.")
    start = file.tell()
    if len(content) - start != 4 * num_classes * shape[1] * latent_dim:
        raise BundleError("latents.npz is truncated or longer than its header says.")
    latents = np.frombuffer(content, np.float32, offset=start).reshape(shape)
    if not np.isfinite(latents).all():
        raise BundleError("latents.npz holds values that are not finite.")
    return latents


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
