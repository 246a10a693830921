"""Which compiled engines may be loaded: a plan is code, so only what this user built or pinned.

Built here: the plan's SHA-256 stands in the user's private cache, written there by the builder. Pinned: the user
gave the hash on the command line (`--trust sha256:...`). Everything else is rebuilt from the ONNX file.
"""

from dim.runtime.storage.private_cache import recall, remember

_KIND = "built-engines"


def remember_built(sha256: str) -> None:
    """Note in the private cache that this user built the plan with this hash."""
    remember(_KIND, sha256)


def reason_not_trusted(sha256: str, pins: frozenset[str]) -> str | None:
    """Say in one clause why the plan with this hash must not be loaded, or None if it may be."""
    if sha256 in pins or recall(_KIND, sha256) is not None:
        return None
    return f"it is code that somebody else compiled (--trust sha256:{sha256} would load it all the same)"
