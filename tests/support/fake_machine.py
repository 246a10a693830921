"""A machine whose GPU, driver and engine libraries are fakes, with one tiny bundle on it."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import FakeGpu, fake_driver
from fake_trt import FakeTrt
from tiny_bundle import build_tiny_bundle

from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.choose_engine import open_engine
from dim.runtime.engines import onnx_cuda as engine_cuda
from dim.runtime.engines.base import EngineOptions
from dim.runtime.errors import MissingExtraError
from dim.runtime.gpu.driver import find_driver
from dim.runtime.storage.private_cache import cache_dir
from dim.runtime.trt import build as build_engines_module
from dim.runtime.trt import engine as engine_trt
from dim.runtime.trt import library as trt_library
from dim.runtime.trt import open as trt_open
from dim.runtime.trt.build import build_engines

ADA = find_driver(fake_driver())
TURING = find_driver(fake_driver(name="NVIDIA T4", capability=(7, 5)))
NONE = find_driver(fake_driver(missing=True))


class Machine:
    """A machine with a fake GPU and the fake libraries that a test installs."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.gpu = FakeGpu()
        self.patch = patch
        self.path = build_tiny_bundle(folder / "tiny.dim", precisions=("fp32", "fp16"))
        self.said: list[str] = []
        self.driver = ADA
        patch.setenv("DIM_CACHE", str(folder / "cache"))
        patch.setattr(engine_trt, "import_cuda_core", lambda extra: self.gpu.core)
        patch.setattr(build_engines_module, "find_driver", lambda: self.driver)
        patch.setattr(engine_cuda, "import_onnxruntime", self._no_cuda)
        patch.setattr(trt_open, "DEFAULT_BATCH", (1, 16, 64))
        for name in ("tensorrt", "tensorrt_rtx"):
            patch.setitem(sys.modules, name, None)
        trt_library.load_library.cache_clear()

    @staticmethod
    def _no_cuda(extra: str) -> Any:
        raise MissingExtraError("onnxruntime", "gpu", "run ONNX files on the GPU")

    def install(self, format: str, version: str | None = None) -> FakeTrt:
        default = {"trt": "10.9.0.34", "rtx": "1.7.1.116"}[format]
        module = FakeTrt(self.gpu, format, version or default)
        self.patch.setitem(sys.modules, {"trt": "tensorrt", "rtx": "tensorrt_rtx"}[format], module)
        trt_library.load_library.cache_clear()
        return module

    def forget(self) -> None:
        """Become another user: nothing was built here."""
        shutil.rmtree(self.cache)

    @property
    def cache(self) -> Path:
        return cache_dir()

    def open(self, **options: Any) -> Any:
        self.said.clear()
        others = {name: options.pop(name) for name in ("batch", "driver") if name in options}
        manifest = load_manifest(self.path)
        return open_engine(
            self.path, manifest, EngineOptions(**options), say=self.said.append, **{"driver": self.driver, **others}
        )

    def build(self, format: str = "trt", **options: Any) -> list[Path]:
        self.said.clear()
        return build_engines(self.path, format=format, say=self.said.append, **{"batch": (1, 4, 8), **options})
