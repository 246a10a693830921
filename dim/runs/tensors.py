"""Tensors of a run: safetensors with a hash of their own; no pickle is read or written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dim.runs.files import read_file, write_file, write_resume_command
from dim.runtime.errors import RunError


def write_tensors(run_dir: Path, name: str, tensors: Mapping[str, Tensor]) -> bytes:
    """Write named tensors as safetensors with their own hash in the metadata, atomically; returns the bytes."""
    # Always NCHW-contiguous: safetensors stores no memory layout.
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    content = save(plain, metadata={"sha256": _digest(*_parts(save(plain)))})
    write_file(run_dir, name, content)
    return content


def read_tensors(run_dir: Path, name: str) -> dict[str, Tensor]:
    """The inverse of `write_tensors`; a file without a hash is not checked.

    Raises:
        RunError: missing, damaged, altered, or a link.
    """
    path = run_dir / name
    try:
        content = read_file(run_dir, name)
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


@contextmanager
def explain_misfit(run_dir: Path, name: str) -> Iterator[None]:
    """Name a file of a run whose tensors are not those that the run needs, when they are put to use in the block.

    Raises:
        RunError: a tensor is missing, of another shape or type, or not finite.
    """
    try:
        yield
    except RunError:
        raise
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise RunError(
            f"{run_dir / name} does not fit its run ({reason}): restore it, or remove it and go on with  "
            f"{write_resume_command(run_dir)}"
        ) from None


def name_weights(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The weights and buffers of networks, each under `<name of the network>.<its own name>`."""
    return {f"{name}.{k}": v for name, network in networks.items() for k, v in network.state_dict().items()}


def load_weights(networks: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `name_weights`; raises RuntimeError where a tensor is missing or of another shape."""
    for name, network in networks.items():
        network.load_state_dict(select_prefix(tensors, f"{name}."))


def select_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError, which names it, if a tensor holds NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"the tensor {name} is not finite")


def check_rows(rows: Tensor, most: int, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor; raises ValueError unless it is finite and has at most so many rows of a shape."""
    if rows.dtype != torch.float32 or len(rows) > most or rows.shape[1:] != shape or not bool(rows.isfinite().all()):
        raise ValueError(f"{rows.dtype} {tuple(rows.shape)} is not up to {most} finite float32 rows of shape {shape}")
    return rows


def _parts(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """The table of a safetensors file, and its data."""
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), memoryview(content)[start:]


def _digest(table: Mapping[str, Any], data: memoryview) -> str:
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()
