"""Compile an ONNX file into a TensorRT or TensorRT for RTX plan, through the API that both libraries share.

One path serves `tensorrt` 10.3 and newer, 11, and `tensorrt_rtx`: strongly typed networks, so the precision is the
file's own and no precision flag exists (11 removed them). TensorRT needs the GPU it builds for; TensorRT for RTX
builds without one, by default for every GPU of compute capability 8.0 and newer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dim.runtime.bundle_format.names import PRECISIONS
from dim.runtime.errors import BadValueError, EngineError
from dim.runtime.gpu.driver import Driver, Gpu, check_driver, find_driver, require_gpu
from dim.runtime.progress.show import Progress, ignore_progress
from dim.runtime.trt.library import TrtLibrary
from dim.runtime.trt.sidecar import library_title

DEFAULT_BATCH = (1, 256, 4096)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a plan is built for.

    Raises:
        BadValueError: a value is out of range.
    """

    batch: tuple[int, int, int] = DEFAULT_BATCH
    """Optimisation profile: least, optimum, most images per call; the optimum becomes the padded batch."""
    compute_capabilities: tuple[tuple[int, int], ...] = ()
    """TensorRT for RTX only: the GPUs to build for; none means 8.0 and newer."""
    hardware_compatible: bool = False
    """TensorRT only: cover every GPU from Ampere on (on Turing: of the same compute capability)."""
    version_compatible: bool = False
    """TensorRT only: cover newer releases of the same major version."""

    def __post_init__(self) -> None:
        if len(self.batch) != 3 or not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2] <= 65_536:
            raise BadValueError(
                f"--batch got {':'.join(map(str, self.batch))}; it takes least:optimum:most images per call, "
                f"each 1 to 65536 and none below the one before, as 1:256:4096."
            )


def parse_compute_capabilities(texts: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Read compute capabilities as users write them: "8.9", "sm89", "SM120".

    Raises:
        BadValueError: a text of another form.
    """
    found = set()
    for text in texts:
        match = re.fullmatch(r"(?:sm_?)?(\d{1,2})[._]?(\d)", text.strip().lower())
        if match is None:
            raise BadValueError(f"The compute capability {text!r} is not understood; write it as 8.9 or sm89.")
        found.add((int(match[1]), int(match[2])))
    return tuple(sorted(found))


def check_target(library: TrtLibrary, options: BuildOptions, driver: Driver | None = None) -> Gpu | None:
    """Check that this library can build on this machine what the options ask for.

    Args:
        library: the library that will build.
        options: what to build.
        driver: an answer of `find_driver`; None asks anew.

    Returns:
        the GPU that takes part in the build, None for TensorRT for RTX, which needs none.

    Raises:
        BadValueError: an option that this library does not have.
        DeviceError: TensorRT without a GPU, or with a driver that is too old.
    """
    title = library_title(library.format)
    if library.format == "rtx":
        for asked, option in (
            (options.hardware_compatible, "--hardware-compatible"),
            (options.version_compatible, "--version-compatible"),
        ):
            if asked:
                raise BadValueError(
                    f"{option} is a mode of TensorRT; {title} has none: its engines cover several GPUs as they are, "
                    f"and only the version that built them."
                )
        _find_targets(library, options.compute_capabilities)
        return None
    if options.compute_capabilities:
        raise BadValueError(
            f"{title} builds for the GPU of this machine; compute capabilities are chosen with --format rtx, "
            f"or use --hardware-compatible."
        )
    driver = driver or find_driver()
    purpose = f"build {title} engines (TensorRT for RTX builds without one: --format rtx)"
    gpu = require_gpu(purpose, driver, library.cuda_major)
    check_driver(driver, library.cuda_major, f"{title} {library.version} cannot build here")
    return gpu


def compile_plan(
    library: TrtLibrary,
    onnx_bytes: bytes,
    precision: str,
    options: BuildOptions,
    *,
    gpu: Gpu | None,
    timing_cache: bytes = b"",
    progress: Progress = ignore_progress,
) -> tuple[bytes, bytes]:
    """Compile one ONNX file.

    Args:
        library: the library that builds.
        onnx_bytes: a file that keeps the graph contract.
        precision: the file's precision; fp32 forbids TF32, which rounds products to 10 bits.
        options: what to build for, checked by `check_target`.
        gpu: the GPU that `check_target` returned.
        timing_cache: kernel timings of an earlier build, empty for none; TensorRT for RTX has no such cache.
        progress: is told the share done, 0 to 1, never falling.

    Returns:
        the raw plan, and the timing cache to keep for the next build (empty where the library has none).

    Raises:
        EngineError: the library refuses the file or the build.
        KeyboardInterrupt: pressed during the build.
    """
    if precision not in PRECISIONS:
        raise BadValueError(f"The precision {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}.")
    trt, title = library.module, library_title(library.format)
    library.take_messages()
    builder = trt.Builder(library.logger)
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse(onnx_bytes):
        problems = "; ".join(parser.get_error(index).desc() for index in range(min(3, parser.num_errors)))
        library.take_messages()
        raise EngineError(f"{title} {library.version} cannot read the {precision} ONNX file: {problems}")
    config = builder.create_builder_config()
    config.add_optimization_profile(_make_profile(builder, network, options.batch))
    _configure(library, config, precision, options, gpu)
    cache = _attach_timing_cache(library, config, timing_cache)
    monitor = _make_monitor(trt, f"building {title} {precision}", progress)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.raised is not None:
        library.take_messages()
        raise monitor.raised
    if plan is None:
        raise EngineError(
            f"{title} {library.version} cannot build the {precision} engine: {library.take_first_error()}"
        )
    library.take_messages()
    return bytes(plan), bytes(cache.serialize()) if cache is not None else b""


def _make_profile(builder: Any, network: Any, batch: tuple[int, int, int]) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        inner = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, *((images, *inner) for images in batch))
    return profile


def _configure(library: TrtLibrary, config: Any, precision: str, options: BuildOptions, gpu: Gpu | None) -> None:
    trt = library.module
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
    # Lets the execution context ask for memory for the batch it runs, not for the largest of the profile (10.10 on).
    resize = getattr(getattr(trt, "PreviewFeature", None), "RUNTIME_ACTIVATION_RESIZE_10_10", None)
    if resize is not None:
        config.set_preview_feature(resize, True)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        levels = trt.HardwareCompatibilityLevel
        config.hardware_compatibility_level = getattr(levels, hardware_mode(options, gpu).upper())
    members = _find_targets(library, options.compute_capabilities)
    if members:
        config.num_compute_capabilities = len(members)
        for index, member in enumerate(members):
            if not config.set_compute_capability(member, index):
                raise EngineError(
                    f"{library_title(library.format)} refuses the target {member}: {library.take_first_error()}"
                )


def hardware_mode(options: BuildOptions, gpu: Gpu | None) -> str:
    """Name the GPUs that a build covers, as sidecars write it."""
    if gpu is None:
        return "compute_capabilities"
    if not options.hardware_compatible:
        return "gpu"
    # AMPERE_PLUS needs an Ampere GPU or newer to build on.
    return "ampere_plus" if gpu.compute_capability >= (8, 0) else "same_compute_capability"


def _find_targets(library: TrtLibrary, wanted: Sequence[tuple[int, int]]) -> list[Any]:
    if not wanted:
        return []
    known = library.module.ComputeCapability.__members__
    names = [f"SM{major}{minor}" for major, minor in wanted]
    for name in names:
        if name not in known:
            targets = ", ".join(sorted((each for each in known if each.startswith("SM")), key=lambda sm: int(sm[2:])))
            raise BadValueError(
                f"{library_title(library.format)} {library.version} has no target {name.lower()}; "
                f"it has {targets.lower()}."
            )
    return [known[name] for name in names]


def _attach_timing_cache(library: TrtLibrary, config: Any, timing_cache: bytes) -> Any:
    if library.format == "rtx":
        return None  # no-ops since 1.2, and deprecated: its kernels are chosen on the user's GPU
    cache = config.create_timing_cache(timing_cache)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _make_monitor(trt: Any, what: str, progress: Progress) -> Any:
    """Turn the library's nested phases into one share that never falls."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.raised: BaseException | None = None
            self._phases: dict[str, list[Any]] = {}  # name -> [parent, steps, done]
            self._furthest = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = [parent_phase, max(1, num_steps), 0]

        def step_complete(self, phase_name: str, step: int) -> bool:
            # An exception must not cross the library's C++ frames: it is kept, and the build is told to stop.
            try:
                if phase_name in self._phases:
                    self._phases[phase_name][2] = step + 1
                self._furthest = max(self._furthest, self._share(phase_name))
                progress(what, self._furthest, 1, "")
            except BaseException as error:
                self.raised = error
            return self.raised is None

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def _share(self, phase_name: str) -> float:
            part, name = 0.0, phase_name
            for _ in range(len(self._phases)):
                if name not in self._phases:
                    break
                parent, steps, done = self._phases[name]
                part = min(1.0, (done + part) / steps)
                name = parent
            return part

    return Monitor()
