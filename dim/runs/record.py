"""The inputs of a run, configuration and data, as objects and as the run's `config.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from dim.config import DistillConfig, GeneratorConfig
from dim.runs.files import read_file, write_json, write_resume_command
from dim.runtime.errors import DimError, RunError
from dim.runtime.storage.records import from_plain, parse_versioned, to_plain
from dim.version import __version__

CONFIG_FILE, SOURCE_FILE = "config.json", "source.json"
FORMAT_VERSION = 1
"""Version of `config.json`."""
MAX_CONFIG_BYTES = 8 * 2**20
"""A larger `config.json` is refused."""

Block = TypeVar("Block", bound=DistillConfig | GeneratorConfig)

FIELDS_WITHOUT_EFFECT_ON_WEIGHTS = ("dim_version", "checkpoint_steps", "grid_steps", "log_steps", "compile", "graphs")
"""Fields of `config.json` that a resumed run may change. Compiled code rounds differently, as another device or number
of threads does; a CUDA graph replays what it recorded."""
DATA_FIELDS_WITHOUT_EFFECT_ON_WEIGHTS = ("note", "licence", "split_seed", "reading")
"""The same of its block `data`, whose fingerprint covers the images of the split."""


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """What networks must know of the images that they draw or see."""

    num_classes: int
    """K."""
    image_px: int
    """Side of the square images in pixels, 8 to 128."""
    channels: int
    """1 for grey, 3 for colour."""
    mean: tuple[float, ...]
    """Mean of every channel over the training images, pixels scaled to [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation of every channel, pixels scaled to [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The dataset of a run, without its images."""

    name: str
    """As `load_data` knows it, or a folder's name."""
    classes: tuple[str, ...]
    """Class names in the order of their labels."""
    class_counts: tuple[int, ...]
    """Training images of every class."""
    mean: tuple[float, ...]
    """See `ImageSpec`."""
    std: tuple[float, ...]
    """See `ImageSpec`."""
    image_px: int
    """Side of the square images in pixels."""
    channels: int
    """1 for grey, 3 for colour."""
    licence: str
    """Of the dataset."""
    note: str
    """How it was read, for people."""
    fingerprint: str
    """SHA-256 over all images and labels."""
    split_seed: int | None = None
    """Seed that cut the test split; None where the dataset has one of its own."""
    reading: Mapping[str, str | int | bool] = field(default_factory=dict)
    """Options of `dim.data.options.DataOptions` that it was read with, where they are not the usual ones."""

    @property
    def images(self) -> ImageSpec:
        """Number of classes, size and statistics of the images."""
        return ImageSpec(
            num_classes=len(self.classes),
            image_px=self.image_px,
            channels=self.channels,
            mean=self.mean,
            std=self.std,
        )


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Configuration and data of a run: the content of its `config.json`."""

    config: DistillConfig
    """All settings."""
    data: DataRecord
    """The dataset."""
    dim_version: str = __version__
    """Version of dim that began the run."""

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`: the configuration, with the size of the images in its block `generator`."""
        values, spec = to_plain(self.config), self.data.images
        values["generator"] |= {"num_classes": spec.num_classes, "image_px": spec.image_px, "channels": spec.channels}
        data = to_plain(self.data)
        if not self.data.reading:
            del data["reading"]
        # As in runs from before there were these, so that they can still be resumed.
        if not self.config.filter.candidates:
            del values["filter"]
        if not self.config.matching.cross_entropy:
            del values["matching"]["cross_entropy"]
        if self.config.discriminator.patch_px == 1:
            del values["discriminator"]["patch_px"]
        values |= {"format_version": FORMAT_VERSION, "dim_version": self.dim_version, "data": data}
        return values

    def fields_that_affect_weights(self) -> dict[str, Any]:
        """The record without versions, notes, and how often the run reports: what decides its result."""
        return select_fields_that_affect_weights(self.to_dict())

    def fingerprint(self) -> str:
        """SHA-256 of `fields_that_affect_weights`, in hexadecimal; checkpoints carry it."""
        return hashlib.sha256(json.dumps(self.fields_that_affect_weights(), sort_keys=True).encode()).hexdigest()


def select_fields_that_affect_weights(values: Mapping[str, Any]) -> dict[str, Any]:
    """Select what decides the result of a run from a `config.json` or a manifest's `distill_config`."""
    chosen = {k: v for k, v in values.items() if k not in FIELDS_WITHOUT_EFFECT_ON_WEIGHTS}
    if isinstance(data := values.get("data"), Mapping):
        chosen["data"] = {k: v for k, v in data.items() if k not in DATA_FIELDS_WITHOUT_EFFECT_ON_WEIGHTS}
    return chosen


@dataclass(frozen=True, kw_only=True)
class _GeneratorBlock(GeneratorConfig):
    num_classes: int
    image_px: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class _ConfigFile(DistillConfig):
    """`config.json` as it is written, without its `format_version`."""

    generator: _GeneratorBlock
    data: DataRecord
    dim_version: str


@dataclass(frozen=True, kw_only=True)
class DataPlaces:
    """Where the data of a run lie, from which it goes on: the content of its `source.json`.

    No bundle has it, because its paths are those of one machine.
    """

    places: tuple[str, ...]
    """As in `dim.data.image_set.ImageSet`."""
    data_dir: str = ""
    """As there."""


def keep_data_places(run_dir: Path, places: DataPlaces) -> None:
    """Write `source.json`, where it is not that already and the data were not in memory."""
    if places.places and read_data_places(run_dir) != places:
        write_json(run_dir, SOURCE_FILE, {"format_version": FORMAT_VERSION, **to_plain(places)})


def read_data_places(run_dir: Path) -> DataPlaces | None:
    """Read `source.json`; None where it is missing, as in runs of data in memory, or damaged."""
    try:
        content = read_file(run_dir, SOURCE_FILE, MAX_CONFIG_BYTES + 1)
        block = parse_versioned(content, SOURCE_FILE, version=FORMAT_VERSION, max_bytes=MAX_CONFIG_BYTES)
        return from_plain(DataPlaces, block, SOURCE_FILE)
    except (OSError, DimError):
        return None


def refuse_second_run(run_dir: Path) -> None:
    """Refuse a folder that a run lies in already, where none is to be resumed.

    Raises:
        RunError: it does.
    """
    if (run_dir / CONFIG_FILE).exists():
        raise RunError(
            f"{run_dir} already holds a run: choose another --out, or go on with  {write_resume_command(run_dir)}"
        )


def read_run_record(run_dir: Path) -> RunRecord:
    """Read the `config.json` of a run directory; fields that are missing have their defaults.

    Raises:
        RunError: it is missing, damaged, was altered, or is of a version of dim that knows other fields.
    """
    path = run_dir / CONFIG_FILE
    try:
        content = read_file(run_dir, CONFIG_FILE, MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from None
    how: Any = {"error": RunError, "advice": "it was not written by this dim distill, or was altered"}
    block = parse_versioned(content, str(path), version=FORMAT_VERSION, max_bytes=MAX_CONFIG_BYTES, **how)
    file = from_plain(_ConfigFile, block, str(path), defaults=True, **how)
    drawn, spec = file.generator, file.data.images
    if (drawn.num_classes, drawn.image_px, drawn.channels) != (spec.num_classes, spec.image_px, spec.channels):
        raise RunError(f"{path} contradicts itself: its generator and its data differ in classes or image size.")
    config = _narrow(DistillConfig, file, generator=_narrow(GeneratorConfig, drawn))
    return RunRecord(config=config, data=file.data, dim_version=file.dim_version)


def _narrow(kind: type[Block], record: Block, **changes: Any) -> Block:
    """A dataclass from the fields of one that inherits from it."""
    return kind(**{field.name: getattr(record, field.name) for field in fields(kind)} | changes)
