"""Cells of the evaluation: each is one trained student and one JSON file, written atomically."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dim.evaluation.archive import Archive
from dim.evaluation.files import write_json
from dim.runtime.errors import BundleError, DataError, OutputError
from dim.runtime.storage import strict_json
from dim.runtime.storage.below import read_file
from dim.runtime.storage.records import FieldError, from_plain, parse_versioned, refuse_newer, to_plain
from dim.students.recipes import Recipe

FORMAT_VERSION = 1
MAX_RESULT_BYTES = 2**16
PROTOCOL = (
    "test split once, after the last step, eval() mode, fp32; images uint8, normalised by the real training split"
)
LATER_FIELDS: dict[str, Any] = {"archive": None, "real_percent": 0}
"""Fields that came later, and the values with which a cell is what it was before."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Everything that decides what one student is trained on, how, and what it is tested on."""

    data: str
    """The dataset's name."""
    fingerprint: str
    """SHA-256 of the dataset."""
    source: str
    """`bundle`: images of a bundle; `real`: real images, as many per class (`fixed`) or as many steps (`stream`);
    `archive`: a compressed archive of real images of as many bytes as the bundle's generator; `few`: a part of the real
    images; `mixed`: that part and images of a bundle, half of every batch each; `whole`: the whole training split."""
    subject: str
    """What tables call the source; not part of the identity."""
    content_id: str = ""
    """The bundle's content id; empty for real images."""
    mode: str
    """`fixed`: one set of `ipc` images per class; `stream`: fresh ones in every epoch; `whole`: all training images."""
    ipc: int
    """Images per class and epoch; 0 for `whole`."""
    images_per_class: int = 0
    """Most images per class that the source may use; 0 for all."""
    archive: Archive | None = None
    """What an archive holds, and how it is coded."""
    real_percent: float = 0
    """Part of every class's real images that `few` and `mixed` show, in percent."""
    arch: str
    width: int | None
    """Width of the student; None for the published one."""
    seed: int
    """Of the student, of the order of its images, and of the images drawn where they depend on a seed: the fixed
    latents of a bundle do not, so `fixed` students of such a bundle see one set."""
    epochs: int
    labels: str = "hard"
    """`hard`, or `soft` for a teacher's logits."""
    teacher: str = ""
    """SHA-256 of the teacher; empty for hard labels."""
    recipe: Recipe
    precision: str
    """Of the student: `fp32` or `bf16`."""
    engine: str = ""
    """Name of the engine that was asked for; empty where it was left to choose, or for real images."""
    engine_precision: str = ""
    """Precision in which the images are drawn; empty for real images."""
    generator: str = ""
    """SHA-256 of the ONNX file of that precision; empty for real images. An exporter that writes another int8 file
    leaves the content id, and the results of the old file, as they were."""

    def identity(self, *, with_seed: bool = True) -> str:
        """Return a digest of all that decides the result; without the seed, of what one row of a table stands for."""
        described = asdict(self)
        # A recipe's name changes nothing, so renaming one keeps its results.
        described["recipe"] = {key: value for key, value in described["recipe"].items() if key != "name"}
        del described["subject"]
        for name, before in LATER_FIELDS.items():
            if described[name] == before:
                del described[name]
        if not with_seed:
            del described["seed"]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def path(self, out: Path) -> Path:
        """Return the file that holds this cell's result."""
        size = f"ipc{self.ipc}-" if self.ipc else ""
        name = f"{self.source}-{self.mode}-{size}{self.arch}-{self.labels}-seed{self.seed}-{self.identity()[:12]}"
        return out / "cells" / f"{name}.json"

    def steps(self, num_classes: int, num_images: int) -> int:
        """Return the number of SGD steps; the last short batch of an epoch is a step too."""
        per_epoch = num_images if self.mode == "whole" else num_classes * self.ipc
        return self.epochs * math.ceil(per_epoch / self.recipe.batch_size)


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """A finished cell."""

    cell: Cell
    accuracy: float
    """Percent of the test split, 0 to 100."""
    diverged: bool
    """Whether the last training loss was not finite."""
    steps: int
    distinct_images: int
    """Different images that the student saw, before augmentation."""
    data_bytes: int
    """What must be kept to train this student again: raw pixels (and float16 logits) of a set, or the generator's file
    (and the teacher's)."""
    test_images: int
    seconds: float
    """Drawing, training and testing."""
    engine: str
    """What drew the images, with its version; empty for real images."""
    device: str
    machine: str
    """Processor, cores and GPU."""
    threads: int
    torch_version: str
    dim_version: str
    date: str
    """When it ended, UTC."""
    data_note: str
    """Where the dataset came from."""
    compiled: bool = False
    """Whether the student's steps were compiled, which rounds differently."""
    class_accuracies: tuple[float, ...] = ()
    """Percent of the test images of every class; empty in the files of earlier releases."""
    protocol: str = PROTOCOL

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 100:
            raise FieldError("accuracy", self.accuracy, "between 0 and 100")


def write_result(result: CellResult, out: Path) -> None:
    """Write a cell's file under its final name in one step.

    Raises:
        OutputError: the disk refused.
    """
    path = result.cell.path(out)
    write_json(path, {"format_version": FORMAT_VERSION, **to_plain(result)}, f"The result {path}")


def read_result(cell: Cell, out: Path) -> CellResult | None:
    """Return the finished result of a cell, or None where there is none, or only what a crash left.

    Raises:
        OutputError: a newer dim wrote it, and it would be replaced; or a link lies there.
    """
    path = cell.path(out)
    where = f"The result {path}"
    try:
        data = read_file(out, f"{path.parent.name}/{path.name}", MAX_RESULT_BYTES + 1)
        block = strict_json.parse(data, where, MAX_RESULT_BYTES)
        if isinstance(block, dict):
            version, maker = block.get("format_version"), block.get("dim_version")
            refuse_newer(version, where, version=FORMAT_VERSION, maker=maker, error=OutputError)
        result = parse_result(data, where)
    except (OSError, BundleError, DataError):
        return None
    return result if result.cell.identity() == cell.identity() else None


def parse_result(data: bytes, where: str) -> CellResult:
    """Read a result from the bytes of its file, which sentences call `where`.

    Raises:
        DataError: it is not one, or of another format.
    """
    how: Any = {"error": DataError, "advice": "remove it, and it is measured again."}
    block = parse_versioned(data, where, version=FORMAT_VERSION, max_bytes=MAX_RESULT_BYTES, **how)
    return from_plain(CellResult, block, where, defaults=True, **how)
