"""Write the corpus' first files: one or a few small, valid inputs for every target.

    python tests/fuzz/seeds.py [FOLDER]        FOLDER is tests/fuzz/corpus unless named

What fuzzing finds beside them is kept in the corpus too, where it reaches code that these do not.
"""

import gzip
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent
sys.path[:0] = [str(ROOT), str(ROOT.parent / "support")]

from data_samples import (  # noqa: E402
    cifar_files,
    class_folders,
    idx,
    image_file,
    npz,
    random_images,
    tarred,
    zipped,
)
from tiny_bundle import build_tiny_bundle, tiny_graph  # noqa: E402

from dim.runtime.bundle import open_bundle  # noqa: E402
from dim.runtime.bundle_format.accepted_file import write_accepted  # noqa: E402
from dim.runtime.bundle_format.fixed_latents import write_fixed_latents  # noqa: E402
from dim.runtime.set_formats.plan import FORMATS  # noqa: E402
from dim.runtime.sets.generate import generate  # noqa: E402
from dim.runtime.sets.request import SetRequest  # noqa: E402


def seeds() -> dict[str, list[bytes]]:
    """Valid inputs by target."""
    grey = random_images(4, 8, 1)[..., 0]
    labels = np.arange(4) % 2
    arrays = [grey, labels, np.array(["a", "b"]), np.asfortranarray(np.ones((2, 3), np.float32))]
    folders = class_folders(train=2, test=1)
    archives = [zipped(folders), *(tarred(folders, mode) for mode in ("w", "w:gz", "w:xz"))]
    flat = class_folders(train=2, test=0, channels=1)
    pictures = [
        image_file(random_images(1, 9, channels)[0], kind)
        for kind, channels in (("PNG", 1), ("PNG", 3), ("PNG", 4), ("JPEG", 3), ("JPEG", 1), ("GIF", 1), ("BMP", 3))
    ]
    pictures += [image_file(random_images(1, 9, 3)[0], kind) for kind in ("PPM", "WEBP")]
    return {
        "idx": [idx(grey), gzip.compress(idx(grey)), idx(labels.astype(np.uint8))],
        "npy": [_npy(array) for array in arrays],
        "npz": [
            npz(images=grey, labels=labels),
            npz(images=grey, labels=labels, test_images=grey, test_labels=labels, classes=np.array(["a", "b"])),
        ],
        "cifar": [
            tarred(cifar_files(10, 10, binary=True, flat=True), "w:gz"),
            tarred(cifar_files(100, 100, binary=True, flat=True), "w:xz"),
        ],
        "tar": [*archives[1:], tarred({"n" * 200: b"1", "d/": b""}, format=1), tarred({"n" * 200: b"1"}, format=2)],
        "archive": [*archives, zipped({"a/b": b"1", "c/": b""}, 0)],
        "tree": [*archives, zipped({name.removeprefix("train/"): data for name, data in flat.items()})],
        "image": pictures,
        **_bundle_seeds(),
    }


def _npy(array: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asanyarray(array))
    return buffer.getvalue()


def _bundle_seeds() -> dict[str, list[bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        bundle = build_tiny_bundle(Path(folder) / "tiny.dim")
        manifest = (bundle / "manifest.json").read_bytes()
        sets = [_dataset_json(bundle, Path(folder) / format, format) for format in FORMATS]
    options = {"num_classes": 3, "image_px": 8, "channels": 1, "latent_dim": 16}
    latents = np.random.RandomState(0).standard_normal((3, 2, 16)).astype(np.float32)
    return {
        "manifest": [manifest],
        "graph": [tiny_graph(**options, precision=precision) for precision in ("fp32", "fp16", "int8")],
        "sidecar": [json.dumps(_SIDECAR).encode()],
        "dataset_json": sets,
        "accepted": [write_accepted(7, np.arange(48).reshape(3, 16) % 3 > 0)],
        "fixed_latents": [write_fixed_latents(latents), npz(latents=latents), _npy(latents)],
    }


def _dataset_json(bundle: Path, out: Path, format: str) -> bytes:
    with open_bundle(bundle, engine="fake") as opened:
        generate(opened, SetRequest(per_class=(3, 2, 0), format=format), out, say=lambda message: None)
    return (out / "dataset.json").read_bytes()


_SIDECAR = {
    "format_version": 1,
    "format": "rtx",
    "library_version": "1.2.0.54",
    "precision": "fp16",
    "onnx_sha256": "0" * 64,
    "engine_sha256": "1" * 64,
    "engine_bytes": 1000,
    "batch": [1, 64, 256],
    "hardware": "compute_capabilities",
    "compute_capabilities": [[8, 6], [8, 9]],
    "gpu": None,
    "version_compatible": False,
    "machine": "x86_64",
    "created_by": "dim 0.1.0",
    "checked": True,
}


def main() -> None:
    """Write the seeds."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "corpus"
    for target, inputs in seeds().items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(inputs):
            (folder / target / f"seed-{number}").write_bytes(data)


if __name__ == "__main__":
    main()
