"""Distil a labelled image dataset into a small generator, compile it, and draw training sets from it without PyTorch.

import dim

data = dim.load_data("digits")                                                      # images and labels in
result = dim.distill(data, "tiny", "runs/digits")                                   # PyTorch: a run directory
path = dim.export_run(result.run_dir)                                               # a bundle of a few megabytes
with dim.open_bundle(path) as bundle:                                               # NumPy and one engine, no PyTorch
    X, y = bundle.arrays(ipc=50)

Every name below is loaded on first use. So `import dim` is fast, and `import dim.runtime`, which runs this file first,
never loads PyTorch. `dim.export` is a package; the function is `dim.export_run`.
"""

from importlib import import_module

from dim.version import __version__ as __version__

TYPE_CHECKING = False  # type checkers take it for True; importing typing would cost more than all the rest

if TYPE_CHECKING:
    from dim import torch as torch
    from dim.data.load import load_data as load_data
    from dim.data.options import DataOptions as DataOptions
    from dim.distillation.distill import distill as distill
    from dim.evaluation.evaluate import evaluate as evaluate
    from dim.evaluation.protocol import EvalProtocol as EvalProtocol
    from dim.evaluation.protocol import Execution as Execution
    from dim.export.export_run import export_run as export_run
    from dim.gallery import view as view
    from dim.presets import preset as preset
    from dim.runtime.bundle import Bundle as Bundle
    from dim.runtime.bundle import open_bundle as open_bundle
    from dim.runtime.engines.base import EngineOptions as EngineOptions
    from dim.runtime.errors import BadValueError as BadValueError
    from dim.runtime.errors import BundleError as BundleError
    from dim.runtime.errors import DataError as DataError
    from dim.runtime.errors import DeviceError as DeviceError
    from dim.runtime.errors import DimError as DimError
    from dim.runtime.errors import DivergedError as DivergedError
    from dim.runtime.errors import EngineError as EngineError
    from dim.runtime.errors import GraphError as GraphError
    from dim.runtime.errors import MissingExtraError as MissingExtraError
    from dim.runtime.errors import OutputError as OutputError
    from dim.runtime.errors import ParityError as ParityError
    from dim.runtime.errors import RunError as RunError
    from dim.runtime.inspection.inspect import inspect as inspect
    from dim.runtime.inspection.verify import verify as verify
    from dim.runtime.sets.generate import generate as generate
    from dim.runtime.sets.request import SetRequest as SetRequest
    from dim.runtime.trt.build import build_engines as build_engines

_HOMES = {
    # Make a bundle; these need the extra `train`.
    "load_data": "dim.data.load",
    "DataOptions": "dim.data.options",
    "preset": "dim.presets",
    "distill": "dim.distillation.distill",
    "export_run": "dim.export.export_run",
    "evaluate": "dim.evaluation.evaluate",
    "EvalProtocol": "dim.evaluation.protocol",
    "Execution": "dim.evaluation.protocol",
    # Use a bundle.
    "open_bundle": "dim.runtime.bundle",
    "Bundle": "dim.runtime.bundle",
    "EngineOptions": "dim.runtime.engines.base",
    "generate": "dim.runtime.sets.generate",
    "SetRequest": "dim.runtime.sets.request",
    "build_engines": "dim.runtime.trt.build",
    "inspect": "dim.runtime.inspection.inspect",
    "verify": "dim.runtime.inspection.verify",
    "view": "dim.gallery",
    # What can go wrong.
    "DimError": "dim.runtime.errors",
    "BadValueError": "dim.runtime.errors",
    "BundleError": "dim.runtime.errors",
    "DataError": "dim.runtime.errors",
    "DeviceError": "dim.runtime.errors",
    "DivergedError": "dim.runtime.errors",
    "EngineError": "dim.runtime.errors",
    "GraphError": "dim.runtime.errors",
    "MissingExtraError": "dim.runtime.errors",
    "OutputError": "dim.runtime.errors",
    "ParityError": "dim.runtime.errors",
    "RunError": "dim.runtime.errors",
}
"""Every public name and the module that it comes from. A new name is one line here and one import above."""

_ROOMS = ("torch",)
"""Public modules that are loaded on first use. `from dim import *` leaves them out, because it would hide PyTorch."""

__all__ = [*sorted(_HOMES), "__version__"]


if not TYPE_CHECKING:  # a checker that saw this would take any name for a public one

    def __getattr__(name: str) -> object:
        if name not in _HOMES and name not in _ROOMS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            value = import_module(f"dim.{name}") if name in _ROOMS else getattr(import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package in ("", "dim"):
                raise
            errors = import_module("dim.runtime.errors")
            purpose = "draw into PyTorch's loaders" if name in _ROOMS else "distil, export and evaluate"
            raise errors.MissingExtraError(package, "train", purpose) from None
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
