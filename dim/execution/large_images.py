"""Images of a set larger than memory: they stay in a memory-mapped file, and batches are read from it.

Shapes: N images, H = W pixels, C channels.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Rows = NDArray[np.int64]

PART_IN_MEMORY = 4
"""Images are held in memory where they take at most so much of what is free: a quarter."""


class MappedRows:
    """Rows of an array on disk, in any order; indexing reads them as it would those of an array in memory.

    Args:
        path: of an `.npy` file with uint8 `[M, H, W, C]`.
        rows: int64 `[N]`, which of them and in which order.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, path: Path, rows: Rows) -> None:
        self.path = path
        self.rows = rows
        self._images: Images = np.load(path, mmap_mode="r", allow_pickle=False)
        self.shape: tuple[int, ...] = (len(rows), *self._images.shape[1:])
        self.nbytes = math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Images:
        """Read images; `key` is an integer, a slice, an array of integers or a mask over the rows."""
        return np.asarray(self._images[self.rows[key]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("Images on disk are read into a new array.")
        return np.asarray(self[:], dtype=dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedRows, (self.path, self.rows)  # another process opens the file itself

    def select(self, rows: Rows) -> "MappedRows":
        """Return some of the rows without reading them."""
        return MappedRows(self.path, self.rows[rows])


def is_too_large(num_bytes: int) -> bool:
    """Whether images of so many bytes stay on disk."""
    return num_bytes > free_memory_bytes() // PART_IN_MEMORY


def open_images(path: Path, rows: Rows) -> Images:
    """Open rows of images on disk: as an array, or where they are too large for memory as a `MappedRows`.

    Args:
        path: of an `.npy` file with uint8 `[M, H, W, C]`.
        rows: int64 `[N]`, ascending.
    """
    mapped = MappedRows(path, rows)
    if is_too_large(mapped.nbytes):
        return cast(Images, mapped)
    images: Images = np.load(path, mmap_mode="c", allow_pickle=False)
    is_span = len(rows) > 0 and int(rows[-1]) - int(rows[0]) == len(rows) - 1
    return images[int(rows[0]) : int(rows[-1]) + 1] if is_span else images[rows]


def select_images(images: Images, chosen: NDArray[Any]) -> Images:
    """Return the chosen images as an array; those of a `MappedRows` that are too large for memory as another one.

    Args:
        images: uint8 `[N, H, W, C]`.
        chosen: int64 rows, or a mask bool `[N]`.
    """
    mapped: Any = images
    if type(mapped) is not MappedRows:
        taken: Images = mapped[chosen]
        return taken
    part = mapped.select(np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.int64))
    return cast(Images, part if is_too_large(part.nbytes) else part[:])


def identify_images(images: Images) -> bytes:
    """Return 32 bytes that say which images these are: a hash of them, or of the rows of a file that stays as it is."""
    mapped: Any = images
    if type(mapped) is MappedRows:
        return hashlib.sha256(str(mapped.path).encode() + mapped.rows.tobytes()).digest()
    return hashlib.sha256(np.ascontiguousarray(images).data).digest()


def free_memory_bytes() -> int:
    """Return the memory that this process may still take: what the machine has free, or its control group allows."""
    free = [_read_machine()]
    for limit, usage in _list_group_files():
        with suppress(OSError, ValueError):  # "max", or a group that is not to be seen
            allowed = int(limit.read_text())
            free.append(max(allowed - int(usage.read_text()) + _read_reclaimable(limit.parent), 0))
    return min(free)


def _read_machine() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 2**62


def _list_group_files() -> Iterator[tuple[Path, Path]]:
    """Give the files with the limit and the use of memory of this process's control group, in versions 2 and 1."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if not kinds:
                root = Path("/sys/fs/cgroup")
                names = ("memory.max", "memory.current")
            elif "memory" in kinds.split(","):
                root = Path("/sys/fs/cgroup/memory")
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            else:
                continue
            for folder in (root / path.lstrip("/"), root):  # a container sees its own group as the root
                yield folder / names[0], folder / names[1]


def _read_reclaimable(group: Path) -> int:
    """Return the bytes of a group that are pages of files, which the kernel takes back when it needs them."""
    lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    return sum(int(value) for name, value in lines if name in ("inactive_file", "active_file"))
