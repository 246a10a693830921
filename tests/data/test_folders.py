"""Class folders on disk and in archives, and the image files in them."""

import io
import struct
import threading
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from data_samples import (
    class_folders,
    image_file,
    random_images,
    tarred,
    without_cautions,
    without_utf8_flag,
    write_folder,
    zipped,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dim.data.classes.layout import find_layout
from dim.data.image_set import RawSet, Say
from dim.data.images.decode import decode_files, decode_image, find_largest_value, read_header
from dim.data.load import ImageSet, load_data
from dim.data.options import DataOptions
from dim.data.readers.known import name_jpeg_copy
from dim.runtime.errors import BadValueError, DataError
from dim.runtime.messages import say_to_log

FILES = class_folders()
PNG = FILES["train/cat/0000.png"]


def _pngs(count: int) -> list[bytes]:
    return [image_file(image) for image in random_images(count, 8, 3)]


def _load(folder: Path, files: dict[str, bytes], say: Say = say_to_log, **options: Any) -> ImageSet:
    return load_data(str(write_folder(folder / "data", files)), DataOptions(**options), say=say)


def _refusal(folder: Path, files: dict[str, bytes], **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        _load(folder, files, **options)
    return str(caught.value).replace(str(folder / "data"), "P").replace(str(folder), "ABOVE")


def test_every_form_gives_the_same_set(tmp_path: Path) -> None:
    reversed_files = dict(reversed(FILES.items()))
    forms = {
        "set.zip": zipped(reversed_files),
        "set.tar": tarred(reversed_files),
        "set.tar.gz": tarred(FILES, "w:gz"),
        "set.tgz": tarred({"top/": b"", **{f"./top/{name}": data for name, data in FILES.items()}}, "w:gz"),
        "set.tar.xz": tarred(reversed_files, "w:xz"),
    }
    folder = load_data(str(write_folder(tmp_path / "set", FILES)))
    assert folder.name == "set" and folder.classes == ("cat", "dog")
    assert folder.train_images.shape == (6, 8, 8, 3) and folder.test_images.shape == (4, 8, 8, 3)
    assert folder.train_labels.tolist() == [0, 0, 0, 1, 1, 1] and folder.test_labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(folder.train_images[:3], random_images(3, 8, 3, 3))
    assert np.array_equal(folder.test_images[2:], random_images(2, 8, 3, 102))
    assert folder.note == "10 PNG files" and folder.licence == "unknown"
    for name, data in forms.items():
        (tmp_path / name).write_bytes(data)
        archive = load_data(str(tmp_path / name))
        assert archive.fingerprint() == folder.fingerprint()
        assert archive.name == "set"


def test_a_large_tree_is_read_twice_and_gives_the_same_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.tar.xz").write_bytes(tarred(FILES, "w:xz"))
    kept = load_data(str(tmp_path / "x.tar.xz"))
    monkeypatch.setattr("dim.data.images.pictures.MAX_KEPT_BYTES", 500)
    assert load_data(str(tmp_path / "x.tar.xz")).fingerprint() == kept.fingerprint()


def test_a_folder_without_splits_gets_a_test_split(tmp_path: Path) -> None:
    files = {name.removeprefix("train/"): data for name, data in class_folders(train=10, test=0).items()}
    said: list[str] = []
    data = _load(tmp_path, files, say=said.append)
    assert data.class_counts == (8, 8) and len(data.test_labels) == 4
    assert "the source has no test split: 4 of 20 images" in without_cautions(said)[-1]


def test_validation_serves_as_test_split(tmp_path: Path) -> None:
    said: list[str] = []
    data = _load(tmp_path, {name.replace("test/", "val/"): d for name, d in FILES.items()}, say=said.append)
    assert len(data.test_labels) == 4
    assert "data: the folder 'val' serves as test split" in said and "the folder 'val' serves as" in data.note


def test_what_lies_beside_the_images(tmp_path: Path) -> None:
    more = {
        "README.md": b"",
        ".DS_Store": b"x",
        "train/cat/Thumbs.db": b"x",
        "train/cat/._0000.png": b"x",
        "__MACOSX/train/cat/0000.png": b"x",
        "train/cat/labels.txt": b"x",
        "extra/cat/0000.png": b"x",
        "train/cat/deeper/still/0009.PNG": PNG,
    }
    said: list[str] = []
    data = _load(tmp_path, FILES | more, say=said.append)
    assert data.class_counts == (4, 3)
    assert without_cautions(said) == [
        "data: 1 text files beside images were passed over (train/cat/labels.txt)",
        "data: passed over beside the splits: extra",
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "P: no class folders found; expected train/<class>/<images> or <class>/<images>"),
        (
            {"MNIST/raw/train-images-idx3-ubyte.gz": b"x"},
            "IDX files such as MNIST/raw/train-images-idx3-ubyte.gz are read where --data names the unpacked folder",
        ),
        (
            {"data_batch_1.bin": b"x"},
            "data_batch_1.bin is of CIFAR's official files: write --data cifar10, and --data-dir for the folder that",
        ),
        (
            {"X.npy": b"x", "y.npy": b"x"},
            "arrays such as X.npy are read as images.npy and labels.npy in one folder, or in one file by numpy.savez",
        ),
        (
            {"a.png": PNG},
            "P: no class folders found; expected train/<class>/<images> or <class>/<images>; it holds images itself: "
            "write --data ABOVE if it is one class of the set there.",
        ),
        ({"train/a.png": PNG, **FILES}, "P: train/a.png: an image outside of any class folder; move it into its class"),
        ({"a/1.png": PNG, "b/1.png": PNG, "c.png": PNG}, "P: c.png: an image outside of any class folder; move it"),
        ({"test/a/1.png": PNG}, "P: a test folder without a train folder beside it; name the other one 'train'"),
        ({**FILES, "test/emu/1.png": PNG}, "P: the class 'emu' is in the test split only; both splits need the same"),
        ({**FILES, "train/emu/1.png": PNG}, "P: the class 'emu' is in the training split only; both splits need"),
        ({**FILES, "train/emu/1.txt": b""}, "P: the class folder 'emu' has no images; add some or remove it"),
        (
            {**FILES, "train/cat/1.heic": PNG},
            "P: train/cat/1.heic: not an image by its name; remove it or move it out of",
        ),
        ({**FILES, "train/cat/1.png": b""}, "P: train/cat/1.png: an empty file, expected an image"),
        ({**FILES, "train/cat/1.png": b"abc"}, "P: train/cat/1.png: not a readable image: expected PNG, JPEG, WebP,"),
        ({**FILES, "train/cat/1.png": PNG[:40]}, "P: train/cat/1.png: the image cannot be read ("),
        ({**FILES, "train/cat/1.png": PNG[:-30]}, "P: train/cat/1.png: the image cannot be read ("),
        (
            {**FILES, "train/cat/1.png": b"", "train/cat/2.png": b""},
            "an empty file, expected an image (1 more like it: train/cat/2.png)",
        ),
    ],
)
def test_trees_that_cannot_be_read(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    (tmp_path / "data").mkdir()
    assert message in _refusal(tmp_path, files)


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "data" / "train" / "emu").mkdir(parents=True)
    assert "the class folder 'emu' has no images; add some or remove it" in _refusal(tmp_path, FILES)
    (tmp_path / "x.tar").write_bytes(tarred({**FILES, "test/emu/": b""}))
    with pytest.raises(DataError, match="the class folder 'emu' has no images"):
        load_data(str(tmp_path / "x.tar"))


def test_unreadable_images_are_skipped_when_asked_and_counted(tmp_path: Path) -> None:
    bad = {
        "train/cat/1.png": b"",
        "train/cat/2.jpg": b"\xff\xd8\xff",
        "test/dog/3.png": PNG[:-30],
        "test/dog/x.tif": b"",
    }
    said: list[str] = []
    data = _load(tmp_path, FILES | bad, skip_unreadable=True, say=said.append)
    clean = load_data(str(write_folder(tmp_path / "clean", FILES)))
    assert data.fingerprint() == clean.fingerprint()
    assert (
        without_cautions(said) == ["data: 4 unreadable images were left out"]
        and "4 unreadable images were left out" in data.note
    )
    emptied = {name: data for name, data in FILES.items() if "train/dog" not in name} | {"train/dog/1.png": PNG[:-30]}
    (tmp_path / "y.tar").write_bytes(tarred(emptied))
    with pytest.raises(DataError, match="^y: class 'dog' has no training images; add some or remove the class.$"):
        load_data(str(tmp_path / "y.tar"), DataOptions(skip_unreadable=True))


def test_grey_and_colour_images_mix(tmp_path: Path) -> None:
    grey = class_folders(classes=("ant",), channels=1)
    assert _load(tmp_path, {name.replace("ant", "cat"): d for name, d in grey.items()} | class_folders(
        classes=("dog",), channels=1)).channels == 1  # fmt: skip
    said: list[str] = []
    mixed = load_data(str(write_folder(tmp_path / "mixed", FILES | grey)), say=said.append)
    assert mixed.channels == 3 and without_cautions(said) == [
        "mixed: 5 of 15 images (grey) were repeated over three channels"
    ]
    assert np.array_equal(mixed.train_images[:3], np.repeat(random_images(3, 8, 1, 3), 3, axis=3))
    said.clear()
    made_grey = load_data(str(tmp_path / "mixed"), DataOptions(channels=1), say=said.append)
    assert made_grey.channels == 1 and without_cautions(said) == ["mixed: 10 of 15 images (colour) were made grey"]
    expected = np.asarray(Image.fromarray(random_images(3, 8, 3, 3)[0]).convert("L"))
    assert np.array_equal(made_grey.train_images[3, ..., 0], expected)


def test_sizes_and_crops(tmp_path: Path) -> None:
    wide = image_file(np.zeros((90, 120, 3), np.uint8))
    tall = image_file(np.zeros((100, 75, 3), np.uint8))
    files = {"train/a/1.png": wide, "train/b/1.png": tall, "test/a/1.png": wide, "test/b/1.png": wide}
    said: list[str] = []
    data = _load(tmp_path, files, say=said.append)
    assert data.height == 64
    assert without_cautions(said) == [
        "data: images of 75 to 120 x 90 to 100 pixels were resized to 64 x 64, cropped to the central square"
    ]
    assert _load(tmp_path, files, size=33).train_images.shape == (2, 33, 33, 3)


def _decode(data: bytes, size: int = 8, channels: int = 3) -> NDArray[np.uint8]:
    return decode_image(data, "f", size=size, channels=channels)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "WEBP", "GIF"])
def test_lossless_formats_keep_their_pixels(kind: str) -> None:
    image = np.full((8, 8, 3), 77, np.uint8) if kind == "GIF" else random_images(1, 8, 3)[0]
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert np.array_equal(_decode(image_file(image, kind, **options)), image)


def test_large_jpegs_are_decoded_at_a_fraction_and_agree_with_a_full_decode() -> None:
    smooth = Image.fromarray(random_images(1, 8, 3)[0]).resize((640, 960), Image.Resampling.BICUBIC)
    data = image_file(np.asarray(smooth), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as picture:
        full = np.asarray(picture.crop((0, 160, 640, 800)).resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(_decode(data, 32).astype(int) - full).mean() < 2


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    image = random_images(1, 8, 4)[0]
    image[..., 3] = 0
    assert (_decode(image_file(image)) == 255).all()
    image[..., 3] = 255
    assert np.array_equal(_decode(image_file(image)), image[..., :3])
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=1)
    assert (_decode(buffer.getvalue()) == 255).all()
    said: list[str] = []
    _load(tmp_path, {**FILES, "train/cat/9.png": image_file(image)}, say=said.append)
    assert without_cautions(said) == ["data: 1 images with transparency were composited on white"]


def test_palettes_sixteen_bits_and_one_bit() -> None:
    grey_palette = Image.new("P", (8, 8), 3)
    grey_palette.putpalette([value for value in range(256) for _ in range(3)])
    deep = Image.fromarray(np.full((8, 8), 0x8123, np.uint16))
    bits = Image.new("1", (8, 8), 1)
    for picture, value in ((grey_palette, 3), (deep, 0x81), (bits, 255)):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        assert read_header(buffer.getvalue(), "f").is_grey
        assert (_decode(buffer.getvalue(), channels=1) == value).all()
        assert _decode(buffer.getvalue(), channels=3).shape == (8, 8, 3)


def test_orientation_is_honoured() -> None:
    image = random_images(1, 8, 3)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    assert np.array_equal(_decode(image_file(image, "PNG", exif=exif)), np.rot90(image, -1))


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _turned_files(image: NDArray[np.uint8]) -> dict[str, bytes]:
    """One picture that is to be turned by half, by every place that keeps it."""
    exif = Image.Exif()
    exif[0x0112] = 3
    block = exif.tobytes()
    text, xmp = PngInfo(), PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(block):8d}\n{block.hex()}\n", zip=True)
    xmp.add_itxt("XML:com.adobe.xmp", '<x><r tiff:Orientation="3"/></x>')
    picture = Image.fromarray(image)
    return {
        "eXIf": _saved(picture, "PNG", exif=exif),
        "text": _saved(picture, "PNG", pnginfo=text),
        "XMP": _saved(picture, "PNG", pnginfo=xmp),
        "WebP": _saved(picture, "WEBP", lossless=True, exif=exif),
        "TIFF": _saved(picture, "TIFF", exif=exif),
    }


def test_orientation_is_honoured_wherever_a_file_keeps_it() -> None:
    image = random_images(1, 8, 3)[0]
    for place, data in _turned_files(image).items():
        assert np.array_equal(_decode(data), np.rot90(image, 2)), place


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_tiff_is_read(compression: str | None, tmp_path: Path) -> None:
    image = random_images(1, 8, 3)[0]
    data = _saved(Image.fromarray(image), "TIFF", compression=compression)
    assert np.array_equal(_decode(data), image)
    files = {name.replace(".png", ".tif"): data for name in FILES}
    assert "10 TIF files" in _load(tmp_path, files).note
    deep = _saved(Image.fromarray(np.full((8, 8), 0x4321, np.uint16)), "TIFF", compression=compression)
    assert (_decode(deep, channels=1) == 0x43).all() and read_header(deep, "f").bits == 16
    for length in range(0, len(data) - 1, 7):
        with suppress(DataError):  # damage is told, or does no harm
            assert _decode(data[:length]).shape == (8, 8, 3)


def test_floating_point_pictures_are_refused() -> None:
    data = _saved(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF")
    with pytest.raises(DataError, match="it holds floating-point values; save it with 8 or 16 bits"):
        _decode(data)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken_and_said(tmp_path: Path, kind: str) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), (value, 0, 0), np.uint8)) for value in (60, 160, 250)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = _saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert read_header(data, "f").is_animated and (_decode(data) == (60, 0, 0)).all()
    assert not read_header(_saved(frames[0], kind), "f").is_animated
    said: list[str] = []
    name = {"GIF": "gif", "PNG": "png", "WEBP": "webp", "TIFF": "tif"}[kind]
    _load(tmp_path, {**FILES, f"train/cat/9.{name}": data}, say=said.append)
    assert without_cautions(said) == ["data: 1 file holds several pictures: the first of each was taken"]


def _deep_files(largest: int, test_largest: int | None = None) -> dict[str, bytes]:
    """Class folders of 16-bit ramps up to a largest value."""
    tops = {"train": largest, "test": largest if test_largest is None else test_largest}
    return {
        f"{split}/{name}/{number}.png": _saved(
            Image.fromarray(np.linspace(0, tops[split], 256).reshape(16, 16).astype(np.uint16)), "PNG"
        )
        for split in tops for name in "ab" for number in range(3)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("largest", "bits"), [(255, 8), (256, 10), (1023, 10), (4095, 12), (4096, 14), (16384, 16), (65535, 16)]
)
@pytest.mark.parametrize("kept", [True, False])
def test_sixteen_bit_images_use_the_bits_that_hold_their_largest_value(
    tmp_path: Path, largest: int, bits: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr("dim.data.images.pictures.MAX_KEPT_BYTES", 10)
    said: list[str] = []
    data = _load(tmp_path, _deep_files(largest), say=said.append)
    ramp = (np.linspace(0, largest, 256).reshape(16, 16).astype(np.uint16) >> (bits - 8)).astype(np.uint8)
    assert np.array_equal(data.train_images[0, ..., 0], ramp)
    sentence = f"data: 12 images of 16 bits were read as using {bits} of them (their largest value is {largest})"
    assert without_cautions(said) == ([] if bits == 16 else [sentence])


def _deep_png(values: NDArray[np.uint16], kind: int, *chunks: bytes) -> bytes:
    """A PNG of 16 bits a channel, which Pillow writes only in grey. Kind 2 is RGB, 4 grey and alpha, 6 RGBA."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *(chunk(data[:4], data[4:]) for data in chunks))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _deep_tiff(values: NDArray[np.uint16], order: Literal["<", ">"], *, deflate: bool) -> bytes:
    """A TIFF of 16 bits a channel in colour, with alpha if it has four, which Pillow does not write."""
    height, width, channels = values.shape
    strip = values.astype(f"{order}u2").tobytes()
    strip = zlib.compress(strip) if deflate else strip
    entries = {256: (width,), 257: (height,), 258: (16,) * channels, 259: (8 if deflate else 1,), 262: (2,)}
    entries |= {273: (8,), 277: (channels,), 278: (height,), 279: (len(strip),)}
    entries |= {338: (2,)} if channels == 4 else {}
    directory, after = struct.pack(f"{order}H", len(entries)), b""
    for tag, numbers in entries.items():
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            packed = struct.pack(f"{order}I", 8 + len(strip) + 2 + 12 * len(entries) + 4)
            after = struct.pack(f"{order}{len(numbers)}I", *numbers)
        directory += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + packed
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(strip))
    return head + strip + directory + bytes(4) + after


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("alpha", [0, 1])
def test_tiff_in_colour_of_sixteen_bits_uses_the_bits_that_hold_its_largest_value(
    alpha: int, order: Literal["<", ">"], deflate: bool
) -> None:
    values = np.linspace(0, 1023, 192).astype(np.uint16).reshape(8, 8, 3)
    image = _deep_tiff(np.dstack([values, np.full((8, 8, alpha), 0xFFFF, np.uint16)]), order, deflate=deflate)
    assert read_header(image, "f").bits == 16
    assert find_largest_value(image, "f") == 1023
    assert np.array_equal(decode_image(image, "f", size=8, channels=3, bits=10), values >> 2)
    assert np.array_equal(decode_image(image, "f", size=8, channels=3), values >> 8)


@pytest.mark.parametrize(("largest", "bits"), [(255, 8), (1023, 10), (4095, 12), (65535, 16)])
@pytest.mark.parametrize(("kind", "colours", "alpha"), [(2, 3, 0), (6, 3, 1), (4, 1, 1)])
def test_colour_of_sixteen_bits_uses_the_bits_that_hold_its_largest_value(
    tmp_path: Path, largest: int, bits: int, kind: int, colours: int, alpha: int
) -> None:
    values = np.linspace(0, largest, 64 * colours).astype(np.uint16).reshape(8, 8, colours)
    image = _deep_png(np.dstack([values, np.full((8, 8, alpha), 0xFFFF, np.uint16)]), kind)
    said: list[str] = []
    files = {f"{split}/{name}/{number}.png": image for split in ("train", "test") for name in "ab" for number in "01"}
    data = _load(tmp_path, files, say=said.append)
    assert (data.train_images == (values >> (bits - 8)).astype(np.uint8)).all()
    sentence = f"data: 8 images of 16 bits were read as using {bits} of them (their largest value is {largest})"
    assert (sentence in said) == (bits < 16)
    assert load_data(str(tmp_path / "data"), DataOptions(bits=16)).train_images.max() == largest >> 8


def test_colour_of_twelve_bits_keeps_its_transparency_and_orientation() -> None:
    values = np.arange(64 * 3, dtype=np.uint16).reshape(8, 8, 3) * 20
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = _deep_png(values, 2, b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0"))
    form = {"size": 8, "channels": 3, "bits": 12}
    expected = (values >> 4).astype(np.uint8)
    assert np.array_equal(decode_image(turned, "f", **form), np.rot90(expected, -1))
    expected[0, 0] = 255
    clear = _deep_png(values, 2, b"tRNS" + values[0, 0].astype(">u2").tobytes())
    assert np.array_equal(decode_image(clear, "f", **form), expected)


def test_both_splits_share_their_bits_and_the_user_may_say_them(tmp_path: Path) -> None:
    files = _deep_files(200, 4000)
    data = _load(tmp_path, files)
    assert (data.train_images.max(), data.test_images.max()) == (200 >> 4, 4000 >> 4)
    path = str(tmp_path / "data")
    assert load_data(path, DataOptions(bits=16)).test_images.max() == 4000 >> 8
    with pytest.raises(DataError, match="^data: values up to 4000 found, which 10 bits do not hold; say --bits 12.$"):
        load_data(path, DataOptions(bits=10))
    with pytest.raises(BadValueError, match="^bits is 7: it must be between 8 and 16.$"):
        load_data(path, DataOptions(bits=7))


def test_an_image_bomb_is_refused_by_its_header() -> None:
    buffer = io.BytesIO()
    Image.new("1", (20000, 20000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 60_000
    message = "^f: an image of 20000 x 20000 pixels, more than the limit of 67108864.$"
    for read in (lambda: read_header(buffer.getvalue(), "f"), lambda: _decode(buffer.getvalue())):
        with pytest.raises(DataError, match=message):
            read()
    scans = image_file(random_images(1, 8, 3)[0], "JPEG")[:-2] + b"\xff\xda" * 101
    with pytest.raises(DataError, match="^f: a JPEG of 102 scans, more than the limit of 100.$"):
        read_header(scans, "f")


_SAMPLES = [
    image_file(random_images(1, 12, 3)[0], kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF")
]


@settings(deadline=None, max_examples=200)
@given(data=st.data(), sample=st.sampled_from(_SAMPLES))
def test_an_altered_image_gives_pixels_or_a_data_error(data: st.DataObject, sample: bytes) -> None:
    altered = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 4))):
        altered[data.draw(st.integers(0, min(len(altered), 300) - 1))] = data.draw(st.integers(0, 255))
    try:
        header = read_header(bytes(altered), "f")
        assert _decode(bytes(altered)).shape == (8, 8, 3) and header.height > 0
    except DataError as error:
        assert str(error).startswith("f: ")


def test_an_image_may_not_be_larger_than_a_file_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dim.data.readers.folders.MAX_FILE_BYTES", 100)
    assert "more than 100 bytes, which is the limit for one file" in _refusal(tmp_path, FILES)


def test_a_set_may_not_need_more_memory_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dim.data.images.sizes.MAX_SET_BYTES", 1000)
    message = "data: 10 images of 8 x 8 x 3 need 1920 bytes, more than the limit of 1000: use a smaller size or fewer"
    assert message in _refusal(tmp_path, FILES)


def test_progress_counts_headers_and_images(tmp_path: Path) -> None:
    seen: list[tuple[str, float, float | None, str]] = []
    load_data(str(write_folder(tmp_path / "data", FILES)), progress=lambda *report: seen.append(report))
    assert ("data: reading headers", 10, None, "") in seen
    assert [report for report in seen if "decoding" in report[0]][-1] == ("data: decoding", 10, 10, "")


def test_a_failing_decoder_stops_the_pipeline() -> None:
    started = threading.Semaphore(0)
    drawn = 0

    def files() -> Any:
        nonlocal drawn
        for drawn in range(100_000):
            yield drawn, "f", b"x"

    def decode(row: int, name: str, data: bytes) -> None:
        started.release()
        raise DataError("stop")

    with pytest.raises(DataError, match="stop"):
        decode_files(files(), decode, lambda number: None)
    assert drawn < 20_000


@given(
    st.lists(st.lists(st.sampled_from(["train", "test", "a", "b", "1.png", ".x", "c.txt"]), min_size=1, max_size=4)),
    st.lists(st.lists(st.sampled_from(["train", "test", "a", "b"]), min_size=1, max_size=3)),
)
def test_any_tree_gives_a_layout_or_a_data_error(files: list[list[str]], folders: list[list[str]]) -> None:
    paths = {"/".join(parts) for parts in files}
    try:
        layout = find_layout(list(paths), ["/".join(parts) for parts in folders], "f")
    except DataError as error:
        assert str(error).startswith("f: ")
        return
    found = [file for split in (layout.train, layout.test) for name in split for file in split[name]]
    assert len(found) == len(set(found)) and set(found) <= paths
    if layout.faults:
        assert all(str(fault) for fault in layout.faults)
        return
    assert all(files for split in (layout.train, layout.test) for files in split.values())
    assert not layout.test or layout.test.keys() == layout.train.keys()


def test_the_copy_of_cifar10_as_jpeg_is_named() -> None:
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    train, test = np.repeat(np.arange(10), 5000), np.repeat(np.arange(10), 1000)
    copy = RawSet(
        name="x",
        classes=names,
        train_images=np.zeros((50_000, 1, 1, 3), np.uint8),
        train_labels=train,
        test_images=np.zeros((10_000, 1, 1, 3), np.uint8),
        test_labels=test,
        notes=("60000 JPEG files",),
    )
    known = name_jpeg_copy(copy)
    assert known.notes[0].startswith("CIFAR-10 (JPEG): images encoded anew as JPEG, so accuracies are a little lower")
    assert known.licence.startswith("none stated by its authors")
    for other in (replace(copy, notes=("60000 PNG files",)), replace(copy, test_labels=np.sort(train)[:10_000])):
        assert name_jpeg_copy(other) == other


def test_the_transparent_grey_of_16_bits_becomes_white(tmp_path: Path) -> None:
    files = {}
    for number in range(10):
        picture, values = io.BytesIO(), np.full((8, 8), 30_000, np.uint16)
        values[:4] = 7
        Image.fromarray(values).save(picture, "PNG", transparency=7)
        files[f"{'ab'[number % 2]}/{number}.png"] = picture.getvalue()
    said: list[str] = []
    data = _load(tmp_path, files, say=said.append)
    assert (data.train_images[:, :4] == 255).all()
    assert len(np.unique(data.train_images[:, 4:])) == 1 and data.train_images[0, 7, 7, 0] < 255
    assert any("10 images with transparency were composited on white" in sentence for sentence in said)


def test_a_zip_that_does_not_say_how_its_names_are_encoded_gets_a_caution(tmp_path: Path) -> None:
    advice = "where that is wrong, pack it again with names in UTF-8, as zip on Linux, macOS and 7-Zip with -mcu=on do"
    doubt = "x: caution: the zip does not say how its names are encoded; "
    files = {f"K@tze{label}/{n}.png": data for label in "ab" for n, data in enumerate(_pngs(4))}
    for latin, cp437 in ((b"\xe4", "Σ"), (b"\x84", "ä")):
        (tmp_path / "x.zip").write_bytes(zipped(files).replace(b"K@", b"K" + latin))
        said: list[str] = []
        data = load_data(tmp_path / "x.zip", say=said.append)
        assert data.classes == (f"K{cp437}tzea", f"K{cp437}tzeb")
        assert f"{doubt}2 classes were read by code page 437 ('K{cp437}tzea', 'K{cp437}tzeb'): {advice}" in said
        assert advice in data.note
    named = {path.replace("K@", "K").replace("/", "/@"): data for path, data in files.items()}
    (tmp_path / "x.zip").write_bytes(zipped(named).replace(b"/@", b"/\xe4"))
    said = []
    assert load_data(tmp_path / "x.zip", say=said.append).classes == ("Ktzea", "Ktzeb")
    first = "'Ktzea/Σ0.png', 'Ktzea/Σ1.png', 'Ktzea/Σ2.png', ..."
    assert f"{doubt}8 files were read by code page 437 ({first}): {advice}" in said
    for plain in (files, {path.replace("@", "ä"): data for path, data in files.items()}):
        (tmp_path / "x.zip").write_bytes(without_utf8_flag(zipped(plain)))
        said = []
        load_data(tmp_path / "x.zip", say=said.append)
        assert not any("encoded" in line for line in said)


@pytest.mark.parametrize(
    ("folders", "answer", "option"),
    [
        (("train", "test"), "say --layout classes where test, train are the classes", {"layout": "classes"}),
        (("Train", "val"), "say --layout classes where Train, val are the classes", {"layout": "classes"}),
        (
            ("test",),
            "name the other one 'train', or say --layout classes where the folders (test) are the classes.",
            {"layout": "classes"},
        ),
        (("train/a", "train/b", "test"), "or say --split train where only 'train' has labels", {"split": "train"}),
    ],
)
def test_loose_images_in_split_folders_are_refused_with_the_option_that_reads_them(
    tmp_path: Path, folders: tuple[str, ...], answer: str, option: dict[str, Any]
) -> None:
    folder = write_folder(
        tmp_path / "x", {f"{name}/{n}.png": data for name in folders for n, data in enumerate(_pngs(4))}
    )
    with pytest.raises(DataError) as caught:
        load_data(folder)
    assert answer in str(caught.value)
    names = tuple(sorted({name.rpartition("/")[2] for name in folders} - ({"test"} if "split" in option else set())))
    assert load_data(folder, DataOptions(**option)).classes == names
