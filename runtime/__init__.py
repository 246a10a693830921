"""Deployment: read a bundle, draw samples, run engines, write training sets. Never imports PyTorch.

Names are loaded on first use, so `import dim.runtime` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dim.runtime.bundle import Bundle, open_bundle
    from dim.runtime.engines.base import EngineOptions
    from dim.runtime.errors import (
        BadValueError,
        BundleError,
        DataError,
        DeviceError,
        DimError,
        DivergedError,
        EngineError,
        GraphError,
        MissingExtraError,
        OutputError,
        ParityError,
        RunError,
    )
    from dim.runtime.sets.generate import generate
    from dim.runtime.sets.request import SetRequest

# Every other name is an error's.
_HOMES = {
    "Bundle": "bundle",
    "open_bundle": "bundle",
    "EngineOptions": "engines.base",
    "generate": "sets.generate",
    "SetRequest": "sets.request",
}

__all__ = [
    "BadValueError",
    "Bundle",
    "BundleError",
    "DataError",
    "DeviceError",
    "DimError",
    "DivergedError",
    "EngineError",
    "EngineOptions",
    "GraphError",
    "MissingExtraError",
    "OutputError",
    "ParityError",
    "RunError",
    "SetRequest",
    "generate",
    "open_bundle",
]


if not TYPE_CHECKING:  # a checker that saw this would take any name for a public one

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
