"""Imports the engines' libraries, with their usage data turned off; no other module imports them.

ONNX Runtime from 1.29 on writes a device id and a queue of events under the user's cache; OpenVINO's converter reports
to its maker. Both decide when they are imported.
"""

import importlib
import os
import sys
from typing import Any

_OFF = {"ORT_DISABLE_TELEMETRY": "1"}
_REPORTERS = ("openvino_telemetry",)
"""Modules that do nothing but report; libraries go on without them."""


def import_engine_library(name: str) -> Any:
    """Import an engine's library after its usage data have been turned off for this process and those that it starts.

    Args:
        name: the module: onnxruntime, openvino, tensorrt, ...

    Raises:
        ImportError: it is not installed, or cannot be loaded.
    """
    os.environ.update(_OFF)
    for reporter in _REPORTERS:
        # None makes every later import of it fail.
        sys.modules.setdefault(reporter, None)  # type: ignore[arg-type]
    return importlib.import_module(name)
