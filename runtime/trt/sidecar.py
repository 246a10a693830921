"""Sidecars: the JSON file beside a compiled engine that says what the engine covers.

The plan itself stays raw, byte for byte what the library wrote, so that the vendor's own tools read it
(prepending JSON to the plan breaks them: ultralytics issue 22910).
"""

import platform
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from dim.runtime.bundle_format.names import PRECISIONS
from dim.runtime.bundle_format.schema import check_sha256
from dim.runtime.errors import EngineError
from dim.runtime.gpu.driver import Gpu
from dim.runtime.storage import strict_json
from dim.runtime.storage.records import FieldError, from_plain, parse_versioned, to_plain

FORMATS = ("trt", "rtx")
FORMAT_VERSION = 1
MAX_SIDECAR_BYTES = 64 * 1024
MAX_TEXT_CHARS = 200

# What the builder was told about GPUs other than its own.
HARDWARE_MODES = ("gpu", "same_compute_capability", "ampere_plus", "compute_capabilities")

_NAME = re.compile(r"generator\.(fp32|fp16|int8)\.(trt|rtx)\.([a-z0-9]+(?:-[a-z0-9]+)*)\.engine")


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """What one compiled engine covers.

    Raises:
        FieldError: a field is out of range.
    """

    format: str
    """`trt` (TensorRT) or `rtx` (TensorRT for RTX)."""
    library_version: str
    """Of the library that built the plan, as 10.9.0.34."""
    precision: str
    """One of PRECISIONS."""
    onnx_sha256: str
    """Hash of the ONNX file it was built from."""
    engine_sha256: str
    """Hash of the plan."""
    engine_bytes: int
    """Size of the plan."""
    batch: tuple[int, int, int]
    """Optimisation profile: least, optimum, most images per call; the optimum is the padded batch."""
    hardware: str
    """One of HARDWARE_MODES."""
    compute_capabilities: tuple[tuple[int, int], ...]
    """Of the builder's GPU, or the targets asked for; none means 8.0 and newer, the default of TensorRT for RTX."""
    gpu: str | None
    """The builder's GPU, None where none was needed."""
    version_compatible: bool
    """Newer versions of the same major version may load it."""
    machine: str
    """Architecture of the processor beside the GPU: x86_64 or aarch64."""
    created_by: str
    """The program that built it, with its version."""
    checked: bool
    """Parity with the ONNX file was checked on a GPU before the engine was published."""

    def __post_init__(self) -> None:
        for name, known in (("format", FORMATS), ("precision", PRECISIONS), ("hardware", HARDWARE_MODES)):
            if getattr(self, name) not in known:
                raise FieldError(name, getattr(self, name), f"one of {', '.join(known)}")
        for name in ("onnx_sha256", "engine_sha256"):
            check_sha256(name, getattr(self, name))
        for name in ("library_version", "machine", "created_by", *(("gpu",) if self.gpu else ())):
            text = getattr(self, name)
            if not 0 < len(text) <= MAX_TEXT_CHARS or not text.isprintable():
                raise FieldError(name, text, f"1 to {MAX_TEXT_CHARS} printable letters")
        if self.engine_bytes < 1:
            raise FieldError("engine_bytes", self.engine_bytes, "at least 1")
        if not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise FieldError("batch", self.batch, "least, optimum and most in rising order, at least 1")
        if not all(0 <= number < 100 for pair in self.compute_capabilities for number in pair):
            raise FieldError("compute_capabilities", self.compute_capabilities, "pairs of numbers below 100")

    @property
    def file_name(self) -> str:
        """Name of the plan, `generator.<precision>.<trt|rtx>.<target>.engine`."""
        return f"generator.{self.precision}.{self.format}.{self.target}.engine"

    @property
    def target(self) -> str:
        """The part of the file name that says which GPUs are meant: "sm89", "sm80plus", "sm86-sm89"."""
        if self.hardware == "ampere_plus" or not self.compute_capabilities:
            return "sm80plus"
        return "-".join(f"sm{major}{minor}" for major, minor in sorted(self.compute_capabilities))

    def to_json(self) -> bytes:
        """Serialise as indented UTF-8 JSON with sorted keys and a newline at the end."""
        return strict_json.write_indented({"format_version": FORMAT_VERSION, **to_plain(self)})


def parse_engine_name(name: str) -> tuple[str, str, str] | None:
    """Split a plan's name into precision, format and target; None where the name is not a plan's."""
    match = _NAME.fullmatch(PurePosixPath(name).name)
    return (match[1], match[2], match[3]) if match else None


def sidecar_name(engine: str) -> str:
    """Name of the JSON file beside a plan: the plan's own name with `.json` appended."""
    return f"{engine}.json"


def host_machine() -> str:
    """Processor architecture of this machine, as sidecars write it."""
    return platform.machine().replace("AMD64", "x86_64").replace("arm64", "aarch64")


def reason_engine_does_not_fit(
    sidecar: Sidecar, *, gpu: Gpu | None, library_version: str | None, onnx_sha256: str | None
) -> str | None:
    """Say why an engine does not fit what is here.

    Args:
        sidecar: what the engine covers.
        gpu: the GPU that would run it; None skips the GPU.
        library_version: version of the installed library of `sidecar.format`; None skips the library.
        onnx_sha256: hash of the bundle's ONNX file of `sidecar.precision`; None skips the file.

    Returns:
        one clause for the middle of a sentence, or None when the engine fits.
    """
    if onnx_sha256 is not None and sidecar.onnx_sha256 != onnx_sha256:
        return f"it was built from another ONNX file (hash {sidecar.onnx_sha256[:12]}, here it is {onnx_sha256[:12]})"
    if sidecar.machine != host_machine():
        return f"it was built for {sidecar.machine} and this machine is {host_machine()}"
    if library_version is not None and not _version_fits(sidecar, library_version):
        built_by = f"{library_title(sidecar.format)} {sidecar.library_version}"
        return f"it was built by {built_by} and {library_version} is installed"
    if gpu is not None and not _gpu_fits(sidecar, gpu):
        return f"it was built for {_describe_covered_gpus(sidecar)} and this GPU is {describe_gpu(gpu)}"
    return None


def library_title(format: str) -> str:
    """The library's name as its maker writes it."""
    return "TensorRT" if format == "trt" else "TensorRT for RTX"


def describe_gpu(gpu: Gpu) -> str:
    """A GPU with its compute capability, "NVIDIA H200 (compute capability 9.0)"."""
    return f"{gpu.name} (compute capability {gpu.compute_capability[0]}.{gpu.compute_capability[1]})"


def _version_fits(sidecar: Sidecar, installed: str) -> bool:
    if sidecar.library_version == installed:
        return True
    built_by, here = _split_version(sidecar.library_version), _split_version(installed)
    # Version-compatible plans run on newer releases of the same major version (TensorRT support matrix).
    return sidecar.version_compatible and built_by[:1] == here[:1] and here >= built_by


def _gpu_fits(sidecar: Sidecar, gpu: Gpu) -> bool:
    if sidecar.hardware == "ampere_plus":
        return gpu.compute_capability >= (8, 0)
    if sidecar.hardware == "compute_capabilities" and not sidecar.compute_capabilities:
        return gpu.compute_capability >= (8, 0)
    if sidecar.hardware == "gpu" and sidecar.gpu is not None and sidecar.gpu != gpu.name:
        return False
    return gpu.compute_capability in sidecar.compute_capabilities


def _describe_covered_gpus(sidecar: Sidecar) -> str:
    if sidecar.hardware == "ampere_plus" or not sidecar.compute_capabilities:
        return "GPUs of compute capability 8.0 and newer"
    listed = ", ".join(f"{major}.{minor}" for major, minor in sidecar.compute_capabilities)
    return (
        f"{sidecar.gpu} (compute capability {listed})" if sidecar.hardware == "gpu" else f"compute capability {listed}"
    )


def _split_version(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def parse_sidecar(data: bytes, name: str) -> Sidecar:
    """Parse and check a sidecar.

    Args:
        data: the file's bytes.
        name: its name, for messages.

    Raises:
        EngineError: not JSON, of a newer format, or a field is missing, unknown or out of range.
    """
    where, advice = f"The sidecar {name}", "build the engine again with  dim export"
    block = parse_versioned(
        data, where, version=FORMAT_VERSION, max_bytes=MAX_SIDECAR_BYTES, error=EngineError, advice=advice
    )
    return from_plain(Sidecar, block, where, error=EngineError, advice=advice)
