"""What stands beside the images in a set that `dim generate` wrote: the class names in order."""

import json
from pathlib import Path
from typing import Any

from dim.runtime.errors import DataError

_MAX_NAMES_BYTES = 2**26


def read_class_names(folder: Path) -> tuple[str, ...] | None:
    """Read the class names from `classes.json` in a folder, or from the plan in `dataset.json`; None without either.

    Raises:
        DataError: `classes.json` is not a list of names.
    """
    found = _read_json(folder / "classes.json")
    if found is None:
        plan = _read_json(folder / "dataset.json")
        found = plan["plan"].get("classes") if isinstance(plan, dict) and isinstance(plan.get("plan"), dict) else None
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise DataError(f"{folder / 'classes.json'}: expected a list of class names.")
    return tuple(found)


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    if path.stat().st_size > _MAX_NAMES_BYTES:
        raise DataError(f"{path}: more than {_MAX_NAMES_BYTES} bytes, which is the limit for a list of names.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON that can be read ({str(error)[:80]}).") from error
