"""A GPU made of NumPy: the parts of a driver, of `cuda.core` and of TensorRT that the engines call, strict about order.

Streams are lazy: nothing runs before somebody waits, and memory starts poisoned, so a missing wait, a slot that is
reused too early or a wrong pointer shows in the pixels. Plans carry their ONNX file and are run by ONNX Runtime.
`tests/trt/test_engine.py` checks that every fake method has the signature of the real one.
"""

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np

POISON = 0xCD


def fake_driver(
    *,
    name: str = "NVIDIA Fake 4090",
    capability: tuple[int, int] = (8, 9),
    cuda: tuple[int, int] = (13, 0),
    version: str = "580.65.06",
    gpus: int = 1,
    init_code: int = 0,
    missing: bool = False,
) -> Any:
    """Make a `load` for `find_driver` that answers like libcuda and libnvidia-ml."""

    class LibCuda:
        def cuInit(self, flags: int) -> int:
            return init_code

        def cuDriverGetVersion(self, out: Any) -> int:
            out._obj.value = cuda[0] * 1000 + cuda[1] * 10
            return 0

        def cuGetErrorString(self, code: int, out: Any) -> int:
            out._obj.value = b"system has unsupported driver mismatch"
            return 0

        def cuDeviceGetCount(self, out: Any) -> int:
            out._obj.value = gpus
            return 0

        def cuDeviceGet(self, out: Any, index: int) -> int:
            out._obj.value = index
            return 0

        def cuDeviceGetName(self, buffer: Any, length: int, device: Any) -> int:
            buffer.value = name.encode()
            return 0

        def cuDeviceGetAttribute(self, out: Any, attribute: int, device: Any) -> int:
            out._obj.value = {75: capability[0], 76: capability[1]}[attribute]
            return 0

        def cuDeviceTotalMem_v2(self, out: Any, device: Any) -> int:
            out._obj.value = 24 * 2**30
            return 0

    class LibNvml:
        def nvmlInit_v2(self) -> int:
            return 0

        def nvmlSystemGetDriverVersion(self, buffer: Any, length: int) -> int:
            buffer.value = version.encode()
            return 0

        def nvmlShutdown(self) -> int:
            return 0

    def load(library: str) -> Any:
        if missing:
            raise OSError(f"{library}: cannot open shared object file")
        return {"libcuda.so.1": LibCuda(), "libnvidia-ml.so.1": LibNvml()}[library]

    return load


class FakeGpu:
    """The state behind one fake `cuda.core`: its memory, what was called, and how many bytes it has."""

    def __init__(self, capacity_bytes: int = 2**30) -> None:
        self.running = threading.RLock()
        self.capacity_bytes = capacity_bytes
        self.calls: list[str] = []
        self.others_first = False
        self.buffers: dict[int, FakeBuffer] = {}
        self.current = threading.local()
        self.capturing: FakeGraphBuilder | None = None
        self.streams: dict[int, FakeStream] = {}
        self.core = SimpleNamespace(
            Device=lambda index=0: FakeDevice(self, index),
            LegacyPinnedMemoryResource=lambda: FakePinnedResource(self),
            EventOptions=lambda *, blocking_sync=False: SimpleNamespace(blocking_sync=blocking_sync),
            Stream=SimpleNamespace(from_handle=self.foreign_stream),
            Buffer=SimpleNamespace(from_handle=self.part_of),
            utils=SimpleNamespace(StridedMemoryView=FakeView),
        )
        self.core.LEGACY_DEFAULT_STREAM = FakeStream(self, "legacy")
        self.core.PER_THREAD_DEFAULT_STREAM = FakeStream(self, "per-thread")

    def foreign_stream(self, handle: int) -> "FakeStream":
        return self.streams.setdefault(handle, FakeStream(self, f"foreign {handle}", handle))

    def part_of(self, ptr: int, size: int, mr: Any = None, owner: Any = None, *, stream: Any = None) -> "FakeBuffer":
        assert owner.handle <= ptr and ptr + size <= owner.handle + owner.size, "not inside the owner"
        return FakePart(self, ptr, size, owner)

    def run_others(self, waited_for: "FakeStream") -> None:
        """Let every other stream run as far ahead as it can, when the test wants the worst case."""
        if self.others_first:
            for stream in list(self.streams.values()):
                if stream is not waited_for:
                    stream.run_to(len(stream.work))

    def used_bytes(self) -> int:
        return sum(buffer.size for buffer in self.buffers.values() if buffer.kind == "device")

    def check_current(self) -> None:
        assert getattr(self.current, "index", None) is not None, "the device is not current in this thread"

    def take(self, kind: str, size: int) -> "FakeBuffer":
        self.check_current()
        if kind == "device" and self.used_bytes() + size > self.capacity_bytes:
            raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: The API call failed because it was unable to allocate memory")
        self.calls.append(f"allocate {kind} {size}")
        return FakeBuffer(self, kind, size)


class FakeDevice:
    def __init__(self, gpu: FakeGpu, index: int) -> None:
        self.gpu, self.index = gpu, index

    def set_current(self, ctx: Any = None) -> None:
        self.gpu.current.index = self.index

    def create_stream(self, obj: Any = None, options: Any = None) -> "FakeStream":
        self.gpu.check_current()
        return FakeStream(self.gpu, f"stream {len(self.gpu.streams)}")

    def create_event(self, options: Any = None) -> "FakeEvent":
        self.gpu.check_current()
        return FakeEvent()

    def allocate(self, size: int, *, stream: "FakeStream") -> "FakeBuffer":
        assert isinstance(stream, FakeStream)
        return self.gpu.take("device", size)


class FakePinnedResource:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu

    def allocate(self, size: int, *, stream: "FakeStream | None" = None) -> "FakeBuffer":
        return self.gpu.take("pinned", size)


class FakeBuffer:
    device_id = 0

    def __init__(self, gpu: FakeGpu, kind: str, size: int) -> None:
        self.gpu, self.kind, self.size = gpu, kind, size
        self.memory = np.full(size, POISON, np.uint8)
        self.handle = self.memory.ctypes.data
        self.deallocation_stream: FakeStream | None = None
        gpu.buffers[self.handle] = self

    def copy_to(self, dst: "FakeBuffer | None" = None, *, stream: "FakeStream", options: Any = None) -> "FakeBuffer":
        self.gpu.check_current()
        assert dst is not None and dst.size == self.size, "buffer sizes mismatch between src and dst"
        assert self.alive and dst.alive, "a closed buffer is copied"
        target = dst

        def copy() -> None:
            assert self.alive and target.alive, "closed under a copy"
            target.memory[:] = self.memory

        stream.push(f"copy {self.kind} to {dst.kind} {self.size}", copy)
        return dst

    @property
    def alive(self) -> bool:
        return self.handle in self.gpu.buffers

    def set_deallocation_stream(self, stream: "FakeStream") -> None:
        self.deallocation_stream = stream

    def close(self, stream: "FakeStream | None" = None) -> None:
        assert self.gpu.buffers.pop(self.handle, None) is self, "a buffer is closed twice"
        self.memory[:] = POISON


class FakePart(FakeBuffer):
    """A stretch of another buffer's memory."""

    def __init__(self, gpu: FakeGpu, ptr: int, size: int, owner: FakeBuffer) -> None:
        self.gpu, self.kind, self.size, self.handle = gpu, owner.kind, size, ptr
        start = ptr - owner.handle
        self.memory, self.owner = owner.memory[start : start + size], owner

    @property
    def alive(self) -> bool:
        return self.owner.alive


class FakeEvent:
    def __init__(self) -> None:
        self.point: tuple[FakeStream, int] | None = None

    def sync(self) -> None:
        if self.point is not None:
            stream, position = self.point
            if stream.done < position:
                stream.gpu.calls.append("host waits")
            stream.gpu.run_others(stream)
            stream.run_to(position)


class FakeStream:
    def __init__(self, gpu: FakeGpu, name: str, handle: int | None = None) -> None:
        self.gpu, self.name = gpu, name
        self.work: list[Any] = []
        self.done = 0
        self.handle = handle if handle is not None else 1000 + len(gpu.streams)
        self.closed = False
        gpu.streams[self.handle] = self

    def push(self, text: str, action: Any) -> None:
        assert not self.closed, "a closed stream is used"
        self.gpu.calls.append(f"{self.name}: {text}")
        self.work.append(action)

    def run_to(self, position: int) -> None:
        with self.gpu.running:  # threads that wait for one piece of work wait until it is done
            while self.done < position:
                action = self.work[self.done]
                self.done += 1
                action()

    def record(self, event: FakeEvent | None = None, options: Any = None) -> FakeEvent:
        event = event if event is not None else FakeEvent()
        self.push("record", lambda: None)
        event.point = (self, len(self.work))
        return event

    def wait(self, event_or_stream: FakeEvent) -> None:
        point = event_or_stream.point
        assert point is not None, "a stream waits for an event that nobody recorded"
        other, position = point
        self.push("wait", lambda: other.run_to(position))

    def sync(self) -> None:
        self.gpu.calls.append(f"{self.name}: sync")
        self.gpu.run_others(self)
        self.run_to(len(self.work))

    def close(self) -> None:
        assert self.done == len(self.work), "a stream is closed while it has work"
        self.closed = True

    def create_graph_builder(self) -> "FakeGraphBuilder":
        return FakeGraphBuilder(self)


class FakeGraphBuilder:
    def __init__(self, stream: FakeStream) -> None:
        self.stream = stream
        self.actions: list[Any] = []
        self.state = "new"

    def begin_building(self, mode: str | None = "relaxed") -> "FakeGraphBuilder":
        assert self.state == "new" and mode in ("global", "thread_local", "relaxed")
        self.state, self.stream.gpu.capturing = "building", self
        return self

    def end_building(self) -> "FakeGraphBuilder":
        assert self.state == "building"
        self.state, self.stream.gpu.capturing = "built", None
        return self

    def complete(self, options: Any = None) -> "FakeGraph":
        assert self.state == "built"
        return FakeGraph(self.actions)

    def close(self) -> None:
        assert self.state != "building", "a capture is left open"


class FakeGraph:
    def __init__(self, actions: list[Any]) -> None:
        self.actions = actions

    def launch(self, stream: FakeStream) -> None:
        stream.gpu.check_current()
        stream.push("launch graph", lambda: [action() for action in self.actions])

    def close(self) -> None:
        self.actions = []


class FakeView:
    """Exports through NumPy, so that a test can look at what a consumer would get."""

    def __init__(self, array: Any) -> None:
        self.array = array

    @classmethod
    def from_buffer(
        cls,
        buffer: FakeBuffer,
        shape: tuple[int, ...],
        strides: Any = None,
        *,
        itemsize: int | None = None,
        dtype: Any = None,
        is_readonly: bool = False,
    ) -> "FakeView":
        needed = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert needed <= buffer.size
        return cls(buffer.memory[:needed].view(dtype).reshape(shape))

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        assert stream is None, "the view does not order streams"
        return self.array.__dlpack__()


class FakeEnum(dict[str, Any]):
    """Just enough of a pybind11 enumeration."""

    def __init__(self, *names: str) -> None:
        super().__init__({name: FakeMember(name, index) for index, name in enumerate(names)})
        self.__members__ = self

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class FakeMember:
    def __init__(self, name: str, value: int) -> None:
        self.name, self.value = name, value

    def __int__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return self.name
