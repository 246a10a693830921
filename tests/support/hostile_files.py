"""Hostile files, each read twice: prints by how much the second reading made the process larger, in MiB, as JSON.

python tests/support/hostile_files.py FOLDER        FOLDER is for the files that are read from a disk
"""

import gzip
import io
import json
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from data_samples import class_folders, image_file, random_images, tarred
from tiny_bundle import build_tiny_bundle

from dim.data.files.archive import iterate_entries
from dim.data.files.tar import iterate_tar
from dim.data.images.decode import decode_image
from dim.data.readers.idx import parse_idx
from dim.data.readers.npz import read_npy
from dim.runtime.bundle_format.files import load_manifest
from dim.runtime.bundle_format.fixed_latents import read_fixed_latents
from dim.runtime.bundle_format.manifest import parse_manifest
from dim.runtime.errors import DimError
from dim.runtime.sets.journal import SetFile
from dim.runtime.trt.sidecar import parse_sidecar

FOLDER = Path(sys.argv[1])
MANIFEST = load_manifest(build_tiny_bundle(FOLDER / "tiny.dim"))


def packed(name: str, size: int) -> Path:
    """A zip file of so many zero bytes."""
    path = FOLDER / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as writer, writer.open(name, "w") as member:
        for start in range(0, size, 2**20):
            member.write(bytes(min(2**20, size - start)))
    return path


def npy(shape: tuple[int, ...], descr: str = "|u1") -> io.BytesIO:
    """The head of an array without its data."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    stream.seek(0)
    return stream


def idx(shape: tuple[int, ...], data: bytes = b"") -> bytes:
    """An IDX file with other data than it promises."""
    return b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + data


def tar_of_huge_member() -> bytes:
    data = tarred(class_folders(train=1, test=0), "w")
    block = bytearray(data[:512])
    block[124:136] = b"\x80" + (2**60).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data[512:]


def tar_header(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("a")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def png_of(width: int, height: int) -> bytes:
    """A small PNG file whose header promises a large image."""
    data = image_file(random_images(1, 9, 3)[0], "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def read_tar(data: bytes) -> None:
    for entry in iterate_tar(io.BytesIO(data), "f"):
        entry.read(2**62)


def read_entries(path: Path) -> None:
    for entry in iterate_entries(path):
        entry.read(2**20)


def objects(count: int) -> bytes:
    """A JSON list of empty objects."""
    return b"[" + b"{}," * (count - 1) + b"{}]"


LABELS = gzip.compress(idx((1000,), bytes(2**26)), 1)
PAX = tar_header(tarfile.XHDTYPE, 2**30)
REPEATING = tar_header(tarfile.XHDTYPE, 15_360) + b"2 " * 7679 + b"==" + tar_header(tarfile.SYMTYPE, 0) + bytes(1024)
LATENTS, BOMB = packed("latents.npy", 2**28 + 1).read_bytes(), packed("bomb", 2**26)
LONG_TEXT = b'["' + "\N{MATHEMATICAL BOLD CAPITAL A}".encode() * 2**20 + b'"]'

CASES: dict[str, tuple[int, Callable[[], object]]] = {
    "idx that promises 16 GiB": (16, lambda: parse_idx(io.BytesIO(idx((2**24, 32, 32))), "f", num_dims=3)),
    "idx.gz, a bomb of labels": (16, lambda: parse_idx(io.BytesIO(LABELS), "f", num_dims=1)),
    "npy that promises 16 GiB": (16, lambda: read_npy(npy((2**24, 32, 32)), "f")),
    "npy beyond its limit": (16, lambda: read_npy(npy((2**40,)), "f")),
    "npy of long text": (16, lambda: read_npy(npy((2**20,), "<U65536"), "f")),
    "tar with a size of 2^60": (16, lambda: read_tar(tar_of_huge_member())),
    "tar with a header of 2^30": (16, lambda: read_tar(PAX + bytes(2**20))),
    "tar whose header repeats itself": (80, lambda: read_tar(REPEATING)),
    "zip, a member of 64 MiB": (16, lambda: read_entries(BOMB)),
    "png of 8192 x 16384": (16, lambda: decode_image(png_of(8192, 16384), "f", size=8, channels=3)),
    "manifest of many objects": (256, lambda: parse_manifest(objects(2**19 - 1))),
    "manifest of long text": (256, lambda: parse_manifest(LONG_TEXT)),
    "sidecar of many objects": (16, lambda: parse_sidecar(objects(20_000), "f")),
    "dataset.json of many objects": (600, lambda: SetFile.from_json(objects(2**21 - 1), "f")),
    "json of many brackets": (16, lambda: parse_manifest(b"[" * 2**20)),
    "latents, a bomb": (16, lambda: read_fixed_latents(LATENTS, MANIFEST)),
}
"""MiB that it may cost, and the reading of it."""


def resident(key: str) -> float:
    """`VmRSS` or `VmHWM` of this process, in MiB."""
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) / 1024


def attempt(act: Callable[[], object]) -> str:
    try:
        act()
    except DimError as error:
        return str(error)
    return "accepted"


for name, (allowed, act) in CASES.items():
    attempt(act)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = resident("VmRSS")
    said = attempt(act)
    print(json.dumps({"name": name, "allowed": allowed, "grown": resident("VmHWM") - before, "said": said}))
