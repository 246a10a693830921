"""Which bundle is meant when nobody names one."""

import os
from pathlib import Path

from dim.runtime.errors import BundleError
from dim.runtime.manifest_check import MANIFEST_NAME

SHIPPED = Path(__file__).parent / "shipped" / "mnist.dim"


def find_bundle(explicit: str | None = None) -> tuple[Path, str]:
    """Find the bundle: the one named, else `$DIM_BUNDLE`, else the newest here or under `runs/`, else the shipped.

    Args:
        explicit: a path that the user gave, or None.

    Returns:
        the bundle's folder, and why it is this one, as a phrase.

    Raises:
        BundleError: there is none.
    """
    if explicit is not None:
        return _existing(Path(explicit), "as named")
    if named := os.environ.get("DIM_BUNDLE"):
        return _existing(Path(named), "from $DIM_BUNDLE")
    here = [path for pattern in ("*.dim", "runs/*.dim", "runs/*/*.dim") for path in Path().glob(pattern)]
    bundles = [path for path in here if (path / MANIFEST_NAME).is_file()]
    if bundles:
        return max(bundles, key=lambda path: ((path / MANIFEST_NAME).stat().st_mtime_ns, str(path))), "the newest here"
    if (SHIPPED / MANIFEST_NAME).is_file():
        return SHIPPED, "the one that comes with dim"
    raise BundleError(
        "There is no bundle: none is named, $DIM_BUNDLE is not set, no *.dim lies here or under runs/, and none came "
        "with this installation; pass --bundle PATH or make one with dim distill and dim export."
    )


def _existing(path: Path, reason: str) -> tuple[Path, str]:
    if not (path / MANIFEST_NAME).is_file():
        found = "has no " + MANIFEST_NAME if path.is_dir() else "is a file" if path.exists() else "does not exist"
        raise BundleError(f"There is no bundle at {path} ({reason}): it {found}.")
    return path, reason
