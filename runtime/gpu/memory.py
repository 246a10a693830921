"""Device memory, pinned memory, streams and events for engines, through NVIDIA's `cuda-core`; no torch.

Nothing here waits for the GPU; whoever reads pinned memory waits for the event of the copy that filled it.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.runtime.errors import BadValueError, DeviceError, EngineError, MissingExtraError, describe_error

_DL_CUDA = 2  # kDLCUDA
_ANY_STREAM, _LEGACY, _PER_THREAD = -1, 1, 2  # DLPack's numbers for "no ordering wanted" and CUDA's default streams


class GpuMemoryError(DeviceError):
    """The GPU has no room for a buffer; the caller may try a smaller batch."""


def import_cuda_core(extra: str) -> Any:
    """Import `cuda.core`.

    Args:
        extra: the extra of `dim-distill` that brings it, for the message.

    Raises:
        MissingExtraError: it or its bindings are not installed.
    """
    try:
        import cuda.core as core
    except ImportError as error:
        missing = "cuda-bindings" if "bindings" in str(error) else "cuda-core"
        raise MissingExtraError(missing, extra, "hold images on the GPU") from error
    return core


class GpuSession:
    """One GPU with a stream for computing and one for copying results out.

    Args:
        core: the module `cuda.core`.
        index: ordinal of the GPU.

    Raises:
        DeviceError: the driver refuses.
    """

    def __init__(self, core: Any, index: int = 0) -> None:
        self.core = core
        try:
            self.device = core.Device(index)
            self.device.set_current()
            self.compute = self.device.create_stream()
            self.copies = self.device.create_stream()
        except Exception as error:
            raise DeviceError(f"The GPU {index} cannot be used: {describe_error(error)}; run  dim doctor") from error
        self._pinned = core.LegacyPinnedMemoryResource()

    def activate(self) -> None:
        """Make the GPU current in the calling thread, which every thread needs before its first call."""
        self.device.set_current()

    def allocate(self, size_bytes: int) -> Any:
        """Take device memory, aligned to at least 256 bytes.

        Raises:
            GpuMemoryError: the GPU is full.
        """
        try:
            return self.device.allocate(size_bytes, stream=self.compute)
        except Exception as error:
            raise _memory_error(error, size_bytes, "device") from error

    def part(self, buffer: Any, start: int, size_bytes: int) -> Any:
        """A stretch of a device buffer, which stays alive as long as the part does."""
        return self.core.Buffer.from_handle(int(buffer.handle) + start, size_bytes, owner=buffer)

    def pin(self, shape: Sequence[int], dtype: type[np.generic]) -> "PinnedArray":
        """Take host memory that the GPU copies to and from without a detour.

        Raises:
            GpuMemoryError: the host has no more memory to pin.
        """
        size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        try:
            buffer = self._pinned.allocate(size_bytes, stream=self.compute)
        except Exception as error:
            raise _memory_error(error, size_bytes, "pinned host") from error
        return PinnedArray(buffer, shape, dtype)

    def event(self) -> Any:
        """Make an event that lets the waiting thread sleep, so that encoders get the core."""
        return self.device.create_event(self.core.EventOptions(blocking_sync=True))

    def wait(self) -> None:
        """Wait for all work on both streams."""
        self.compute.sync()
        self.copies.sync()

    def close(self) -> None:
        """Give the streams back."""
        self.compute.close()
        self.copies.close()


class PinnedArray:
    """A NumPy array over pinned memory; not to be used after the buffer was closed."""

    def __init__(self, buffer: Any, shape: Sequence[int], dtype: type[np.generic]) -> None:
        self.buffer = buffer
        raw = (ctypes.c_uint8 * buffer.size).from_address(int(buffer.handle))
        self.array: NDArray[Any] = np.frombuffer(raw, dtype=dtype).reshape(tuple(shape))


class BatchSlot:
    """What one batch needs on its way: pinned inputs and outputs, device images, two events.

    Args:
        gpu: whose memory it takes.
        taken: gets every buffer as it is taken, so that the owner can close them all, whichever allocation fails.
        batch: images.
        latent_dim: latents per image.
        shape: height, width and channels.

    Raises:
        GpuMemoryError: no room.
    """

    def __init__(
        self, gpu: GpuSession, taken: list[Any], batch: int, latent_dim: int, shape: tuple[int, int, int]
    ) -> None:
        def pin(shape: tuple[int, ...], dtype: type[np.generic]) -> PinnedArray:
            pinned = gpu.pin(shape, dtype)
            taken.append(pinned.buffer)
            return pinned

        self.latents = pin((batch, latent_dim), np.float32)
        self.labels = pin((batch,), np.int64)
        self.images = pin((batch, *shape), np.uint8)
        self.device_images = gpu.allocate(batch * int(np.prod(shape)))
        taken.append(self.device_images)
        self.computed = gpu.event()
        """The plan is done and its images are in `device_images`."""
        self.copied = gpu.event()
        """Nothing reads or writes the slot any more."""


class DeviceImages:
    """Images on the GPU, handed on without a copy by DLPack: `torch.from_dlpack(images)`, also JAX and CuPy.

    The consumer's stream is made to wait for the engine, so nobody has to synchronise; the memory is freed in the
    order of the last consumer's stream.

    Args:
        core: the module `cuda.core`.
        buffer: device memory that holds exactly the images.
        shape: (N, H, W, C).
        ready: event after which the images are complete.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, core: Any, buffer: Any, shape: tuple[int, int, int, int], ready: Any) -> None:
        self.shape = shape
        self._core = core
        self._buffer = buffer
        self._ready = ready
        self._view = core.utils.StridedMemoryView.from_buffer(buffer, shape, dtype=self.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_DL_CUDA, int(self._buffer.device_id))

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        """Export the images; `stream` is the consumer's, by DLPack's numbering."""
        if stream != _ANY_STREAM:
            consumer = self._consumer(stream)
            consumer.wait(self._ready)
            self._buffer.set_deallocation_stream(consumer)
        return self._view.__dlpack__(**{name: value for name, value in options.items() if value is not None})

    def _consumer(self, stream: int | None) -> Any:
        if stream is None or stream == _LEGACY:
            return self._core.LEGACY_DEFAULT_STREAM
        if stream == _PER_THREAD:
            return self._core.PER_THREAD_DEFAULT_STREAM
        if stream <= 0:
            raise BadValueError(f"The DLPack stream {stream} is not a CUDA stream.")
        return self._core.Stream.from_handle(stream)


def _memory_error(error: Exception, size_bytes: int, kind: str) -> EngineError:
    if "OUT_OF_MEMORY" in str(error) or isinstance(error, MemoryError):
        return GpuMemoryError(f"There are not {size_bytes:,} bytes of {kind} memory left for this batch.")
    return EngineError(f"{size_bytes:,} bytes of {kind} memory cannot be taken: {describe_error(error)}")
