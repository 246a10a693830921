"""The `dim distill` command that makes a run again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from shlex import quote
from types import SimpleNamespace
from typing import Any

from dim.runtime.errors import BadValueError

NATIVE_SHAPES = {
    "digits": (8, 1),
    "mnist": (28, 1),
    "fashion-mnist": (28, 1),
    "svhn": (32, 3),
    "cifar10": (32, 3),
    "cifar100": (32, 3),
}
"""Side in pixels and channels of the datasets that `dim distill` knows by name; others need `--size`, `--channels`."""
FIELDS_LEFT_OUT = ("name", "preset", "seed", "checkpoint_steps", "grid_steps", "log_steps")
"""Fields that have an option of their own, or that change nothing in the result."""


def write_distill_command(config: Mapping[str, Any]) -> str | None:
    """Write the command that makes a run again: its preset, and every field in which the run differs from that.

    Args:
        config: the content of a run's `config.json`, perhaps a stranger's.

    Returns:
        one line for a shell; None where the preset is not known, or this is no run's configuration.
    """
    try:
        return _write_command(config)
    except (BadValueError, AttributeError, KeyError, TypeError, ValueError):
        return None


def _write_command(config: Mapping[str, Any]) -> str:
    from dim.config import DistillConfig, StageConfig, to_dict
    from dim.presets import preset

    data = config["data"]
    images: Any = SimpleNamespace(
        name=data["name"],
        classes=tuple(data["classes"]),
        class_counts=tuple(data["class_counts"]),
        height=data["image_px"],
        channels=data["channels"],
    )
    words = ["dim distill", f"--data {quote(str(data['name']))}", f"--preset {config['preset']}"]
    if NATIVE_SHAPES.get(data["name"]) != (data["image_px"], data["channels"]):
        words.append(f"--size {int(data['image_px'])} --channels {int(data['channels'])}")
    if config.get("seed"):
        words.append(f"--seed {int(config['seed'])}")
    stage = StageConfig(steps=1, batch_size=4)
    defaults = DistillConfig(name="", preset="", stage1=stage, stage2=stage)
    found = _flatten(to_dict(defaults)) | _flatten(config)
    for field, value in _flatten(to_dict(preset(config["preset"], data=images))).items():
        if field not in FIELDS_LEFT_OUT and found[field] != value:
            words.append("--set " + quote(f"{field}={json.dumps(found[field])}"))
    return " ".join([*words, f"--out runs/{quote(str(config['name']))}"])


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
