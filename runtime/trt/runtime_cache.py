"""Keep what TensorRT for RTX compiles on this GPU beside the engine, so that the next start is fast.

The cache holds compiled code, so it is kept in the user's private cache, never in a bundle. The library itself checks
that it fits the version, the GPU and the driver, and refuses it otherwise.
"""

import hashlib
from typing import Any

from dim.runtime.gpu.driver import Gpu
from dim.runtime.storage.private_cache import read_if_cached, write_if_possible
from dim.runtime.trt.library import TrtLibrary
from dim.runtime.trt.sidecar import Sidecar


class RuntimeCache:
    """The runtime cache of one engine on one GPU; does nothing for TensorRT, which has none.

    Args:
        library: the library.
        sidecar: the engine's sidecar.
        gpu: the GPU it runs on.
    """

    def __init__(self, library: TrtLibrary, sidecar: Sidecar, gpu: Gpu) -> None:
        key = hashlib.sha256(f"{sidecar.engine_sha256} {gpu.name} {library.version}".encode()).hexdigest()[:32]
        self._name = f"rtx-runtime/{key}.cache"
        self._cache: Any = None
        self._loaded = b""

    def attach(self, config: Any) -> None:
        """Load what an earlier run kept, if anything, and hand the cache to a runtime configuration."""
        self._cache = config.create_runtime_cache()
        if self._cache is None:
            return
        self._loaded = read_if_cached(self._name)
        if self._loaded and not self._cache.deserialize(self._loaded):
            self._loaded = b""  # another driver or GPU: kernels are compiled anew and the file is replaced
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what was compiled, if it is new; a cache that cannot be written costs time and nothing else."""
        if self._cache is None:
            return
        content = self._cache.serialize()
        if content is not None and bytes(content) != self._loaded:
            write_if_possible(self._name, bytes(content))
