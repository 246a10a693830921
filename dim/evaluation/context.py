"""Shared by all cells of an evaluation: the dataset on the device, open bundles and teachers."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dim.data.image_set import ImageSet
from dim.evaluation.archive import Archive, decode_archive, pack_archive
from dim.evaluation.files import write_file
from dim.evaluation.images import Score
from dim.evaluation.protocol import Execution
from dim.execution.device_data import DeviceImages
from dim.runtime.bundle import Bundle
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.bundle_format.names import TEACHER_ONNX
from dim.runtime.cores import processor_name, usable_cores
from dim.runtime.errors import DataError
from dim.runtime.sets.soft_labels import open_teacher
from dim.torch_engine.engine import TorchEngine

_TEACHER_ROWS = 512


@dataclass(kw_only=True)
class EvalContext:
    """What cells share. Pickles without what it opened."""

    data: ImageSet
    bundles: Mapping[str, Path]
    """Content id to folder."""
    device: str
    """A torch device."""
    threads: int
    """Of torch and of CPU engines, which take turns."""
    execution: Execution
    archives: Path
    """Folder of the archives of real images, which are made once."""
    compiled: bool = False
    """Whether students that gain by it are compiled."""
    kept: Path | None = None
    """Folder of streams that several students share; None where none do."""
    _opened: dict[tuple[str, str], Bundle] = field(default_factory=dict, init=False)
    _teachers: dict[str, Score] = field(default_factory=dict, init=False)
    _unpacked: dict[tuple[Archive, int], tuple[ImageSet, int]] = field(default_factory=dict, init=False)

    @cached_property
    def train_images(self) -> DeviceImages:
        """The training split, on the device where it fits into memory."""
        return DeviceImages(self.data.train_images, torch.device(self.device))

    @cached_property
    def machine(self) -> str:
        """Processor, cores and GPU."""
        return describe_machine(self.device)

    def open_bundle(self, content_id: str, precision: str) -> Bundle:
        """Return the bundle of that content id, opened once, with an engine of that precision."""
        key = (content_id, precision)
        if key not in self._opened:
            options = replace(self.execution.engine, precision=precision, threads=self.threads)
            bundle = Bundle(self.bundles[content_id], options, say=lambda sentence: None)
            if self.execution.torch_draws:
                bundle.draw_with(TorchEngine(bundle, precision, torch.device(self.device)))
            self._opened[key] = bundle
        return self._opened[key]

    def open_archive(self, archive: Archive, seed: int) -> tuple[ImageSet, int]:
        """Return the dataset with the archive's images as its training split, and the bytes of the archive's file.

        The file is made where it is missing. The last archive stays in memory.

        Raises:
            OutputError: the disk refused.
        """
        key = (archive, seed)
        if key not in self._unpacked:
            packed = read_or_pack(self.data, archive, seed, self.archives)
            images, labels = decode_archive(packed, self.data.train_images.shape[1:])
            self._unpacked = {key: (replace(self.data, train_images=images, train_labels=labels), len(packed))}
        return self._unpacked[key]

    def count_teacher_bytes(self, sha256: str) -> int:
        """Return the size of the teacher whose file has that hash; 0 for no hash."""
        files = (record for folder in self.bundles.values() for record in load_manifest(folder).files.values())
        return next((record.size_bytes for record in files if record.sha256 == sha256), 0)

    def open_teacher(self, sha256: str) -> Score:
        """Return the teacher whose file has that hash, from whichever bundle holds it.

        Its logits are rounded to float16, as in the files that `dim generate --soft-labels` writes.
        """
        if sha256 not in self._teachers:
            for folder in self.bundles.values():
                with Bundle(folder, say=lambda sentence: None) as bundle:
                    record = bundle.manifest.files.get(TEACHER_ONNX)
                    if record is not None and record.sha256 == sha256:
                        self._teachers[sha256] = _score_in_parts(open_teacher(bundle, self.threads))
                        break
        return self._teachers[sha256]

    def close(self) -> None:
        """Close the bundles and forget the teachers."""
        for bundle in self._opened.values():
            bundle.close()
        self._opened.clear()
        self._teachers.clear()
        self._unpacked.clear()

    def __getstate__(self) -> dict[str, Any]:
        shared = {field.name: getattr(self, field.name) for field in fields(self) if field.init}
        return shared | {"_opened": {}, "_teachers": {}, "_unpacked": {}}


def read_or_pack(data: ImageSet, archive: Archive, seed: int, folder: Path) -> bytes:
    """Return the bytes of an archive, from the file that an earlier student left or newly made.

    Raises:
        OutputError: the disk refused.
    """
    asked = json.dumps([data.fingerprint(), asdict(archive), seed], sort_keys=True)
    digest = hashlib.sha256(asked.encode()).hexdigest()
    path = folder / f"{archive.codec}-q{archive.quality}-{archive.images_per_class}-seed{seed}-{digest[:12]}.zip"
    try:
        packed = path.read_bytes()
        decode_archive(packed, data.train_images.shape[1:])
        return packed
    except (OSError, DataError):
        packed = pack_archive(data, archive, seed)
    write_file(path, packed, f"The archive {path}")
    return packed


def describe_machine(device: str) -> str:
    """Name the processor, how many of its cores this process may use, and the GPU where `device` is one."""
    cores = usable_cores()
    described = f"{processor_name()}, {cores} core{'s' if cores > 1 else ''}"
    return f"{described}, {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else described


def _score_in_parts(score: Callable[[NDArray[np.uint8]], NDArray[np.float16]]) -> Score:
    """Bound the memory that a teacher takes, whatever the size of the set."""

    def score_all(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = [
            score(np.ascontiguousarray(images[start : start + _TEACHER_ROWS]))
            for start in range(0, len(images), _TEACHER_ROWS)
        ]
        return np.concatenate(parts).astype(np.float32)

    return score_all
