"""What all cells of an evaluation share: the dataset on the device, and opened bundles and teachers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dim.data.image_set import ImageSet
from dim.evaluation.images import Score, as_nchw
from dim.evaluation.protocol import Execution
from dim.runtime.bundle import Bundle
from dim.runtime.bundle_format.names import TEACHER_ONNX
from dim.runtime.cores import processor_name, usable_cores
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
    compiled: bool = False
    """Whether students that gain by it are compiled."""
    _opened: dict[tuple[str, str], Bundle] = field(default_factory=dict, init=False)
    _teachers: dict[str, Score] = field(default_factory=dict, init=False)

    @cached_property
    def train_images(self) -> Tensor:
        """The training split on the device, uint8 `[N, C, H, W]`."""
        return as_nchw(self.data.train_images, torch.device(self.device))

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

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in ("data", "bundles", "device", "threads", "execution", "compiled")}
        return kept | {"_opened": {}, "_teachers": {}}


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
