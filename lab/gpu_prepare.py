#!/usr/bin/env python3
"""Pack data and Python packages into parts that a machine without a network can be given one by one.

    python -m lab.gpu_prepare --data FOLDER --out parts                         # CIFAR-10, FashionMNIST
    python -m lab.gpu_prepare --data FOLDER --wheels FOLDER --lossless --out parts

FOLDER is one as for `dim distill --data-dir`; CIFAR-10 as its official binary batches, `cifar-10-batches-bin/`. Every
part is a folder `parts/1`, `parts/2`, ... of less than `--part-mb`. `lab/gpu_run.py --data parts` puts together what
has come, checks every hash, and says in the bundle's card which bytes were used.
"""

import argparse
import hashlib
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lab.gpu_parts import Arrived, collect_parts, write_parts

TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST, NAMES = "test_batch.bin", "batches.meta.txt"
OFFICIAL_MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
"""MD5 sums of CIFAR-10's official binary batches."""
JPEG_STRIP, WEBP_STRIP = 2000, 500
"""Images, one below the other, in one file: neither format takes a longer picture."""
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
Group = tuple[dict[str, Any], dict[str, bytes]]
Say = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack what was asked for and print the sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with the official files")
    parser.add_argument("--sets", default="cifar10,fashion-mnist", help="which, what is needed first at the head")
    parser.add_argument("--quality", type=int, default=97, help="of CIFAR-10's training images as JPEG 4:4:4")
    parser.add_argument("--lossless", action="store_true", help="CIFAR-10's training images as lossless WebP")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels that the machine lacks")
    parser.add_argument("--part-mb", type=float, default=28, help="of one part, in 10^6 bytes")
    parser.add_argument("--out", type=Path, default=Path("parts"))
    options = parser.parse_args(arguments)
    groups: dict[str, Group] = {}
    for name in options.sets.split(","):
        if name == "cifar10":
            groups[name] = pack_cifar10(options.data, None if options.lossless else options.quality)
        else:
            groups[name] = pack_idx(options.data, name)
        if name == "cifar10" and options.wheels:
            groups["packages"] = pack_wheels(options.wheels)
    folders = write_parts(groups, options.out, round(options.part_mb * 1e6))
    for name, (_, files) in groups.items():
        print(f"{name}: {sum(map(len, files.values())) / 1e6:.1f} MB")
    for folder in folders:
        print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB")


def pack_cifar10(data: Path, quality: int | None) -> Group:
    """The six binary batches: pixels as pictures, labels as they are; the test split is always lossless."""
    folder = next((data / sub for sub in (".", "cifar10") if (data / sub / "cifar-10-batches-bin").is_dir()), None)
    if folder is None:
        raise SystemExit(f"{data} has no folder cifar-10-batches-bin.")
    facts: dict[str, Any] = {"quality": quality, "batches": {}}
    files = {NAMES: (folder / "cifar-10-batches-bin" / NAMES).read_bytes()}
    for name in (*TRAIN, TEST):
        content = (folder / "cifar-10-batches-bin" / name).read_bytes()
        rows = np.frombuffer(content, np.uint8).reshape(-1, 3073)
        labels, images = rows[:, 0], rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        strips = encode(images, None if name == TEST else quality)
        files[f"{name}.labels"] = labels.tobytes()
        files |= {f"{name}.{number:02d}": strip for number, strip in enumerate(strips)}
        decoded = join_batch(labels, [decode(strip) for strip in strips])
        facts["batches"][name] = {"strips": len(strips), "sha256": hashlib.sha256(decoded).hexdigest()}
    return facts, files


def encode(images: NDArray[np.uint8], quality: int | None) -> list[bytes]:
    """Pictures of images below each other; JPEG's blocks of eight pixels never cross from one image to the next."""
    count = WEBP_STRIP if quality is None else JPEG_STRIP
    strips = []
    for start in range(0, len(images), count):
        picture = Image.fromarray(np.ascontiguousarray(images[start : start + count]).reshape(-1, 32, 3))
        buffer = io.BytesIO()
        if quality is None:
            picture.save(buffer, "WEBP", lossless=True, quality=100, method=4)
        else:
            picture.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True, progressive=True)
        strips.append(buffer.getvalue())
    return strips


def decode(strip: bytes) -> NDArray[np.uint8]:
    """The images of one picture, uint8 `[N, 32, 32, 3]`."""
    return np.asarray(Image.open(io.BytesIO(strip)).convert("RGB")).reshape(-1, 32, 32, 3)


def join_batch(labels: NDArray[np.uint8], strips: Sequence[NDArray[np.uint8]]) -> bytes:
    """One binary batch: a label and 3,072 bytes, channel by channel, for every image."""
    pixels = np.concatenate(strips).transpose(0, 3, 1, 2).reshape(len(labels), -1)
    return np.concatenate([labels[:, None], pixels], axis=1).tobytes()


def pack_idx(data: Path, name: str) -> Group:
    """The four official files, as they are."""
    files = {}
    for file in IDX_FILES:
        found = [path for sub in (".", name) if (path := data / sub / f"{file}.gz").exists()]
        if not found:
            raise SystemExit(f"{data} has no {file}.gz for {name}; it is looked for there and in {data / name}.")
        # Of two sets in one folder, the one below its own name is meant.
        files[f"{file}.gz"] = found[-1].read_bytes()
    return {}, files


def pack_wheels(folder: Path) -> Group:
    """What is in the wheels, as one tar.xz: a quarter smaller than the wheels of engine libraries."""
    buffer = io.BytesIO()
    wheels = sorted(folder.glob("*.whl"))
    with lzma.open(buffer, "wb", preset=6) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as contents:
                for name in sorted(name for name in contents.namelist() if not name.endswith("/")):
                    info, content = tarfile.TarInfo(name), contents.read(name)
                    info.size, info.mode = len(content), 0o644
                    tar.addfile(info, io.BytesIO(content))
    return {"wheels": [wheel.name for wheel in wheels]}, {"site.tar.xz": buffer.getvalue()}


def receive(folder: Path, work: Path, say: Say) -> dict[str, str]:
    """Put together every group whose parts have all come, each once.

    Args:
        folder: with parts.
        work: gets `data/` for `--data-dir`, `site/` for Python's path, and `origin/NAME.json`: name and note of a set.
        say: is told what came and what did not.

    Returns:
        what each missing group waits for.
    """
    arrived = collect_parts(folder, work / "parts", say)
    if arrived is None:
        return {}
    waiting = {}
    for group in arrived.index["groups"]:
        done = work / "origin" / f"{group}.json"
        if done.exists():
            continue
        if missing := arrived.missing_for(group):
            waiting[group] = f"part {', '.join(map(str, missing))} of {len(arrived.index['parts'])}"
            continue
        origin = unpack(arrived, group, work)
        done.parent.mkdir(exist_ok=True)
        done.write_text(json.dumps(origin))
        say(f"{group}: {origin['note']}")
    return waiting


def unpack(arrived: Arrived, group: str, work: Path) -> dict[str, str]:
    """Unpack one group; returns the name of a set and the note for its bundle's card."""
    facts, files = arrived.index["groups"][group]["facts"], arrived.files(group)
    if group == "packages":
        site = work / "site"
        with tarfile.open(fileobj=io.BytesIO(lzma.decompress(files["site.tar.xz"]))) as tar:
            tar.extractall(site, filter="data")
        return {"name": group, "note": ", ".join(facts["wheels"])}
    target = work / "data" / group
    if group != "cifar10":
        target.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (target / name).write_bytes(content)
        return {"name": group, "note": ""}  # `load_data` compares with the published sums itself
    target /= "cifar-10-batches-bin"
    target.mkdir(parents=True, exist_ok=True)
    (target / NAMES).write_bytes(files[NAMES])
    sums, differing, official = [], [], []
    for name, batch in facts["batches"].items():
        strips = [decode(files[f"{name}.{number:02d}"]) for number in range(batch["strips"])]
        content = join_batch(np.frombuffer(files[f"{name}.labels"], np.uint8), strips)
        (target / name).write_bytes(content)
        sums.append(hashlib.sha256(content).hexdigest())
        differing += [name] * (sums[-1] != batch["sha256"])
        official += [name] * (hashlib.md5(content, usedforsecurity=False).hexdigest() == OFFICIAL_MD5[name])
    return describe_cifar10(facts["quality"], sums, differing, official)


def describe_cifar10(
    quality: int | None, sums: Sequence[str], differing: Sequence[str], official: Sequence[str]
) -> dict[str, str]:
    """Name and note of CIFAR-10 as it came."""
    if len(official) == len(OFFICIAL_MD5):
        return {"name": "cifar10", "note": "CIFAR-10, official binary batches (MD5 sums match)"}
    all_bytes = hashlib.sha256("".join(sums).encode()).hexdigest()
    kind = "lossless" if quality is None else f"JPEG 4:4:4 of quality {quality}"
    note = f"CIFAR-10: training images came as {kind}, so accuracies may be lower than on the official files; "
    note += f"test split {'official (MD5 sum matches)' if TEST in official else 'not the official file'}; "
    note += f"SHA-256 of the six batches' sums {all_bytes[:16]}"
    if differing:
        note += f"; {', '.join(differing)} decoded otherwise than where they were packed"
    return {"name": "cifar10-lossless" if quality is None else f"cifar10-jpeg{quality}", "note": note}


if __name__ == "__main__":
    main()
