"""A bundle of one kilobyte with a known answer, to find out whether an engine works here: embedding, resize, two
convolutions, uint8 out.
"""

import base64
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dim.runtime.bundle_format.files import load_manifest, write_bundle
from dim.runtime.bundle_format.manifest import BundleDescription, ImageShape, Manifest, SamplingInfo, SourceInfo
from dim.runtime.choose_engine import open_engine
from dim.runtime.cores import find_bf16_instructions
from dim.runtime.engines.base import Engine, EngineOptions
from dim.runtime.engines.image_checks import compare_precision
from dim.runtime.errors import EngineError
from dim.runtime.gpu.driver import Driver

# A zlib-compressed ONNX file that keeps the graph contract; the test spells out its arithmetic.
_GENERATOR = (
    "eNpdU81u00AQ9l9sZ6CQrlSR8lNac7NUIcQNidYkB5AlOEQ9VUjRJt7EK/wnr9MAl+ZR8iKQXniPvkmZXW9ChaPP2flmdmb2m7UP"
    "xE54/u6PByfQZfmEJQkv5uBmdMIyQZy6XIrA/UiblNXwDLyMNqxoBCgH6eT8O0sC+0OSwAtoLeiIlFaMODmtROCNmDLhGhQBBrhi"
    "SjMmCNao56wOXAzhP1n4Go6mZVljfawxbmpaiFlZ57ThZTHOy4QFQMWPPGdNzadr0w4JppS0VzBaM9FIrg8PtdVu6cwyzIkeeAO6"
    "ILjfWF2wjLgpTxJWBM6wLK7CfXAqmojIbH9r04M+6BDiV6XgDb9igTNi2QLF2jFg47EJqLOP1ZlVPhTrHke8SbkoEtTKuaBFCs9h"
    "S4CT0mxGWlFQys+LDL3a1E5PpHzWbIU+hK1NvFpn7YzkAl7BlgE7K5e4nc9T4k0zXlWy9hAXcApbgjhFupwG3QupNZ6HKRFYnUdG"
    "ZEV2K8JLUFHE5TmdM3k6KpqwC1ZT9q21aRFfsAy7QfKtb/lOzxz8u0jxsWGszg31rDb4kuvNfS48xS3eoL008fGdfszWb1j//YdH"
    "qoK+Q3GvTaXSRRLhV+zB9G3fllHtoONPbdHb34Zxg1gjVogIYcj1L93Me3ydIY9YIdaIG8TtWdt47zw8xNwyv4nZ5dxjXxffhI+Q"
    "UuOKHcO4G4R7MgSHIE3su3XjOKR9Pbx8uvuWyGPY803SBZuYXwAVvDzYfX8PoOt7pKNckxPQMyBP4MC3yP5uhwZWAKNH/gKL6fXY"
)
LATENTS: NDArray[np.float32] = ((np.arange(8).reshape(2, 4) - 3.5) / 4).astype(np.float32)
LABELS = np.array([0, 1], np.int64)
_ANSWER = bytes.fromhex("7282a0b780b2d6d9c3e5d88af7f9c86e97561b1da34433494644597b59667b97")


class SelfTest:
    """The bundle in a temporary folder; a context manager."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dim-selftest-")
        self.path = Path(self._folder.name) / "selftest.dim"
        write_bundle(
            self.path,
            BundleDescription(
                name="selftest",
                created_by="dim doctor",
                classes=("a", "b"),
                image=ImageShape(height=4, width=4, channels=1),
                sampling=SamplingInfo(latent_dim=4, latent_std=1.0),
                source=SourceInfo(name="", class_counts=(0, 0), mean=(0.5,), std=(0.5,), licence="", note=""),
                distill_config={},
                licence="",
            ),
            {"generator.fp32.onnx": unpack_generator()},
        )
        self.manifest: Manifest = load_manifest(self.path)

    def __enter__(self) -> "SelfTest":
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def run(self, name: str, driver: Driver, say: Callable[[str], None] = lambda message: None) -> str:
        """Open an engine as `dim generate` would, draw two images and compare them; OpenVINO in bf16, too, if it can.

        Args:
            name: an engine of `dim.runtime.engines.names.ENGINES`.
            driver: an answer of `find_driver`.
            say: told what is being built.

        Returns:
            the engine's version.

        Raises:
            as `open_engine`; EngineError: the images are wrong.
        """
        version = self._compare(EngineOptions(engine=name, precision="fp32"), driver, say)
        if name == "openvino-cpu" and find_bf16_instructions() is not None:
            version = self._compare(EngineOptions(engine=name, precision="bf16"), driver, say)
        return version

    def _compare(self, options: EngineOptions, driver: Driver, say: Callable[[str], None]) -> str:
        engine: Engine = open_engine(self.path, self.manifest, options, driver=driver, say=say)
        try:
            images = engine.run(LATENTS, LABELS)
            close, found, allowed = compare_precision(engine.precision, images, read_expected_images())
            if not close:
                raise EngineError(
                    f"{engine.name} draws wrong images in {engine.precision}: {found} from the known answer, and "
                    f"{allowed} is right."
                )
            return engine.version
        finally:
            engine.close()


def unpack_generator() -> bytes:
    """The ONNX file."""
    return zlib.decompress(base64.b64decode(_GENERATOR))


def read_expected_images() -> NDArray[np.uint8]:
    """The images that LATENTS and LABELS give, uint8 [2, 4, 4, 1]."""
    return np.frombuffer(_ANSWER, np.uint8).reshape(2, 4, 4, 1)
