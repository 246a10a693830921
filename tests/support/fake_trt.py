"""TensorRT made of ONNX Runtime, on the fake GPU: the calls of `tensorrt` and `tensorrt_rtx` that `dim` makes.

A plan is a JSON line and the ONNX file. Building checks the settings, running checks order, shapes and pointers.
"""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from fake_gpu import FakeEnum, FakeGpu


class FakeTrt(SimpleNamespace):
    """A module like `tensorrt` (`trt`) or `tensorrt_rtx` (`rtx`).

    Args:
        gpu: whose memory the contexts use.
        format: which of the two.
        version: what `__version__` says.
        scratch_per_image: bytes of activation memory that one image of the batch needs.
    """

    def __init__(
        self, gpu: FakeGpu, format: str = "trt", version: str = "10.9.0.34", scratch_per_image: int = 64
    ) -> None:
        super().__init__()
        self.gpu, self.format, self.__version__ = gpu, format, version
        self.scratch_per_image = scratch_per_image
        self.configs: list[FakeConfig] = []
        self.contexts: list[FakeContext] = []
        self.validity: tuple[str, int] = ("VALID", 0)
        self.refuse_plan: str | None = None
        self.capturable = True
        self.float32, self.int64, self.uint8 = "float32", "int64", "uint8"
        self.ILogger = type("ILogger", (), {"__init__": lambda self: None})
        self.IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})
        self.NetworkDefinitionCreationFlag = FakeEnum("EXPLICIT_BATCH", "STRONGLY_TYPED")
        self.BuilderFlag = FakeEnum("TF32", "VERSION_COMPATIBLE")
        self.PreviewFeature = FakeEnum("RUNTIME_ACTIVATION_RESIZE_10_10")
        self.HardwareCompatibilityLevel = FakeEnum("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")
        self.ExecutionContextAllocationStrategy = FakeEnum("STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED")
        self.Builder = lambda logger: FakeBuilder(self, logger)
        self.OnnxParser = lambda network, logger: FakeParser(network)
        self.Runtime = lambda logger: FakeRuntime(self, logger)
        if format == "rtx":
            self.ComputeCapability = FakeEnum("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
            self.EngineValidity = FakeEnum("VALID", "SUBOPTIMAL", "INVALID")
            self.EngineInvalidityDiagnostics = FakeEnum()
            for bit, name in enumerate(("VERSION_MISMATCH", "UNSUPPORTED_CC", "OLD_CUDA_DRIVER")):
                self.EngineInvalidityDiagnostics[name] = 1 << bit
            self.DynamicShapesKernelSpecializationStrategy = FakeEnum("LAZY", "EAGER", "NONE")
            self.CudaGraphStrategy = FakeEnum("DISABLED", "WHOLE_GRAPH_CAPTURE")


class FakeBuilder:
    def __init__(self, trt: FakeTrt, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def create_network(self, flags: int = 0) -> Any:
        assert flags == 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED), "not strongly typed"
        return FakeNetwork()

    def create_builder_config(self) -> "FakeConfig":
        self.trt.configs.append(FakeConfig(self.trt))
        return self.trt.configs[-1]

    def create_optimization_profile(self) -> "FakeProfile":
        return FakeProfile()

    def build_serialized_network(self, network: "FakeNetwork", config: "FakeConfig") -> bytes | None:
        assert config.profile is not None, "a dynamic batch needs an optimisation profile"
        assert set(config.profile.shapes) == {"latents", "labels"}
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 2)
        for outer in range(2):
            monitor.phase_start("Timing kernels", "Building engine", 4)
            for step in range(4):
                if not monitor.step_complete("Timing kernels", step):
                    self.logger.log("Severity.ERROR", "cancelled")
                    return None
            monitor.phase_finish("Timing kernels")
            monitor.step_complete("Building engine", outer)
        monitor.phase_finish("Building engine")
        if self.trt.refuse_plan:
            self.logger.log("Severity.WARNING", "a warning before it")
            self.logger.log("Severity.ERROR", self.trt.refuse_plan)
            return None
        if config.timing is not None:
            config.timing.content += b"+timed"
        batches = [shape[0] for shape in config.profile.shapes["latents"]]
        header = json.dumps({"version": self.trt.__version__, "batch": batches}).encode()
        return header + b"\n" + network.model


class FakeNetwork:
    model = b""

    def __init__(self) -> None:
        self.inputs: list[Any] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> Any:
        return self.inputs[index]


class FakeParser:
    def __init__(self, network: FakeNetwork) -> None:
        self.network, self.num_errors = network, 0

    def parse(self, model: bytes) -> bool:
        try:
            graph = onnx.load_from_string(model).graph
        except Exception:
            self.num_errors = 1
            return False
        self.network.model = model
        for value in graph.input:
            dims = tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)
            self.network.inputs.append(SimpleNamespace(name=value.name, shape=dims))
        return True

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(desc=lambda: "Failed to parse the ONNX model.")


class FakeProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        assert len(shapes) == 3 and all(shape[1:] == shapes[0][1:] for shape in shapes)
        self.shapes[name] = list(shapes)


class FakeConfig:
    def __init__(self, trt: FakeTrt) -> None:
        self.trt = trt
        self.profile: FakeProfile | None = None
        self.flags = {"TF32"}
        self.previews: set[str] = set()
        self.timing: Any = None
        self.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
        self.num_compute_capabilities = 0
        self.targets: dict[int, Any] = {}
        self.progress_monitor: Any = None

    def add_optimization_profile(self, profile: FakeProfile) -> int:
        self.profile = profile
        return 0

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def set_preview_feature(self, feature: Any, on: bool) -> None:
        self.previews.add(feature.name)

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        assert index < self.num_compute_capabilities
        self.targets[index] = capability
        return True

    def create_timing_cache(self, content: bytes) -> Any:
        assert self.trt.format == "trt", "TensorRT for RTX has no timing cache"
        if content == b"damaged":
            return None
        cache = SimpleNamespace(content=content)
        cache.serialize = lambda: cache.content
        return cache

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.timing = cache
        return True


class FakeRuntime:
    def __init__(self, trt: FakeTrt, logger: Any) -> None:
        self.trt, self.logger = trt, logger
        self.engine_host_code_allowed = False
        if trt.format == "rtx":
            self.get_engine_validity = self._validity

    def _validity(self, plan: bytes) -> tuple[Any, int]:
        name, reasons = self.trt.validity
        return self.trt.EngineValidity[name], reasons

    def deserialize_cuda_engine(self, plan: bytes) -> "FakePlan | None":
        header, _, model = plan.partition(b"\n")
        try:
            facts = json.loads(header)
        except ValueError:
            self.logger.log("Severity.ERROR", "Magic tag does not match")
            return None
        if facts["version"] != self.trt.__version__ and not self.engine_host_code_allowed:
            self.logger.log("Severity.ERROR", "The engine plan file is not compatible with this version of TensorRT")
            return None
        return FakePlan(self.trt, tuple(facts["batch"]), model)


class FakePlan:
    def __init__(self, trt: FakeTrt, batch: tuple[int, int, int], model: bytes) -> None:
        self.trt, self.batch = trt, batch
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        tensors = [*self.session.get_inputs(), *self.session.get_outputs()]
        types = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}
        self.tensors = {
            tensor.name: (types[tensor.type], tuple(dim if isinstance(dim, int) else -1 for dim in tensor.shape))
            for tensor in tensors
        }
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> str:
        return self.tensors[name][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][1]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [(images, *self.tensors[name][1][1:]) for images in self.batch]

    def create_runtime_config(self) -> "FakeRuntimeConfig":
        return FakeRuntimeConfig()

    def create_execution_context(self, how: Any) -> "FakeContext":
        if self.trt.format == "rtx":
            assert isinstance(how, FakeRuntimeConfig)
            assert how.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
            graphs, how = how.cuda_graph_strategy.name, how.strategy
        else:
            graphs = "DISABLED"
        assert how.name == "USER_MANAGED"
        self.trt.contexts.append(FakeContext(self))
        self.trt.contexts[-1].graphs = graphs
        return self.trt.contexts[-1]


class FakeRuntimeConfig:
    strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = None
    cuda_graph_strategy: Any = None
    runtime_cache: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> "FakeRuntimeCache":
        return FakeRuntimeCache()

    def set_runtime_cache(self, cache: "FakeRuntimeCache") -> bool:
        self.runtime_cache = cache
        return True


class FakeRuntimeCache:
    loaded: list[bytes] = []

    def deserialize(self, content: bytes) -> bool:
        FakeRuntimeCache.loaded.append(bytes(content))
        return content != b"of another driver"

    def serialize(self) -> bytes:
        return b"compiled kernels"


class FakeContext:
    def __init__(self, plan: FakePlan) -> None:
        self.plan, self.trt = plan, plan.trt
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] | None = None
        self.executed = 0
        self.graphs = "DISABLED"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.plan.batch
        wanted = self.plan.tensors[name][1]
        if not least <= shape[0] <= most or shape[1:] != wanted[1:]:
            return False
        self.shapes[name] = shape
        self.scratch = None
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in ("latents", "labels") if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert not self.infer_shapes()
        return (self.shapes["labels"][0], *self.plan.tensors[name][1][1:])

    def update_device_memory_size_for_shapes(self) -> int:
        assert not self.infer_shapes(), "the shapes come first"
        return self.shapes["labels"][0] * self.trt.scratch_per_image

    def set_device_memory(self, memory: int, size: int) -> None:
        needed = self.update_device_memory_size_for_shapes()
        assert size >= needed, "less scratch memory than the shapes need"
        assert size == 0 or self.trt.gpu.buffers[memory].kind == "device"
        self.scratch = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return memory != 0

    def execute_async_v3(self, stream_handle: int) -> bool:
        gpu = self.trt.gpu
        gpu.check_current()
        assert self.scratch is not None, "no scratch memory was given for these shapes"
        assert set(self.addresses) == {"latents", "labels", "images"}
        stream = gpu.streams[stream_handle]
        capture = gpu.capturing
        if capture is None:
            self.executed += 1
            stream.push("execute", self.compute)
            return True
        assert capture.stream is stream, "another stream is being captured"
        assert self.executed, "a first run comes before a capture"
        if not self.trt.capturable:
            return False
        capture.actions.append(self.compute)
        return True

    def compute(self) -> None:
        count = self.shapes["labels"][0]
        assert self.shapes["latents"][0] == count
        arrays = {
            name: self.at(name, dtype)
            for name, dtype in (("latents", np.float32), ("labels", np.int64), ("images", np.uint8))
        }
        feeds = {name: arrays[name] for name in ("latents", "labels")}
        arrays["images"][...] = self.plan.session.run(["images"], feeds)[0]

    def at(self, name: str, dtype: type[np.generic]) -> Any:
        buffer = self.trt.gpu.buffers[self.addresses[name]]
        assert buffer.kind == "device", f"{name} does not lie on the device"
        shape = (self.shapes["labels"][0], *self.plan.tensors[name][1][1:])
        assert buffer.size >= int(np.prod(shape)) * np.dtype(dtype).itemsize, f"{name} is too small"
        return buffer.memory.view(dtype).reshape(shape)
