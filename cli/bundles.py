"""Which bundle a command works on: found, and said first."""

from pathlib import Path

from dim.cli.terminal import say


def choose_bundle(explicit: str | None, sha256: str | None = None) -> Path:
    """Find the bundle, print which one it is and why, and return its folder.

    Args:
        explicit: what `--bundle` or the argument named; None for the default bundle.
        sha256: the `manifest_sha256` that it must have; None for any.
    """
    from dim.runtime.bundle_format.locate import find_bundle

    path, reason = find_bundle(explicit, sha256, say)
    say(f"Bundle: {path}, {reason}.")
    return path
