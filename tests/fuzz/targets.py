"""What is fuzzed: every reader of files that a stranger may hand over, as a function of bytes.

A target returns whatever the bytes are, or raises what is a bug: anything but `DimError`. Where a reader accepts the
bytes, the target also checks what the reader promises about its result. `tests/fuzz/run.py` drives the targets with
atheris; `tests/robustness/test_fuzz.py` replays the corpus without it.
"""

import io
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np

# Loaded here, not when an image is first opened, so that the fuzzer sees into them.
from PIL import (  # noqa: F401
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from dim.data.files.archive import iterate_entries
from dim.data.files.tar import iterate_tar
from dim.data.image_set import Source
from dim.data.images.decode import decode_image, read_header
from dim.data.options import DataOptions
from dim.data.prepare import make_image_set
from dim.data.readers.cifar import BINARY_10, BINARY_100, PYTHON_10, read_cifar
from dim.data.readers.folders import read_class_folders
from dim.data.readers.idx import parse_idx
from dim.data.readers.npz import read_npy, read_npz
from dim.runtime.bundle_format.accepted_file import read_accepted
from dim.runtime.bundle_format.fixed_latents import read_fixed_latents
from dim.runtime.bundle_format.graph_contract import generator_contract, parse_onnx
from dim.runtime.bundle_format.graph_rules import check_model
from dim.runtime.bundle_format.manifest import (
    BundleDescription,
    ImageShape,
    Manifest,
    SamplingInfo,
    SourceInfo,
    create_manifest,
    parse_manifest,
)
from dim.runtime.bundle_format.schema import FileRecord
from dim.runtime.errors import DimError
from dim.runtime.set_formats.table import find_format
from dim.runtime.sets.journal import SetFile
from dim.runtime.trt.sidecar import parse_sidecar

MAX_READ_BYTES = 2**22
"""What a target reads of one member; the readers' own limits are tested elsewhere."""


def _nothing(*report: object) -> None:
    """Ignore what is said."""


@contextmanager
def _file(data: bytes, name: str = "input") -> Iterator[Path]:
    """The bytes as a file, in memory where the system has a place for that."""
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        yield path


@cache
def _manifest() -> Manifest:
    """The manifest whose contract the corpus' graphs and latents keep (that of tests/support/tiny_bundle.py)."""
    description = BundleDescription(
        name="tiny",
        created_by="dim fuzz",
        classes=("zero", "one", "two"),
        image=ImageShape(height=8, width=8, channels=1),
        sampling=SamplingInfo(latent_dim=16, latent_std=1.0),
        source=SourceInfo(name="x", class_counts=(1, 1, 1), mean=(0.5,), std=(0.5,), licence="x", note="x"),
        distill_config={},
        licence="x",
    )
    return create_manifest(description, {"generator.fp32.onnx": FileRecord(sha256="0" * 64, size_bytes=1)})


def idx(data: bytes) -> None:
    """IDX, plain or gzipped."""
    for num_dims in (1, 3):
        with suppress(DimError):
            array = parse_idx(io.BytesIO(data), "f", num_dims=num_dims)
            assert array.ndim == num_dims and array.size > 0


def npy(data: bytes) -> None:
    """One array of an NPZ file: what is accepted is what NumPy reads."""
    array = read_npy(io.BytesIO(data), "f")
    reference = np.load(io.BytesIO(data), allow_pickle=False)
    assert array.dtype == reference.dtype and array.shape == reference.shape
    assert array.tobytes() == reference.tobytes()


def npz(data: bytes) -> None:
    """A labelled NPZ file."""
    with _file(data, "x.npz") as path:
        raw = read_npz(Source(path=path, name="x", say=_nothing, progress=_nothing))
        make_image_set(raw, DataOptions(), _nothing)


def cifar(data: bytes) -> None:
    """A CIFAR archive, Python (whose pickles are refused unread) or binary version."""
    with _file(data) as path:
        for layout in (PYTHON_10, BINARY_10, BINARY_100):
            with suppress(DimError):
                raw = read_cifar(path, "x", layout, licence="", notes=())
                make_image_set(raw, DataOptions(), _nothing)


def tar(data: bytes) -> None:
    """A tar archive, plain, gzipped or xz."""
    for entry in iterate_tar(io.BytesIO(data), "f"):
        if not entry.is_folder:
            with suppress(DimError):
                assert len(entry.read(MAX_READ_BYTES)) <= MAX_READ_BYTES


def archive(data: bytes) -> None:
    """A zip or tar archive; no path may leave it."""
    with _file(data) as path:
        for entry in iterate_entries(path):
            parts = PurePosixPath(entry.path).parts
            assert not entry.path.startswith("/") and ".." not in parts and entry.path.isprintable()
            if not entry.is_folder:
                with suppress(DimError):
                    assert len(entry.read(MAX_READ_BYTES)) <= MAX_READ_BYTES


def tree(data: bytes) -> None:
    """An archive of class folders, read whole."""
    with _file(data) as path:
        skip = bool(len(data) % 2)
        raw = read_class_folders(
            Source(path=path, name="x", options=DataOptions(skip_unreadable=skip), say=_nothing, progress=_nothing)
        )
        make_image_set(raw, DataOptions(), _nothing)


def image(data: bytes) -> None:
    """An image file."""
    header = read_header(data, "f")
    assert header.height > 0 and header.width > 0
    for channels in (1, 3):
        assert decode_image(data, "f", size=8, channels=channels).shape == (8, 8, channels)


def manifest(data: bytes) -> None:
    """A bundle's manifest: what is accepted is written back and read as the same."""
    found = parse_manifest(data)
    assert parse_manifest(found.to_json()) == found


def graph(data: bytes) -> None:
    """An ONNX file."""
    check_model(parse_onnx(data), generator_contract(_manifest()))


def sidecar(data: bytes) -> None:
    """The sidecar of a compiled engine."""
    found = parse_sidecar(data, "f")
    assert parse_sidecar(found.to_json(), "f") == found
    assert PurePosixPath(found.file_name).name == found.file_name


def dataset_json(data: bytes) -> None:
    """The plan and the list of a written set; every file that it names lies inside the set."""
    found = SetFile.from_json(data, "f")
    assert SetFile.from_json(found.to_json(), "f") == found
    formats, parts = find_format(found.plan.format), found.written.parts if found.written is not None else ()
    names = [*formats.folders(found.plan)[:20], *(entry.path for part in parts for entry in part.files)]
    if found.plan.images <= 1000:
        names += [name for part in range(found.plan.parts) for name in formats.files(found.plan, part)]
    for name in names:
        assert not name.startswith("/") and ".." not in name.split("/") and "\0" not in name, name


def fixed_latents(data: bytes) -> None:
    """A bundle's optimised latents: a zip of one array; the bytes are also tried as that array."""
    wrapped = io.BytesIO()
    with zipfile.ZipFile(wrapped, "w") as writer:
        writer.writestr("latents.npy", data)
    for candidate in (data, wrapped.getvalue()):
        with suppress(DimError):
            latents = read_fixed_latents(candidate, _manifest())
            assert latents.dtype == np.float32 and latents.shape[::2] == (3, 16) and np.isfinite(latents).all()


def accepted(data: bytes) -> None:
    """Which candidates a bundle accepted."""
    with suppress(DimError):
        found = read_accepted(data, 3)
        assert len(found.starts) == 4 and (np.diff(found.starts) >= 1).all() and found.starts[-1] == len(found.numbers)
        assert int(found.numbers.max()) < found.per_class


_ALL = (idx, npy, npz, cifar, tar, archive, tree, image)
_ALL += (manifest, graph, sidecar, dataset_json, fixed_latents, accepted)

TARGETS: dict[str, Callable[[bytes], None]] = {target.__name__: target for target in _ALL}

JSON_TARGETS = ("manifest", "sidecar", "dataset_json")
"""Those whose inputs are JSON, which is mutated as such."""


def attempt(name: str, data: bytes) -> bool:
    """Run one target and say whether it accepted the bytes; any exception that comes out is a bug."""
    try:
        TARGETS[name](data)
    except DimError:
        return False
    return True
