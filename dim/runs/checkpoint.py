"""Checkpoints of a distillation: one safetensors file and one JSON file that names it, each renamed into place.

A kill at any moment leaves the newest complete pair; no pickle is read or written.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dim.runtime.errors import BundleError, RunError
from dim.runtime.storage import strict_json
from dim.runtime.storage.atomic import replace_file
from dim.runtime.storage.records import FieldError, from_plain, refuse_newer
from dim.version import __version__

FORMAT_VERSION = 1
"""Of a checkpoint's JSON file and the names of its tensors."""

_MAX_RECORD_BYTES = 64 * 2**10

KEPT_CHECKPOINTS = 2
"""Checkpoints kept, newest first. Beside them stay the end of stage 1, from which other runs may begin, and, where both
are suspect, the last good one."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name, flush it to the disk, and rename it to `path`.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    try:
        replace_file(path, content)
    except OSError as error:
        raise RunError(f"Cannot write {path}: {error.strerror}. Nothing already written was changed.") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    write_atomically(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> bytes:
    """Write named tensors as safetensors with their own hash in the metadata, atomically; returns the bytes."""
    # Always NCHW-contiguous: safetensors stores no memory layout.
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    table, data = _parts(save(plain))
    header = json.dumps({"__metadata__": {"sha256": _digest(table, data)}, **table}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    content = b"".join((len(header).to_bytes(8, "little"), header, data))
    write_atomically(path, content)
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The inverse of `write_tensors`; a file without a hash is not checked.

    Raises:
        RunError: missing, damaged or altered.
    """
    try:
        content = path.read_bytes()
        tensors = load(content)
        table, data = _parts(content)
        recorded = table.pop("__metadata__", {}).get("sha256")
        if recorded not in (None, _digest(table, data)):
            raise RunError(f"{path} was altered: its tensors do not match the hash in it; restore it or distil again.")
        return tensors
    except FileNotFoundError:
        raise RunError(f"{path} is missing: the run is incomplete.") from None
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"{path} cannot be read as safetensors ({error}).") from None


def _parts(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """The table of a safetensors file, and its data."""
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), memoryview(content)[start:]


def _digest(table: Mapping[str, Any], data: memoryview) -> str:
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()


def optimiser_tensors(prefix: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors; learning rates and the like come from the configuration."""
    states = optimiser.state_dict()["state"]
    return {f"{prefix}.{i}.{key}": torch.as_tensor(v) for i, state in states.items() for key, v in state.items()}


def load_optimiser(prefix: str, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix + "."):
            index, key = name[len(prefix) + 1 :].split(".", 1)
            states.setdefault(int(index), {})[key] = value
    content = optimiser.state_dict()
    content["state"] = states
    optimiser.load_state_dict(content)
    # Fused optimisers walk through memory: a moment that lies otherwise than its parameter (channels_last) is permuted.
    for parameter, state in optimiser.state.items():
        for key, value in state.items():
            if value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter).copy_(value)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a resumed run starts from."""

    stage: str
    step: int
    """Steps of the stage that are done."""
    metrics_bytes: int
    """Length of `metrics.jsonl` when the checkpoint was made; what follows is from lost steps."""
    quiet_lines: int
    """Log lines in a row, up to this step, by which the discriminator seems to have won."""
    suspect: bool
    """See `CheckpointFolder.save`."""
    config_sha256: str
    """Of the configuration and the data that it was made from."""
    tensors: dict[str, Tensor]


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: made if missing.
        config_sha256: of the configuration and the data; a checkpoint of another is refused.
    """

    def __init__(self, folder: Path, config_sha256: str) -> None:
        self.folder, self.config_sha256 = folder, config_sha256

    def save(
        self,
        stage: str,
        step: int,
        tensors: Mapping[str, Tensor],
        metrics_bytes: int,
        *,
        quiet_lines: int = 0,
        suspect: bool = False,
    ) -> Path:
        """Write a checkpoint and delete old ones.

        Args:
            stage: `stage1` or `stage2`.
            step: steps of the stage that are done.
            tensors: all that a resumed run needs.
            metrics_bytes: length of `metrics.jsonl`.
            quiet_lines: see `Checkpoint`.
            suspect: the discriminator seems to have won, so this one must not push out the last good one.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{stage}-{step:08d}.safetensors"
        content = write_tensors(path, tensors)
        record = {
            "format_version": FORMAT_VERSION,
            "dim_version": __version__,
            "file": path.name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "stage": stage,
            "step": step,
            "metrics_bytes": metrics_bytes,
            "quiet_lines": quiet_lines,
            "suspect": suspect,
            "config_sha256": self.config_sha256,
        }
        write_json(path.with_suffix(".json"), record)
        self.prune()
        return path

    def prune(self) -> None:
        """Delete all but the newest `KEPT_CHECKPOINTS`, the last good one and the end of stage 1, and remains of
        others."""
        records = self._records()
        good = next(filter(_is_good, records), None)
        end_of_stage1 = next((record for record in records if record.name.startswith("stage1-")), None)
        for old in records[KEPT_CHECKPOINTS:]:
            if old not in (good, end_of_stage1):
                old.unlink(missing_ok=True)
        self._sweep()

    def forget_suspects(self) -> None:
        """Delete every checkpoint made since the discriminator seems to have won."""
        for record in self._records():
            if not _is_good(record):
                record.unlink(missing_ok=True)
        self._sweep()

    def newest_good(self) -> tuple[str, int] | None:
        """Stage and step of the newest checkpoint that is not suspect, or None."""
        record = next((_read_record(path) for path in self._records() if _is_good(path)), None)
        return (record.stage, record.step) if record else None

    def _sweep(self) -> None:
        for old in self.folder.glob("stage*.safetensors"):
            if not old.with_suffix(".json").exists():
                old.unlink(missing_ok=True)

    def _records(self) -> list[Path]:
        return sorted(self.folder.glob("stage*.json"), reverse=True)

    @property
    def is_empty(self) -> bool:
        """Whether there is no checkpoint at all."""
        return not self._records()

    def newest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None.

        Raises:
            RunError: it was made from another configuration or other data, or by a newer dim.
        """
        for record_path in self._records():
            try:
                checkpoint = read_checkpoint(record_path)
            except DAMAGED_ERRORS as error:
                say(f"Checkpoint {record_path.name} is damaged ({error}); trying the one before.")
                continue
            if checkpoint.config_sha256 != self.config_sha256:
                raise RunError(
                    f"The checkpoints in {self.folder} come from another configuration or other data: "
                    "resume with the options of the first call, or choose another --out."
                )
            return checkpoint
        return None


DAMAGED_ERRORS = (OSError, ValueError, KeyError, TypeError, SafetensorError)
"""What `read_checkpoint` raises for a checkpoint that is not whole."""


def read_checkpoint(record_path: Path) -> Checkpoint:
    """Read the checkpoint that a JSON file names.

    Raises:
        one of `DAMAGED_ERRORS`: it is not whole.
        RunError: a newer dim wrote it.
    """
    record = _read_record_file(record_path, refuse_newer_ones=True)
    content = _read_plain_file(record_path.with_name(Path(record.file).name))
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise ValueError("its bytes have changed")
    return Checkpoint(
        stage=record.stage,
        step=record.step,
        metrics_bytes=record.metrics_bytes,
        quiet_lines=record.quiet_lines,
        suspect=record.suspect,
        config_sha256=record.config_sha256,
        tensors=load(content),
    )


@dataclass(frozen=True, kw_only=True)
class _RecordFile:
    """What the JSON file of a checkpoint says."""

    format_version: int
    dim_version: str
    file: str
    sha256: str
    stage: str
    step: int
    metrics_bytes: int
    quiet_lines: int
    suspect: bool
    config_sha256: str

    def __post_init__(self) -> None:
        for field in ("step", "metrics_bytes", "quiet_lines"):
            if getattr(self, field) < 0:
                raise FieldError(field, getattr(self, field), "0 or more")


def _read_record_file(path: Path, refuse_newer_ones: bool) -> _RecordFile:
    """Read the JSON file of a checkpoint; OSError or ValueError where it is damaged."""
    content = _read_plain_file(path, _MAX_RECORD_BYTES + 1)
    try:
        block = strict_json.parse(content, path.name, _MAX_RECORD_BYTES)
    except BundleError as error:
        raise ValueError(str(error).rstrip(".")) from None
    if refuse_newer_ones and isinstance(block, dict):
        found, where = block.get("format_version"), f"The checkpoint {path}"
        refuse_newer(found, where, version=FORMAT_VERSION, maker=block.get("dim_version"), error=RunError)
    try:
        return from_plain(_RecordFile, block, path.name)
    except BundleError as error:
        raise ValueError(str(error).rstrip(".")) from None


def _read_plain_file(path: Path, max_bytes: int = -1) -> bytes:
    """Read a file that is neither a link nor a pipe, which would be waited for without end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{path.name} is not a plain file")
        return file.read(max_bytes)


def _read_record(path: Path) -> _RecordFile | None:
    """What a checkpoint's JSON file says; None if it is damaged."""
    try:
        return _read_record_file(path, refuse_newer_ones=False)
    except (OSError, ValueError):
        return None


def _is_good(path: Path) -> bool:
    """Whether the checkpoint is whole, as far as its JSON file tells, and not suspect."""
    record = _read_record(path)
    return record is not None and not record.suspect
