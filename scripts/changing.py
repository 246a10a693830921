"""What the scripts that change a bundle in its place have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from dim.runtime.errors import DimError
from dim.runtime.manifest import Manifest


def change(bundle_path: Path, made: Callable[[], Manifest]) -> int:
    """Change a bundle, and say what came of it.

    Args:
        bundle_path: the bundle.
        made: changes it and returns its new manifest, or raises and leaves it as it was.

    Returns:
        the exit code.
    """
    try:
        manifest = made()
    except DimError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Stopped; {bundle_path} is as it was.", file=sys.stderr)
        return 130
    print(f"Bundle: {bundle_path}, content id {manifest.content_id}")
    return 0
