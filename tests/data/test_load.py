"""Named sets, arrays, splits, sizes and channels: `dim.data.load_data` and `dim.data.image_set`."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import (
    cifar_files,
    idx,
    image_file,
    matlab,
    npz,
    random_images,
    tarred,
    trust_cifar_files,
    without_cautions,
    write_folder,
    write_mnist,
)
from PIL import Image

from dim.data.files.official_files import OfficialFile
from dim.data.load import ImageSet, load_data
from dim.data.options import DataOptions
from dim.data.readers.cifar import BINARY_MD5
from dim.data.readers.known import KNOWN
from dim.runtime.errors import BadValueError, DataError


def _set(**changes: Any) -> ImageSet:
    values: dict[str, Any] = {
        "name": "x",
        "classes": ("a", "b"),
        "train_images": random_images(6, 8, 3),
        "train_labels": np.array([0, 1, 0, 1, 0, 1]),
        "test_images": random_images(2, 8, 3, seed=1),
        "test_labels": np.array([0, 1]),
        "licence": "",
        "note": "",
    }
    return ImageSet(**(values | changes))


def png(label: str) -> bytes:
    """A small picture."""
    return image_file(random_images(1, 8, 1, ord(label))[0])


@pytest.mark.slow
def test_digits_are_the_real_ones_with_a_split_that_is_said() -> None:
    said: list[str] = []
    digits = load_data("digits", say=said.append)
    assert digits.classes == tuple("0123456789")
    assert digits.train_images.shape == (1438, 8, 8, 1) and digits.test_images.shape == (359, 8, 8, 1)
    assert digits.train_images.dtype == np.uint8 and digits.train_labels.dtype == np.int64
    assert (digits.height, digits.width, digits.channels) == (8, 8, 1)
    assert digits.train_images.max() == 255
    assert "CC BY 4.0" in digits.licence
    split = "the source has no test split: 359 of 1797 images (20% of every class, seed 0) became one"
    assert said == [f"digits: {split}"] and split in digits.note


@pytest.mark.slow
def test_the_split_of_digits_never_changes() -> None:
    assert load_data("digits").fingerprint() == "d5626fb787d22d899a8fddeba81f24739103487f83b7b9bc12c7b05078934de0"


def test_the_split_is_stratified_disjoint_and_fixed_by_the_seed() -> None:
    first, again, other = load_data("digits"), load_data("digits"), load_data("digits", DataOptions(seed=2**64 - 1))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    for digits in (first, other):
        both = np.array(digits.class_counts) + np.bincount(digits.test_labels)
        assert both.sum() == 1797
        assert (np.abs(np.bincount(digits.test_labels) - 0.2 * both) <= 0.5).all()
        train = {row.tobytes() for row in digits.train_images}
        assert sum(row.tobytes() in train for row in digits.test_images) == 0


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", ["", "mnist", "MNIST/raw"])
def test_mnist_is_read_from_the_official_files(tmp_path: Path, place: str, packed: bool) -> None:
    write_mnist(tmp_path / place, packed=packed)
    said: list[str] = []
    mnist = load_data("mnist", data_dir=tmp_path, say=said.append)
    assert mnist.train_images.shape == (40, 28, 28, 1) and mnist.test_images.shape == (20, 28, 28, 1)
    assert np.array_equal(mnist.train_images[..., 0], random_images(40, 28, 1, seed=40)[..., 0])
    assert mnist.train_labels.tolist() == [n % 10 for n in range(40)]
    assert mnist.class_counts == (4,) * 10
    assert "differs from the published checksum" in mnist.note and len(without_cautions(said)) == 1
    assert mnist.licence.startswith("CC BY-SA 3.0")


def test_the_data_folder_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path)
    monkeypatch.setenv("DIM_DATA", str(tmp_path))
    assert load_data("fashion-mnist").classes[0] == "t-shirt"


def test_mnist_with_labels_of_another_set(tmp_path: Path) -> None:
    write_mnist(tmp_path, packed=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(39, np.uint8)))
    with pytest.raises(DataError, match="^mnist: 40 training images but 39 labels; the counts must be equal.$"):
        load_data("mnist", data_dir=tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.full(40, 10, np.uint8)))
    with pytest.raises(DataError, match="^mnist: training labels run from 10 to 10, expected 0 to 9 for 10 classes.$"):
        load_data("mnist", data_dir=tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx((np.arange(40) % 9).astype(np.uint8)))
    with pytest.raises(DataError, match="^mnist: class '9' has no training images; add some or remove the class.$"):
        load_data("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("unpacked", [False, True])
def test_cifar_from_every_official_form(
    tmp_path: Path, num_classes: int, binary: bool, unpacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    per_batch = 10 if num_classes == 10 else 100
    files = cifar_files(num_classes, per_batch, binary=binary)
    trust_cifar_files(files, monkeypatch)
    if unpacked:
        write_folder(tmp_path, files)
    else:
        kind = "binary" if binary else "python"
        (tmp_path / f"cifar-{num_classes}-{kind}.tar.gz").write_bytes(tarred(files, "w:gz"))
    cifar = load_data(f"cifar{num_classes}", data_dir=tmp_path)
    assert cifar.classes[:2] == ("class_000", "class_001") and len(cifar.classes) == num_classes
    assert cifar.class_counts == ((5,) * 10 if num_classes == 10 else (1,) * 100)
    assert np.array_equal(cifar.train_images[:per_batch], random_images(per_batch, 32, 3, seed=0))
    assert np.array_equal(cifar.test_images, random_images(per_batch, 32, 3, seed=5 if num_classes == 10 else 1))
    assert cifar.test_labels.tolist() == list(range(num_classes))


def test_a_folder_of_cifar_is_compared_with_the_published_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = cifar_files(10, 10, binary=True)
    write_folder(tmp_path, files)
    said: list[str] = []
    altered = load_data("cifar10", data_dir=tmp_path, say=said.append)
    assert said[0] == "cifar10: data_batch_1.bin differs from the published checksum"
    assert altered.note.startswith("CIFAR-10; data_batch_1.bin, data_batch_2.bin, ")
    for path, data in files.items():
        if path.endswith(".bin"):
            monkeypatch.setitem(BINARY_MD5, path.rpartition("/")[2], hashlib.md5(data).hexdigest())
    assert load_data("cifar10", data_dir=tmp_path).note == "CIFAR-10, official files (MD5 sums match)"
    monkeypatch.setitem(BINARY_MD5, "test_batch.bin", "0" * 32)
    assert (
        load_data("cifar10", data_dir=tmp_path).note == "CIFAR-10; test_batch.bin differs from the published checksum"
    )
    python = cifar_files(100, 100, binary=False)
    trust_cifar_files(python, monkeypatch)
    write_folder(tmp_path / "python", python)
    assert load_data("cifar100", data_dir=tmp_path / "python").note.endswith("official files (MD5 sums match)")
    write_folder(tmp_path / "hundred", cifar_files(100, 100, binary=True))
    note = load_data("cifar100", data_dir=tmp_path / "hundred").note
    assert note == "CIFAR-100, fine labels, folder cifar-100-binary, for whose files no checksum is published"


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_unpacked_idx_files_are_compared_with_their_own_checksums(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path, packed=False)
    known = KNOWN[name]
    assert all(file.unpacked_md5 for file in known.files)
    own = tuple(
        replace(file, unpacked_md5=hashlib.md5((tmp_path / file.name.removesuffix(".gz")).read_bytes()).hexdigest())
        for file in known.files
    )
    assert "differs from the published checksum" in load_data(name, data_dir=tmp_path).note
    monkeypatch.setitem(KNOWN, name, replace(known, files=own))
    assert load_data(name, data_dir=tmp_path).note.endswith("official files (MD5 sums match)")


def test_cifar_without_one_of_its_batches(tmp_path: Path) -> None:
    files = cifar_files(10, 10, binary=True)
    del files["cifar-10-batches-bin/data_batch_3.bin"]
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(tarred(files, "w:gz"))
    with pytest.raises(DataError, match=r"the file 'data_batch_3.bin' is missing from it; fetch the official archive"):
        load_data("cifar10", data_dir=tmp_path)


def _write_svhn(folder: Path) -> tuple[OfficialFile, ...]:
    """Small files of SVHN, labels 1 to 10 in turn."""
    files = []
    for part in ("train", "test"):
        images = random_images(20, 32, 3, seed=len(part))
        labels = (np.arange(20) % 10 + 1).astype(np.uint8)[:, None]
        data = matlab({"X": images.transpose(1, 2, 3, 0), "y": labels})
        (folder / f"{part}_32x32.mat").write_bytes(data)
        files.append(OfficialFile(name=f"{part}_32x32.mat", md5=hashlib.md5(data, usedforsecurity=False).hexdigest()))
    return tuple(files)


def test_svhn_from_its_matlab_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "svhn", replace(KNOWN["svhn"], files=_write_svhn(tmp_path)))
    svhn = load_data("svhn", data_dir=tmp_path)
    assert np.array_equal(svhn.train_images, random_images(20, 32, 3, seed=5))
    assert svhn.train_labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert svhn.train_labels.dtype == np.int64 and svhn.note == "SVHN, cropped digits, official files (MD5 sums match)"


def test_a_matlab_file_that_is_not_the_official_one_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_svhn(tmp_path)
    monkeypatch.setattr("scipy.io.loadmat", None)
    with pytest.raises(DataError) as caught:
        load_data("svhn", data_dir=tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/train_32x32.mat: the MD5 sum is not that of the official file, so it is not read; "
        "fetch it again, or save other images as an .npz or in class folders."
    )


def test_npz_with_and_without_classes_and_test_split(tmp_path: Path) -> None:
    images, labels = random_images(20, 16, 3), np.arange(20) % 4
    path = tmp_path / "birds.npz"
    path.write_bytes(npz(images=images, labels=labels, classes=np.array(["a", "b", "ü", "d"])))
    birds = load_data(str(path))
    assert birds.name == "birds" and birds.classes == ("a", "b", "ü", "d")
    assert birds.class_counts == (4, 4, 4, 4) and len(birds.test_labels) == 4
    path.write_bytes(npz(images=images[..., 0], labels=labels.astype(np.uint8)))
    assert load_data(str(path)).classes == ("0", "1", "2", "3")
    path.write_bytes(npz(images=images, labels=labels, test_images=images[:4], test_labels=labels[:4]))
    split = load_data(str(path))
    assert np.array_equal(split.train_images, images) and np.array_equal(split.test_images, images[:4])


def test_sizes_are_reached_by_cropping_and_resizing(tmp_path: Path) -> None:
    wide = np.zeros((10, 16, 30, 3), np.uint8)
    wide[:, :, 7:23] = random_images(10, 16, 3)
    path = tmp_path / "wide.npz"
    path.write_bytes(npz(images=wide, labels=np.arange(10) % 2))
    said: list[str] = []
    cropped = load_data(str(path), say=said.append)
    assert cropped.train_images.shape[1:] == (16, 16, 3)
    assert (
        "images of 30 x 16 pixels were resized to 16 x 16, cropped to the central square" in without_cautions(said)[-1]
    )
    expected = {row.tobytes() for row in random_images(10, 16, 3)}
    assert all(row.tobytes() in expected for row in cropped.train_images)
    small = load_data(str(path), DataOptions(size=8))
    reference = {
        np.asarray(Image.fromarray(row).resize((8, 8), Image.Resampling.BICUBIC)).tobytes()
        for row in random_images(10, 16, 3)
    }
    assert all(row.tobytes() in reference for row in small.train_images)
    assert load_data(str(path), DataOptions(size=128)).train_images.shape[1:] == (128, 128, 3)


def test_a_size_is_chosen_where_the_native_one_is_out_of_range(tmp_path: Path) -> None:
    path = tmp_path / "large.npz"
    for side, expected in ((200, 64), (4, 8), (130, 64), (128, 128), (9, 9)):
        path.write_bytes(npz(images=random_images(4, side, 1), labels=np.arange(4) % 2))
        assert load_data(str(path)).height == expected


def test_channels_are_converted_as_pillow_does(tmp_path: Path) -> None:
    path = tmp_path / "colour.npz"
    images = random_images(4, 8, 3)
    path.write_bytes(
        npz(images=images, labels=np.array([0, 1, 0, 1]), test_images=images, test_labels=np.array([0, 1, 0, 1]))
    )
    grey = load_data(str(path), DataOptions(channels=1))
    assert np.array_equal(grey.train_images[2, ..., 0], np.asarray(Image.fromarray(images[2]).convert("L")))
    path.write_bytes(npz(images=images[..., :1], labels=np.arange(4) % 2))
    colour = load_data(str(path), DataOptions(channels=3))
    assert colour.channels == 3 and (colour.train_images == colour.train_images[..., :1]).all()


def test_moments_and_counts_equal_the_obvious_ones() -> None:
    images = random_images(500, 8, 3)
    data = _set(train_images=images, train_labels=np.arange(500) % 2)
    assert data.class_counts == (250, 250)
    np.testing.assert_allclose(data.mean, (images / 255.0).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, (images / 255.0).std(axis=(0, 1, 2)), rtol=1e-12)


def test_the_fingerprint_covers_pixels_labels_classes_and_splits() -> None:
    base = _set()
    assert base.fingerprint() == _set(name="y", note="other", licence="other").fingerprint()
    fortran = _set(train_images=np.asfortranarray(base.train_images), train_labels=base.train_labels.astype(np.int32))
    assert base.fingerprint() == fortran.fingerprint()
    images = base.train_images.copy()
    images[3, 2, 1, 0] ^= 1
    others = [
        _set(train_images=images),
        _set(train_labels=base.train_labels[::-1].copy()),
        _set(classes=("a", "c")),
        _set(test_labels=np.array([1, 0])),
        _set(classes=("ab", "")),
    ]
    assert len({base.fingerprint(), *(other.fingerprint() for other in others)}) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 7}, "size is 7: it must be between 8 and 128 pixels"),
        ({"size": 129}, "size is 129: it must be between 8 and 128 pixels"),
        ({"channels": 2}, r"channels is 2: it must be 1 \(grey\) or 3 \(colour\)"),
        ({"size": "32"}, "size is '32': it must be between 8 and 128 pixels"),
        ({"channels": True}, "channels is True: it must be 1"),
        ({"bits": 8.5}, "bits is 8.5: it must be between 8 and 16"),
        ({"seed": "x"}, r"seed is 'x': it must be between 0 and 2\*\*64 - 1"),
        ({"replay_ipc": 1.5}, "replay_ipc is 1.5: it must be between 1 and 1000000"),
        ({"seed": -1}, r"seed is -1: it must be between 0 and 2\*\*64 - 1"),
        ({"seed": 2**64}, "seed is 18446744073709551616: it must be between"),
    ],
)
def test_values_out_of_range(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(BadValueError, match=f"^{message}"):
        DataOptions(**arguments)  # type: ignore[arg-type]


def test_an_unknown_name_lists_the_known_ones() -> None:
    expected = (
        r"^'cifar' is neither a known dataset \(cifar10, cifar100, digits, fashion-mnist, mnist, svhn\) "
        r"nor an existing path \(did you mean cifar10\?\)\.$"
    )
    with pytest.raises(DataError, match=expected):
        load_data("cifar")
    with pytest.raises(DataError, match="^'' is neither"):
        load_data("")
    with pytest.raises(DataError, match=r"\(did you mean fashion-mnist\?\)\.$"):
        load_data("fashon_mnist")
    with pytest.raises(DataError, match="nor an existing path; a dataset of the Hugging Face Hub is hf://user/birds.$"):
        load_data("user/birds")


@pytest.mark.parametrize("name", ["MNIST", "mnist ", "Mnist"])
def test_names_are_known_in_any_case_unless_a_folder_is_called_so(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "files")
    assert load_data(name, data_dir=tmp_path / "files").name == "mnist"
    assert load_data("Fashion_MNIST", data_dir=tmp_path / "files").classes[0] == "t-shirt"
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / name, {f"{label}/{n}.png": png(label) for label in "ab" for n in range(4)})
    assert load_data(name, data_dir=tmp_path / "files").classes == ("a", "b")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["a", "a"], "the class name 'a' appears twice"),
        (["a", "x/y"], "'x/y' cannot be a class name: use printable text without slashes"),
        (["a", ".."], r"'\.\.' cannot be a class name"),
        (["a", "b\n"], r"'b\\n' cannot be a class name"),
        (["a", "b" * 201], "is longer than 200 bytes"),
        (["a", "b", "c"], "class 'c' has no training images"),
    ],
)
def test_classes_that_cannot_be(tmp_path: Path, classes: list[str], message: str) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(npz(images=random_images(6, 8, 1), labels=np.arange(6) % min(2, len(classes)), classes=classes))
    with pytest.raises(DataError, match=message):
        load_data(str(path))


def test_one_class_is_read_with_a_warning(tmp_path: Path) -> None:
    caution = (
        "'cat' is the only class, so classifiers have nothing to tell apart: images are matched by untrained features, "
        "and accuracies say nothing"
    )
    (tmp_path / "x.npz").write_bytes(
        npz(images=random_images(200, 8, 1), labels=np.zeros(200, np.int64), classes=["cat"])
    )
    write_folder(tmp_path / "plain", {f"cat/{n:03d}.png": png("a") for n in range(200)})
    write_folder(tmp_path / "deep", {f"pets/cat/{n:03d}.png": png("a") for n in range(200)})
    write_folder(tmp_path / "split", {f"{s}/cat/{n:03d}.png": png("a") for n in range(200) for s in ("train", "test")})
    for name in ("x.npz", "plain", "deep", "split"):
        said: list[str] = []
        data = load_data(str(tmp_path / name), say=said.append)
        assert data.classes == ("cat",) and len(data.train_images) >= 160
        assert [line for line in said if "only class" in line] == [f"{data.name}: caution: {caution}"]
    # Images without a folder, and a split without classes, have no class at all.
    for name, folder in (("bare", ""), ("unlabelled", "train/")):
        write_folder(tmp_path / name, {f"{folder}{n}.png": png("a") for n in range(20)})
        with pytest.raises(DataError, match=r"no class folders found|no image|outside of any class folder"):
            load_data(str(tmp_path / name))


def test_class_names_are_composed_and_those_that_cannot_be_folders_are_said(tmp_path: Path) -> None:
    path = tmp_path / "x\n.npz"
    said: list[str] = []
    path.write_bytes(npz(images=random_images(6, 8, 1), labels=np.arange(6) % 2, classes=["u\u0308", "con"]))
    data = load_data(str(path), say=said.append)
    assert data.classes == ("ü", "con") and data.name == "x_"
    assert said[0].startswith("x_: The class 'con' cannot be the name of a folder; write the set as npz, npy, parquet")
    path.write_bytes(npz(images=random_images(6, 8, 1), labels=np.arange(6) % 2, classes=["u\u0308", "ü"]))
    with pytest.raises(DataError, match="the class name 'ü' appears twice"):
        load_data(str(path))


def test_a_class_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(npz(images=random_images(4, 8, 1), labels=np.array([0, 1, 1, 1])))
    with pytest.raises(DataError, match="class '0' has 1 image and the source has no test split"):
        load_data(str(path))


def test_every_known_set_states_its_licence_and_checksums() -> None:
    assert sorted(KNOWN) == ["cifar10", "cifar100", "digits", "fashion-mnist", "mnist", "svhn"]
    for name, known in KNOWN.items():
        assert known.title and known.licence
        assert bool(known.files) == (name != "digits") == bool(known.mirrors)
        for file in known.files:
            assert len(file.md5) == 32 and int(file.md5, 16)
        assert all(mirror.endswith("/") for mirror in known.mirrors)


def test_a_set_knows_where_it_was_read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.zeros((20, 8, 8, 1), dtype=np.uint8)
    images[::2] = 200
    np.savez("photos.npz", images=images, labels=np.arange(20) % 2)
    read = load_data("photos.npz", data_dir=".")
    assert (read.places, read.data_dir) == ((str(tmp_path / "photos.npz"),), str(tmp_path))
    monkeypatch.chdir(tmp_path.parent)
    assert load_data(list(read.places)).fingerprint() == read.fingerprint()
    assert load_data((images, np.arange(20) % 2)).places == ()
