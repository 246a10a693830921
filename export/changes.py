"""What changed a bundle after its export, as `export.json` notes it: for the card, and for the scripts that do it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

from dim.runtime.manifest import Manifest

REFINED: dict[str, int | float] = {
    "steps": 1,
    "width": 1,
    "trained": 0,
    "resnets": 0,
    "untrained": 0,
    "judges": 1,
    "cross_entropy": 0.0,
    "draws": 1,
    "learners": 0,
}
"""Options of `scripts/refine.py`, as it notes them, and the least that each may be."""
MIRRORED_AFTER = "mirrored_after"
"""Where `scripts/mirror.py` notes after how many passes of the other it was run."""


def passes_of(record: Mapping[str, Any]) -> list[dict[str, int | float]]:
    """What `scripts/refine.py` noted in a bundle's `export.json`: its options, once for every run of it."""
    noted = record.get("refined")
    later = {"cross_entropy": 0.0, "draws": 1, "learners": 0}  # unknown to the first passes
    passes = [later | p for p in noted if isinstance(p, dict)] if isinstance(noted, list) else []
    return [
        {key: type(least)(p[key]) for key, least in REFINED.items()}
        for p in passes
        if all(type(p.get(key)) in {int, type(least)} and least <= p[key] < math.inf for key, least in REFINED.items())
        and p["draws"] <= 2
    ]


def changes(m: Manifest, record: Mapping[str, Any]) -> list[str]:
    """The lines that changed a bundle, in their order.

    Args:
        m: of the bundle, which a run made.
        record: what its `export.json` holds.
    """
    name, deployment = m.distill_config["name"], m.distill_config.get("deployment")
    bundle = shlex.quote(f"runs/{name}/{name}.dim")
    before = isinstance(deployment, Mapping) and bool(deployment.get("refine_steps"))
    lines = []
    for number, options in enumerate(passes_of(record), start=int(before)):
        words = [f"--{key.replace('_', '-')} {value}" for key, value in options.items()]
        line = ["python scripts/refine.py", bundle, "--data", shlex.quote(m.source.name), *words]
        lines.append(" ".join([*line, *(["--again"] if number else [])]))
    after = record.get(MIRRORED_AFTER)
    if type(after) is int:
        lines.insert(max(0, after), f"python scripts/mirror.py {bundle}")
    return lines
