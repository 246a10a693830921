"""Checkpoints of a distillation: one safetensors file and one JSON file that names it, each renamed into place.

A kill at any moment leaves the newest complete pair; no pickle is read or written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from dim.runs.files import list_names, make_folder, remove_file, write_json
from dim.runs.tensors import select_prefix, write_tensors
from dim.runtime.errors import BundleError, OutputError, RunError
from dim.runtime.storage import strict_json
from dim.runtime.storage.below import read_file
from dim.runtime.storage.records import FieldError, from_plain, refuse_newer, to_plain
from dim.version import __version__

FOLDER = "checkpoints"
"""Of a run."""
FORMAT_VERSION = 1
"""Of a checkpoint's JSON file and the names of its tensors."""

_MAX_RECORD_BYTES = 64 * 2**10

KEPT_CHECKPOINTS = 2
"""Checkpoints kept, newest first. Beside them stay the end of stage 1, from which other runs may begin, and, where both
are suspect, the last good one."""


def optimiser_tensors(prefix: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors; learning rates and the like come from the configuration."""
    states = optimiser.state_dict()["state"]
    return {f"{prefix}.{i}.{key}": torch.as_tensor(v) for i, state in states.items() for key, v in state.items()}


def load_optimiser(prefix: str, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`; raises ValueError where a state is not that of its parameter."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in select_prefix(tensors, f"{prefix}.").items():
        index, key = name.split(".", 1)
        states.setdefault(int(index), {})[key] = value
    content = optimiser.state_dict()
    content["state"] = states
    optimiser.load_state_dict(content)
    # Fused optimisers walk through memory: a moment that lies otherwise than its parameter (channels_last) is permuted.
    names = {frozenset(state) for state in optimiser.state.values()}
    if len(names) > 1:
        raise ValueError("its optimiser lacks a state of some parameters")
    for parameter, state in optimiser.state.items():
        for key, value in state.items():
            if value.shape not in (parameter.shape, torch.Size([])):
                raise ValueError(f"{key} of its optimiser has the shape {tuple(value.shape)}")
            if value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter).copy_(value)


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """What the JSON file of a checkpoint says."""

    format_version: int = FORMAT_VERSION
    dim_version: str = __version__
    file: str
    """Name of the file with the tensors."""
    sha256: str
    """Of that file."""
    stage: str
    step: int
    """Steps of the stage that are done."""
    metrics_bytes: int
    """Length of `metrics.jsonl` when the checkpoint was made; what follows is from lost steps."""
    quiet_lines: int
    """Log lines in a row, up to this step, by which the discriminator seems to have won."""
    suspect: bool
    """Whether the discriminator seems to have won; such a checkpoint must not push out the last good one."""
    config_sha256: str
    """Of the configuration and the data that it was made from."""

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise FieldError("format_version", self.format_version, str(FORMAT_VERSION))
        for field in ("step", "metrics_bytes", "quiet_lines"):
            if getattr(self, field) < 0:
                raise FieldError(field, getattr(self, field), "0 or more")


@dataclass(frozen=True, kw_only=True)
class Checkpoint(CheckpointRecord):
    """What a resumed run starts from."""

    tensors: dict[str, Tensor]


class CheckpointFolder:
    """The checkpoints of one run, in its folder `checkpoints`; those of another configuration or data are refused."""

    def __init__(self, run_dir: Path, config_sha256: str) -> None:
        self.run_dir, self.config_sha256 = run_dir, config_sha256

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
        """Write a checkpoint of these fields and delete old ones; returns the file with the tensors."""
        make_folder(self.run_dir, FOLDER)
        name = name_checkpoint(stage, step)
        content = write_tensors(self.run_dir, _name_tensors(name), tensors)
        record = CheckpointRecord(
            file=Path(_name_tensors(name)).name,
            sha256=hashlib.sha256(content).hexdigest(),
            stage=stage,
            step=step,
            metrics_bytes=metrics_bytes,
            quiet_lines=quiet_lines,
            suspect=suspect,
            config_sha256=self.config_sha256,
        )
        write_json(self.run_dir, name, to_plain(record))
        self.prune()
        return self.run_dir / _name_tensors(name)

    def prune(self) -> None:
        """Delete all but the newest `KEPT_CHECKPOINTS`, the last good one and the end of stage 1, and remains of
        others."""
        records = self._records()
        good = next(filter(self._is_good, records), None)
        end_of_stage1 = next((record for record in records if record.startswith(f"{FOLDER}/stage1-")), None)
        for old in records[KEPT_CHECKPOINTS:]:
            if old not in (good, end_of_stage1):
                remove_file(self.run_dir, old)
        self._sweep()

    def forget_suspects(self) -> None:
        """Delete every checkpoint made since the discriminator seems to have won."""
        for record in self._records():
            if not self._is_good(record):
                remove_file(self.run_dir, record)
        self._sweep()

    def newest_good(self) -> tuple[str, int] | None:
        """Stage and step of the newest checkpoint that is not suspect, or None."""
        good = next(filter(self._is_good, self._records()), None)
        if good is None:
            return None
        record = _read_record(self.run_dir, good)
        return record.stage, record.step

    def _sweep(self) -> None:
        kept = {_name_tensors(record) for record in self._records()}
        for old in _list_stage_files(self.run_dir, ".safetensors"):
            if old not in kept:
                remove_file(self.run_dir, old)

    def _records(self) -> list[str]:
        return list_checkpoints(self.run_dir)[::-1]

    def _is_good(self, name: str) -> bool:
        """Whether the checkpoint is whole, as far as its JSON file tells, and not suspect."""
        try:
            return not _read_record(self.run_dir, name).suspect
        except (OSError, OutputError, ValueError):
            return False

    @property
    def is_empty(self) -> bool:
        """Whether there is no checkpoint at all."""
        return not self._records()

    def newest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None.

        Raises:
            RunError: it was made from another configuration or other data, or by a newer dim.
        """
        for name in self._records():
            try:
                checkpoint = read_checkpoint(self.run_dir, name)
            except DAMAGED_ERRORS as error:
                say(f"Checkpoint {Path(name).name} is damaged ({str(error).rstrip('.')}); trying the one before.")
                continue
            if checkpoint.config_sha256 != self.config_sha256:
                raise RunError(
                    f"The checkpoints in {self.run_dir / FOLDER} come from another configuration or other data: "
                    "resume with the options of the first call, or choose another --out."
                )
            return checkpoint
        return None


DAMAGED_ERRORS = (OSError, OutputError, ValueError, KeyError, TypeError, SafetensorError)
"""What `read_checkpoint` raises for a checkpoint that is not whole."""


def name_checkpoint(stage: str, step: int) -> str:
    """Name the JSON file of a checkpoint within its run."""
    return f"{FOLDER}/{stage}-{step:08d}.json"


def list_checkpoints(run_dir: Path) -> list[str]:
    """List the JSON files of a run's checkpoints within it, the newest last."""
    return _list_stage_files(run_dir, ".json")


def _list_stage_files(run_dir: Path, suffix: str) -> list[str]:
    names = list_names(run_dir, FOLDER)
    return [f"{FOLDER}/{name}" for name in names if name.startswith("stage") and name.endswith(suffix)]


def _name_tensors(record: str) -> str:
    return record.removesuffix(".json") + ".safetensors"


def read_checkpoint(run_dir: Path, name: str) -> Checkpoint:
    """Read the checkpoint that a JSON file of a run names.

    Raises:
        one of `DAMAGED_ERRORS`: it is not whole.
        RunError: a newer dim wrote it.
    """
    record = _read_record(run_dir, name, refuse_newer_ones=True)
    if (name_checkpoint(record.stage, record.step), record.file) != (name, Path(_name_tensors(name)).name):
        raise ValueError("it is that of another step")
    content = read_file(run_dir, _name_tensors(name))
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise ValueError("its bytes have changed")
    return Checkpoint(**vars(record), tensors=load(content))


def _read_record(run_dir: Path, name: str, *, refuse_newer_ones: bool = False) -> CheckpointRecord:
    """Read the JSON file of a checkpoint; OSError, OutputError or ValueError where it is damaged."""
    content, path = read_file(run_dir, name, _MAX_RECORD_BYTES + 1), run_dir / name
    try:
        block = strict_json.parse(content, path.name, _MAX_RECORD_BYTES)
        if refuse_newer_ones and isinstance(block, dict):
            found, where = block.get("format_version"), f"The checkpoint {path}"
            refuse_newer(found, where, version=FORMAT_VERSION, maker=block.get("dim_version"), error=RunError)
        return from_plain(CheckpointRecord, block, path.name)
    except BundleError as error:
        raise ValueError(str(error).rstrip(".")) from None
