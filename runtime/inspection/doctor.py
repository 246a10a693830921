"""`dim doctor`: which engines work here, what was found, what is needed, and the command that fixes it."""

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from dim.runtime.cores import find_bf16_instructions, list_processor_flags, usable_cores
from dim.runtime.engines.libraries import import_engine_library
from dim.runtime.engines.names import ENGINES, OFFERED_ENGINES
from dim.runtime.engines.onnx_cuda import PROVIDER, read_cuda_major
from dim.runtime.errors import DimError
from dim.runtime.gpu.driver import OLDEST_DRIVER, Driver, find_driver, has_nvidia_hardware, reason_driver_too_old
from dim.runtime.inspection.self_test import SelfTest
from dim.runtime.install import install_extra, reinstall_extra
from dim.runtime.trt.library import find_cuda_major, load_library
from dim.runtime.trt.sidecar import describe_gpu
from dim.version import __version__

PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "onnx",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-core",
    "cuda-bindings",
    "numpy",
    "torch",
)
PLAIN_COMMAND = "dim generate --ipc 50 --out data/"
"""What draws where nothing is faster."""
_CUDNN = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
_CUDA_RUNTIME = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu13", "nvidia-cuda-runtime-cu12")
_NEEDED_PACKAGES = {
    "tensorrt": ("tensorrt", "cuda-core", "cuda-bindings", "onnx"),
    "tensorrt-rtx": ("tensorrt-rtx", "cuda-core", "cuda-bindings", "onnx"),
    "onnxruntime-cuda": ("onnx",),
    "onnxruntime-cpu": ("onnx",),
    "openvino-cpu": ("openvino", "onnx"),
}
_EXTRAS = {
    "tensorrt": "trt",
    "tensorrt-rtx": "rtx",
    "onnxruntime-cuda": "gpu",
    "onnxruntime-cpu": "cpu",
    "openvino-cpu": "openvino",
}


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """One engine on this machine."""

    engine: str
    works: bool
    """It drew the self test's images; nothing less."""
    found: dict[str, str | None]
    """Versions that matter to this engine, None for what is missing."""
    needed: dict[str, str]
    """The same names, and what they must be."""
    reason: str
    """The engine's version where it works, else why it does not."""
    fix: str | None
    """The line that fixes it, None where it works or no line can."""


@dataclass(frozen=True, kw_only=True)
class DoctorReport:
    """What `dim doctor` found."""

    dim: str
    python: str
    machine: str
    cores: int
    fast_precision: str
    """The precision that pays on this processor, and the instructions that make it fast."""
    driver: Driver
    packages: dict[str, str | None]
    engines: tuple[EngineState, ...]
    recommended: str | None
    """The engine that `--engine auto` tries first among those that work."""
    worth_typing: str
    """The one command that helps most: it fixes what is missing, or draws in the quickest way."""
    problems: tuple[tuple[str, str], ...]
    """What is wrong beyond single engines, each with the line that fixes it."""

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return asdict(self)


def examine_machine(driver: Driver | None = None, say: Callable[[str], None] = lambda message: None) -> DoctorReport:
    """Look at the machine and try every engine on a tiny bundle with a known answer.

    Args:
        driver: an answer of `find_driver`; None asks anew.
        say: told which engine is being tried; a TensorRT engine is built for it the first time.

    Returns:
        the report; an engine that does not work is a row, never an error.
    """
    driver = driver or find_driver()
    packages = {name: _version(name) for name in PACKAGES}
    with SelfTest() as test:
        states = tuple(_try(name, test, driver, packages, say) for name in OFFERED_ENGINES)
    return DoctorReport(
        dim=__version__,
        python=platform.python_version(),
        machine=f"{platform.system()} {platform.machine()}",
        cores=usable_cores(),
        fast_precision=_name_fast_precision(),
        driver=driver,
        packages=packages,
        engines=states,
        recommended=next((state.engine for state in states if state.works), None),
        worth_typing=_choose_command(states),
        problems=tuple(_problems(driver)),
    )


def _choose_command(states: tuple[EngineState, ...]) -> str:
    """Return what fixes a GPU or the lack of any engine, else what draws in the quickest way."""
    by_name = {state.engine: state for state in states}
    works = [state.engine for state in states if state.works]
    on_gpu = [name for name in works if ENGINES[name] == "gpu"]
    if on_gpu:
        return "dim generate --device gpu --ipc 50 --out data/"
    if has_nvidia_hardware():
        fixes = [state.fix for state in states if ENGINES[state.engine] == "gpu" and state.fix]
        return min(fixes, key=len, default="dim doctor --all")
    if not works:
        return by_name["onnxruntime-cpu"].fix or reinstall_extra("cpu")
    if find_bf16_instructions() is None:
        return PLAIN_COMMAND
    if "openvino-cpu" not in works:
        return by_name["openvino-cpu"].fix or reinstall_extra("openvino")
    return "dim generate --precision bf16 --ipc 50 --out data/"


@cache
def list_onnxruntime_wheels() -> list[str]:
    """Installed packages that own the module `onnxruntime`; more than one overwrite each other's files."""
    return sorted(set(metadata.packages_distributions().get("onnxruntime", [])))


def _try(
    name: str, test: SelfTest, driver: Driver, packages: dict[str, str | None], say: Callable[[str], None]
) -> EngineState:
    found, needed = _versions(name, driver, packages)
    steps = _steps(name, driver, packages)
    state = partial(EngineState, engine=name, found=found, needed=needed)
    if ENGINES[name] == "gpu" and driver.problem is not None:
        # No trial: without a driver the libraries' own errors mislead.
        builds = (
            "it builds engines here and cannot run them, because " if _loads(name) and name == "tensorrt-rtx" else ""
        )
        return state(works=False, reason=builds + driver.problem, fix=", then  ".join(steps))
    say(f"Trying {name}.")
    try:
        version = test.run(name, driver, lambda message: None)
    except DimError as error:
        return state(works=False, reason=str(error), fix=", then  ".join(steps) or reinstall_extra(_EXTRAS[name]))
    except Exception as error:  # a library that is broken in a way nobody foresaw is what a doctor is for
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return state(works=False, reason=reason, fix=", then  ".join(steps) or reinstall_extra(_EXTRAS[name]))
    return state(works=True, reason=version, fix=None)


def _versions(
    name: str, driver: Driver, packages: dict[str, str | None]
) -> tuple[dict[str, str | None], dict[str, str]]:
    """What an engine finds here and what it needs."""
    if name == "openvino-cpu":
        return (
            {"openvino": packages["openvino"], "onnx": packages["onnx"]},
            {"openvino": "2025.0 or newer", "onnx": "1.16 or newer"},
        )
    if name == "onnxruntime-cpu":
        return {
            "onnxruntime": packages["onnxruntime"] or packages["onnxruntime-gpu"],
            "onnx": packages["onnx"],
        }, {"onnxruntime": "1.20 or newer", "onnx": "1.16 or newer"}
    cuda_major = _needed_cuda(name, packages)
    found: dict[str, str | None] = {
        "driver": driver.version,
        "cuda of the driver": None if driver.cuda is None else f"{driver.cuda[0]}.{driver.cuda[1]}",
        "gpu": describe_gpu(driver.gpus[0]) if driver.gpus else None,
    }
    needed = {
        "driver": f"{OLDEST_DRIVER.get(cuda_major or 12, OLDEST_DRIVER[12])} or newer",
        "cuda of the driver": f"{cuda_major or 12}.0 or newer",
        "gpu": "compute capability 8.0 or newer" if name == "tensorrt-rtx" else "an NVIDIA GPU",
    }
    if name == "onnxruntime-cuda":
        found |= {
            "onnxruntime-gpu": packages["onnxruntime-gpu"],
            "cuda runtime": _first_version(_CUDA_RUNTIME),
            "cudnn": _first_version(_CUDNN),
        }
        needed |= {
            "onnxruntime-gpu": "1.20 or newer",
            "cuda runtime": f"{cuda_major or 12}, of the extra or of the system",
            "cudnn": "9, of the extra or of the system",
        }
        return found, needed
    found |= {name: packages[name]}
    needed |= {name: "10.3 or newer" if name == "tensorrt" else "1.2 or newer"}
    for package, least in (
        ("cuda-core", "1.2 or newer"),
        ("cuda-bindings", "12.9 or newer"),
        ("onnx", "1.16 or newer"),
    ):
        found[package], needed[package] = packages[package], least
    return found, needed


def _needed_cuda(name: str, packages: dict[str, str | None]) -> int | None:
    if name == "onnxruntime-cuda":
        if packages["onnxruntime-gpu"] is None:
            return None
        try:
            return read_cuda_major(import_engine_library("onnxruntime"))
        except ImportError:
            return None
    return find_cuda_major(_EXTRAS[name])


def _steps(name: str, driver: Driver, packages: dict[str, str | None]) -> list[str]:
    """What to do, in order, before this engine can work; nothing where nothing is missing."""
    extra, steps = _EXTRAS[name], []
    if ENGINES[name] == "gpu":
        cuda_major = _needed_cuda(name, packages)
        oldest = OLDEST_DRIVER.get(cuda_major or 12, OLDEST_DRIVER[12])
        if driver.problem is not None:
            steps.append(f"install an NVIDIA driver, {oldest} or newer, and check it with  nvidia-smi")
        elif reason_driver_too_old(driver, cuda_major) is not None:
            steps.append(f"update the NVIDIA driver to {oldest} or newer")
    if name == "onnxruntime-cuda" and (packages["onnxruntime-gpu"] is None or len(list_onnxruntime_wheels()) > 1):
        steps.append(_change_onnxruntime(extra))
    elif name == "tensorrt" and packages["tensorrt"] is not None and not _loads(name):
        steps.append(f"{reinstall_extra(extra)}  (its libraries come from NVIDIA's own index: docs/install.md)")
    elif any(packages.get(package) is None for package in _NEEDED_PACKAGES[name]) or not _loads(name):
        steps.append(install_extra(extra))
    return steps


def _loads(name: str) -> bool:
    if name not in ("tensorrt", "tensorrt-rtx"):
        return True
    try:
        load_library(_EXTRAS[name])
    except DimError:
        return False
    return True


def _problems(driver: Driver) -> list[tuple[str, str]]:
    problems = []
    wheels = list_onnxruntime_wheels()
    if len(wheels) > 1:
        extra = "cpu" if driver.problem is not None else "gpu"
        problems.append(
            (
                f"{' and '.join(wheels)} are both installed and both own the module onnxruntime: whichever came last "
                "overwrote the other",
                f"pip uninstall -y {' '.join(wheels)} && {install_extra(extra)}",
            )
        )
    elif driver.problem is None and wheels == ["onnxruntime"]:
        problems.append(
            (f"there is a GPU, and the ONNX Runtime that is installed has no {PROVIDER}", _change_onnxruntime("gpu"))
        )
    return problems


def _change_onnxruntime(extra: str) -> str:
    wheels = list_onnxruntime_wheels()
    uninstall = f"pip uninstall -y {' '.join(wheels)} && " if wheels else ""
    return f"{uninstall}{install_extra(extra)}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _first_version(packages: tuple[str, ...]) -> str | None:
    return next((version for package in packages if (version := _version(package)) is not None), None)


def _name_fast_precision() -> str:
    """Name the fastest precision that pays: with AVX-512, int8 is 1.5 times as fast as bf16; with AMX, 0.6 times."""
    bf16, flags = find_bf16_instructions(), list_processor_flags()
    extra = "" if find_spec("openvino") else " would be faster here; it needs the extra openvino"
    if bf16 == "AMX-BF16":
        return f"bf16 ({bf16}){extra}"
    if bf16 is not None:
        return f"bf16 ({bf16}){extra}, or int8 (VNNI), faster still and further from fp32"
    if flags & {"avx512_vnni", "avx_vnni"}:
        return "int8 (VNNI)"
    return "int8 (dot products)" if "asimddp" in flags else "fp32"
