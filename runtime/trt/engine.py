"""Run a compiled TensorRT or TensorRT for RTX plan; no torch.

A batch goes: pinned latents and labels -> device -> plan -> device images -> pinned images. Every batch is padded to
one constant size, so shapes and addresses never change and are set once. A CUDA graph replays the launches of the plan.
Slots of pinned memory let the copy of one batch overlap with the computing of the next. The host waits once per batch,
for the pixels.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.errors import BadValueError, EngineError
from dim.runtime.gpu.driver import Driver, check_driver, find_driver, require_gpu
from dim.runtime.gpu.memory import BatchSlot, DeviceImages, GpuMemoryError, GpuSession, import_cuda_core
from dim.runtime.trt.library import TrtLibrary
from dim.runtime.trt.load import check_tensors, load_plan
from dim.runtime.trt.runtime_cache import RuntimeCache
from dim.runtime.trt.sidecar import Sidecar, library_title, reason_engine_does_not_fit

_BATCHES_IN_FLIGHT = 2
"""One is computed while another is copied out."""

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]


class TrtEngine:
    """One compiled plan on one GPU; keeps the protocol `Engine`.

    Args:
        library: the library of the plan's format.
        plan: its bytes, already trusted.
        sidecar: what it covers.
        manifest: the bundle's manifest.
        batch: images per call, constant; None for the profile's optimum, halved while the GPU has no room for it.
        driver: an answer of `find_driver`; None asks anew.
        say: told when the batch had to be made smaller.

    Raises:
        MissingExtraError: `cuda-core` is not installed.
        BadValueError: the batch lies outside the profile.
        DeviceError: no GPU, a driver that is too old, or no room for the batch.
        EngineError: the plan does not fit this GPU or library, or does not load.
    """

    device = "gpu"
    reason = ""

    def __init__(
        self,
        library: TrtLibrary,
        plan: bytes,
        sidecar: Sidecar,
        manifest: Manifest,
        *,
        batch: int | None = None,
        driver: Driver | None = None,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        title = library_title(library.format)
        driver = driver or find_driver()
        gpu = require_gpu(f"run {title} engines", driver, library.cuda_major)
        check_driver(driver, library.cuda_major, f"{title} {library.version} cannot run here")
        reason = reason_engine_does_not_fit(sidecar, gpu=gpu, library_version=library.version, onnx_sha256=None)
        if reason is not None:
            raise EngineError(f"The engine {sidecar.file_name} cannot run here: {reason}.")
        least, optimum, most = sidecar.batch
        if batch is not None and not least <= batch <= most:
            raise BadValueError(f"The engine {sidecar.file_name} takes {least} to {most} images per call, not {batch}.")
        self.name = library.engine_name
        self.precision = sidecar.precision
        # With the plan's hash: two builds of one ONNX file may choose other kernels, and so draw other last bits.
        self.version = f"{library.engine_name} {library.version} plan {sidecar.engine_sha256[:12]}"
        self._library = library
        self._shape = (manifest.height, manifest.width, manifest.channels)
        self._latent_dim = manifest.latent_dim
        self._lock = threading.Lock()
        self._closed = False
        self._gpu = GpuSession(import_cuda_core(library.format), gpu.index)
        self._runtime, self._plan = load_plan(library, plan, sidecar)
        check_tensors(library, self._plan, self._shape, self._latent_dim, sidecar)
        self._cache = RuntimeCache(library, sidecar, gpu)
        self._context: Any = None
        self._graph: Any = None
        self._buffers: list[Any] = []
        self._free: deque[BatchSlot] = deque()
        self._batch = self._start(batch or optimum, batch or least, say)
        self._graph = self._record_graph()
        self._cache.save()

    @property
    def batch(self) -> int:
        """The constant batch that every call is padded to."""
        return self._batch

    def run(self, latents: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Draw images; see `Engine.run`. Any N: several batches run with copies and computing overlapped."""
        count = len(labels)
        images = np.empty((count, *self._shape), np.uint8)
        starts = range(0, count, self.batch)
        pieces = ((latents[at : at + self.batch], labels[at : at + self.batch]) for at in starts)
        for at, piece in zip(starts, self.run_ahead(pieces), strict=True):
            images[at : at + self.batch] = piece
        return images

    def run_ahead(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.uint8]]:
        """Draw batch after batch; while one is handed out the next is being computed.

        Args:
            batches: latents float32 [N, Z] and labels int64 [N], N at most `batch`.

        Yields:
            uint8 [N, H, W, C], in order.
        """
        waiting: deque[tuple[BatchSlot, int]] = deque()
        try:
            for latents, labels in batches:
                if len(waiting) == _BATCHES_IN_FLIGHT:
                    yield self._collect(*waiting.popleft())
                waiting.append((self._submit(latents, labels), len(labels)))
            while waiting:
                yield self._collect(*waiting.popleft())
        finally:
            with self._lock:
                self._free.extend(slot for slot, _ in waiting)

    def run_dlpack(self, latents: NDArray[np.float32], labels: NDArray[np.int64]) -> DeviceImages:
        """Draw images and leave them on the GPU, in memory of their own.

        Args:
            latents: float32 [N, Z].
            labels: int64 [N], any N.

        Returns:
            uint8 [N, H, W, C] for `torch.from_dlpack` and its like; the host does not wait for them.
        """
        with self._lock:
            self._check_open()
            self._gpu.activate()
            count, padded_bytes = len(labels), self._device_images.size
            calls = max(1, -(-count // self._batch))
            images = self._gpu.allocate(calls * padded_bytes)
            for call in range(calls):
                piece = slice(call * self._batch, (call + 1) * self._batch)
                slot = self._enqueue(latents[piece], labels[piece])
                part = self._gpu.part(images, call * padded_bytes, padded_bytes)
                self._device_images.copy_to(part, stream=self._gpu.compute)
                self._gpu.compute.record(slot.copied)
                self._free.append(slot)
            ready = self._gpu.event()
            self._gpu.compute.record(ready)
            return DeviceImages(self._gpu.core, images, (count, *self._shape), ready)

    def close(self) -> None:
        """Wait for the GPU and give its memory back; harmless when called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._gpu.activate()
            self._gpu.wait()
            if self._graph is not None:
                self._graph.close()
            self._context = self._plan = self._runtime = self._graph = None
            self._free_memory()
            self._gpu.close()

    def _submit(self, latents: NDArray[np.float32], labels: NDArray[np.int64]) -> BatchSlot:
        """Put one batch on its way to pinned memory."""
        compute, copies = self._gpu.compute, self._gpu.copies
        with self._lock:
            slot = self._enqueue(latents, labels)
            self._device_images.copy_to(slot.device_images, stream=compute)
            compute.record(slot.computed)
            copies.wait(slot.computed)
            slot.device_images.copy_to(slot.images.buffer, stream=copies)
            copies.record(slot.copied)
            return slot

    def _collect(self, slot: BatchSlot, count: int) -> NDArray[np.uint8]:
        """Wait for one batch, the only wait of its way, and take its pixels."""
        self._gpu.activate()
        slot.copied.sync()
        with self._lock:
            self._check_open()
            images: NDArray[np.uint8] = slot.images.array[:count].copy()
            self._free.append(slot)
        return images

    def _enqueue(self, latents: NDArray[np.float32], labels: NDArray[np.int64]) -> BatchSlot:
        """Copy one batch in and launch the plan; the images follow in `_device_images`, in the order of the stream."""
        self._check_open()
        count = len(labels)
        if count > self._batch or latents.shape != (count, self._latent_dim):
            raise BadValueError(
                f"One call takes up to {self._batch} rows of {self._latent_dim} latents; latents of shape "
                f"{latents.shape} and {count} labels were given."
            )
        self._gpu.activate()
        slot = self._free.popleft() if self._free else self._make_slot(self._batch)
        slot.copied.sync()  # of its last use, long done: pinned memory must not change under a copy
        slot.latents.array[:count], slot.latents.array[count:] = latents, 0
        slot.labels.array[:count], slot.labels.array[count:] = labels, 0
        slot.latents.buffer.copy_to(self._device_latents, stream=self._gpu.compute)
        slot.labels.buffer.copy_to(self._device_labels, stream=self._gpu.compute)
        if self._graph is None:
            self._launch()
        else:
            self._graph.launch(self._gpu.compute)
        return slot

    def _launch(self) -> None:
        if self._context.execute_async_v3(int(self._gpu.compute.handle)):
            return
        reason = self._library.take_first_error()
        if "out of memory" in reason.lower() or "outofmemory" in reason.lower():
            raise GpuMemoryError(reason)
        raise EngineError(f"{self.name} cannot run the engine: {reason}")

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("The engine was closed; open the bundle again.")

    def _start(self, wanted: int, least: int, say: Callable[[str], None]) -> int:
        """Make a context and run it once; returns the batch that there is room for."""
        try:
            self._context = self._make_context(replaying=True)
            return self._find_room(wanted, least, say)
        except GpuMemoryError:
            raise
        except EngineError as error:
            if self._library.format != "rtx":
                raise
            say(f"{self.name} does not start with CUDA graphs and goes on without: {error}")
        self._gpu.wait()
        self._free_memory()
        self._context = self._make_context(replaying=False)
        return self._find_room(wanted, least, say)

    def _make_context(self, replaying: bool) -> Any:
        trt = self._library.module
        user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._library.format == "rtx":
            config = self._plan.create_runtime_config()
            config.set_execution_context_allocation_strategy(user_managed)
            # Kernels for the padded batch are compiled before the first run: a later switch would change pixels midway.
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            graphs = trt.CudaGraphStrategy
            config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if replaying else graphs.DISABLED
            self._cache.attach(config)
            context = self._plan.create_execution_context(config)
        else:
            context = self._plan.create_execution_context(user_managed)
        if context is None:
            raise EngineError(f"{self.name} cannot start the engine: {self._library.take_first_error()}")
        return context

    def _find_room(self, wanted: int, least: int, say: Callable[[str], None]) -> int:
        """Take all memory for the wanted batch and run it once, halving it until the GPU has room."""
        batch = wanted
        while True:
            try:
                self._bind_memory(batch)
                self._batch = batch
                self._free.append(self._submit(np.zeros((0, self._latent_dim), np.float32), np.zeros(0, np.int64)))
                self._gpu.wait()
            except GpuMemoryError as error:
                self._gpu.wait()
                self._free_memory()
                if batch // 2 < least:
                    raise GpuMemoryError(
                        f"The GPU has no room for a batch of {batch}: close other programs on it, or use --device cpu "
                        f"({error})"
                    ) from error
                say(f"The GPU has no room for a batch of {batch}: going on with {batch // 2}.")
                batch //= 2
                continue
            return batch

    def _bind_memory(self, batch: int) -> None:
        context, name = self._context, self.name
        for tensor, shape in (("latents", (batch, self._latent_dim)), ("labels", (batch,))):
            if not context.set_input_shape(tensor, shape):
                raise EngineError(f"{name} refuses {tensor} of shape {shape}: {self._library.take_first_error()}")
        unset = context.infer_shapes()
        if unset:
            raise EngineError(f"{name} leaves the shapes of {', '.join(unset)} open.")
        inferred = tuple(context.get_tensor_shape("images"))
        if inferred != (batch, *self._shape):
            raise EngineError(f"{name} draws images of shape {inferred}, not {(batch, *self._shape)}.")
        self._device_latents = self._allocate(4 * batch * self._latent_dim)
        self._device_labels = self._allocate(8 * batch)
        self._device_images = self._allocate(batch * int(np.prod(self._shape)))
        scratch_bytes = context.update_device_memory_size_for_shapes()
        scratch = int(self._allocate(scratch_bytes).handle) if scratch_bytes else 0
        context.set_device_memory(scratch, scratch_bytes)
        for tensor, buffer in (
            ("latents", self._device_latents),
            ("labels", self._device_labels),
            ("images", self._device_images),
        ):
            if not context.set_tensor_address(tensor, int(buffer.handle)):
                raise EngineError(f"{name} refuses the address of {tensor}: {self._library.take_first_error()}")
        for _ in range(_BATCHES_IN_FLIGHT):
            self._free.append(self._make_slot(batch))

    def _make_slot(self, batch: int) -> BatchSlot:
        return BatchSlot(self._gpu, self._buffers, batch, self._latent_dim, self._shape)

    def _allocate(self, size_bytes: int) -> Any:
        buffer = self._gpu.allocate(size_bytes)
        self._buffers.append(buffer)
        return buffer

    def _free_memory(self) -> None:
        self._free.clear()
        for buffer in self._buffers:
            buffer.close()
        self._buffers.clear()

    def _record_graph(self) -> Any:
        """Record the launches of the plan, after a first run; None where the library replays or cannot be recorded."""
        if self._library.format == "rtx":
            return None
        builder = self._gpu.compute.create_graph_builder()
        try:
            builder.begin_building("thread_local")
            try:
                captured = self._context.execute_async_v3(int(builder.stream.handle))
            finally:
                builder.end_building()
            return builder.complete() if captured else None
        except Exception:
            return None  # some layers cannot be recorded: every batch is then launched kernel by kernel
        finally:
            self._library.take_messages()
            builder.close()
