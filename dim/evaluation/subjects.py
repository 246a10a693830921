"""The bundles under evaluation, and the dataset that belongs to one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dim.data.image_set import ImageSet
from dim.data.load import load_data, name_source
from dim.data.options import DataOptions, read_options
from dim.data.readers.known import KNOWN
from dim.runs.record import select_fields_that_affect_weights
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.bundle_format.manifest import Manifest
from dim.runtime.bundle_format.names import TEACHER_ONNX
from dim.runtime.errors import BadValueError, BundleError
from dim.runtime.messages import say_to_log
from dim.runtime.progress.show import ProgressOption

GENERATED = "generated"
"""What tables call a bundle that was given no name."""
Bundles = str | Path | Mapping[str, str | Path | Sequence[str | Path]]
"""A bundle's folder, or folders by the names that tables show; the controls take as many bytes as the first one.
Several folders of one name are generators of one recipe, which share a row."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A bundle under evaluation."""

    name: str
    """What tables call it."""
    folder: Path
    manifest: Manifest

    @property
    def teacher_sha256(self) -> str:
        """SHA-256 of the teacher.

        Raises:
            BundleError: the bundle has none.
        """
        if TEACHER_ONNX not in self.manifest.files:
            raise BundleError(
                f"The bundle {self.folder} has no {TEACHER_ONNX}, so there are no soft labels to train with."
            )
        return self.manifest.files[TEACHER_ONNX].sha256


def read_subjects(bundles: Bundles, data: ImageSet) -> list[Subject]:
    """Read the manifests of bundles.

    Raises:
        BadValueError: one is not of this dataset, two draw the same images, or two of one name have other recipes.
        BundleError: one is missing or altered.
    """
    named = bundles if isinstance(bundles, Mapping) else {GENERATED: bundles}
    subjects: list[Subject] = []
    for name, folder in _list_folders(named):
        manifest = load_manifest(folder)
        check_fits(folder, manifest, data)
        for other in subjects:
            if other.manifest.content_id == manifest.content_id:
                raise BadValueError(
                    f"The bundles {other.folder} and {folder} draw the same images (content id "
                    f"{manifest.content_id[:12]}): compare with another one."
                )
            if other.name == name:
                _check_same_recipe(other, folder, manifest)
        subjects.append(Subject(name=name, folder=folder, manifest=manifest))
    return subjects


def _list_folders(named: Mapping[str, str | Path | Sequence[str | Path]]) -> list[tuple[str, Path]]:
    return [
        (name, Path(folder))
        for name, folders in named.items()
        for folder in ([folders] if isinstance(folders, str | Path) else folders)
    ]


def _check_same_recipe(first: Subject, folder: Path, manifest: Manifest) -> None:
    """Refuse a generator that was distilled otherwise than another one by more than its seed and name."""
    ours, theirs = (select_fields_that_affect_weights(m.distill_config) for m in (first.manifest, manifest))
    keys = (ours.keys() | theirs.keys()) - {"seed", "name"}
    differing = sorted(key for key in keys if ours.get(key) != theirs.get(key))
    if differing:
        raise BadValueError(
            f"The bundles {first.folder} and {folder} were distilled by different recipes "
            f"({', '.join(differing[:3])}), so they share no row: compare them with --compare."
        )


def check_fits(folder: Path, manifest: Manifest, data: ImageSet) -> None:
    """Refuse a bundle whose classes or image shape are not the dataset's.

    Raises:
        BadValueError: they differ.
    """
    if manifest.classes != data.classes:
        raise BadValueError(
            f"The bundle {folder} draws the classes {_list_first(manifest.classes)}, but {data.name} has "
            f"{_list_first(data.classes)}: evaluate it on the dataset it was distilled from, {manifest.source.name}."
        )
    found, expected = (manifest.height, manifest.width, manifest.channels), data.train_images.shape[1:]
    if found != expected:
        shapes = [" x ".join(map(str, shape)) for shape in (found, expected)]
        raise BadValueError(
            f"The bundle {folder} draws images of {shapes[0]} but those of {data.name} are {shapes[1]}: "
            f"load the dataset with size={manifest.height} and channels={manifest.channels}."
        )


def _list_first(classes: tuple[str, ...]) -> str:
    more = f" and {len(classes) - 3} more" if len(classes) > 3 else ""
    return ", ".join(repr(name) for name in classes[:3]) + more


def describe_other_origin(subject: Subject, data: ImageSet) -> str:
    """Return a sentence if a bundle was distilled from other data than this, else nothing."""
    found = _recorded_data(subject.manifest).get("fingerprint")
    if found in (None, data.fingerprint()):
        return ""
    return (
        f"{subject.folder} was distilled from other data than this {data.name} (SHA-256 {str(found)[:12]}, here "
        f"{data.fingerprint()[:12]}), so these test images may be among those it was distilled from."
    )


def _recorded_data(manifest: Manifest) -> Mapping[str, Any]:
    """What the run recorded of its dataset; empty where a bundle does not say."""
    recorded = manifest.distill_config.get("data")
    return recorded if isinstance(recorded, Mapping) else {}


def load_source_data(
    manifest: Manifest,
    source: Any = None,
    *,
    asked: Mapping[str, Any] | None = None,
    data_dir: Path | None = None,
    say: Callable[[str], None] = say_to_log,
    progress: ProgressOption = None,
) -> ImageSet:
    """Load the dataset that a bundle was distilled from, with its size, its channels and its test split.

    A source of the same name is read as it was when the bundle was distilled.

    Args:
        manifest: of the bundle.
        source: as in `load_data`; None for the name that the bundle gives, which is enough for well-known datasets.
        asked: fields of `DataOptions` that are to be read otherwise.
        data_dir, say, progress: as in `load_data`.

    Raises:
        BadValueError: no source is given and the bundle's is a folder or file, whose place no bundle knows.
        DataError: as `load_data`.
    """
    if not source and manifest.source.name not in KNOWN:
        raise BadValueError(
            f"The bundle was distilled from a folder or file called '{manifest.source.name}', and does not know where "
            "it lies: name it with --data."
        )
    source = source or manifest.source.name
    recorded: dict[str, Any] = {}
    if name_source(source) == manifest.source.name:
        recorded = _find_reading(manifest)
        again = {name: value for name, value in recorded.items() if name not in (asked or {})}
        if again:
            say(f"{manifest.source.name} is read as it was distilled: {_describe_options(again)}.")
    options = {
        **recorded,
        **(asked or {}),
        "size": manifest.height,
        "channels": manifest.channels,
        "seed": find_split_seed(manifest),
    }
    return load_data(
        source, DataOptions(**options), data_dir=data_dir, say=say, progress=progress, asked=tuple(asked or ())
    )


def _find_reading(manifest: Manifest) -> dict[str, Any]:
    """Return the options that a bundle's run recorded, but for those that the manifest says elsewhere."""
    reading = _recorded_data(manifest).get("reading")
    if not isinstance(reading, Mapping):
        return {}
    known = read_options(reading).changes()
    return {name: value for name, value in known.items() if name not in ("size", "channels", "seed")}


def _describe_options(options: Mapping[str, Any]) -> str:
    flags = {name: "--" + name.replace("_", "-") for name in options}
    return ", ".join(flags[name] if value is True else f"{flags[name]} {value}" for name, value in options.items())


def find_split_seed(manifest: Manifest) -> int:
    """Return what the test split of a source without one was cut with; another seed would leak training images."""
    recorded = _recorded_data(manifest).get("split_seed")
    return int(manifest.distill_config.get("seed", 0) if recorded is None else recorded)
