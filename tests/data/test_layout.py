"""Which folders are splits and which are classes."""

import subprocess
import sys
from pathlib import Path

import pytest
from data_samples import class_folders, write_folder

from dim.data.classes.layout import find_layout, split_role
from dim.data.load import load_data
from dim.data.options import DataOptions
from dim.runtime.errors import BadValueError, DataError


def _tree(*folders: str) -> list[str]:
    return [f"{folder}/{number}.png" for folder in folders for number in (1, 2)]


def _classes(*folders: str, layout: str = "auto") -> tuple[list[str], list[str], list[str]]:
    """Classes of the training split, of the test split, and the remarks."""
    found = find_layout(_tree(*folders), [], "P", layout)
    assert not found.faults
    return list(found.train), list(found.test), list(found.remarks)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("Training", "Testing"),
        ("train", "Test"),
        ("train_images", "test_images"),
        ("images-train", "images-test"),
        ("Training_set", "Test set"),
        ("trainset", "testset"),
        ("train", "val"),
        ("TRAIN", "Validation"),
        ("train_data", "dev"),
        ("train2017", "val2017"),
    ],
)
@pytest.mark.parametrize("above", ["", "pets/"])
def test_splits_are_known_by_their_usual_names(train: str, test: str, above: str) -> None:
    folders = [f"{above}{split}/{name}" for split in (train, test) for name in ("cat", "dog")]
    found = find_layout(_tree(*folders), [], "P")
    assert found.train == {name: _tree(f"{above}{train}/{name}") for name in ("cat", "dog")}
    assert found.test == {name: _tree(f"{above}{test}/{name}") for name in ("cat", "dog")}


def test_words_that_only_resemble_a_split_are_none() -> None:
    for name in (
        "trainer",
        "bullet train",
        "train_station",
        "train2",
        "2017",
        "contest",
        "testudo",
        "value",
        "images",
        "set",
        "",
    ):
        assert split_role(name) == ""


def test_a_test_folder_wins_over_validation_and_doubled_splits_are_refused() -> None:
    both = [f"{split}/{name}" for split in ("train", "test", "valid") for name in ("a", "b")]
    assert _classes(*both) == (["a", "b"], ["a", "b"], ["passed over beside the splits: valid"])
    doubled = [f"{split}/{name}" for split in ("train", "Training", "test") for name in ("a", "b")]
    with pytest.raises(DataError, match="^P: the folders Training, train are all named like the train split: merge"):
        find_layout(_tree(*doubled), [], "P")


def test_a_split_folder_in_itself_is_looked_through() -> None:
    folders = [f"{split}/{split}/{name}" for split in ("train", "test") for name in ("a", "b")]
    assert _classes(*folders)[:2] == (["a", "b"], ["a", "b"])


def test_a_class_called_train_stays_one_and_is_asked_about_where_it_holds_folders() -> None:
    remark = "the folder 'train' lies beside 'bus' and is read as a class"
    assert _classes("bus", "car", "train") == (["bus", "car", "train"], [], [remark])
    for folders in (
        ("bus", "car", "train/steam", "train/tram"),
        ("bus/red", "bus/blue", "train/steam", "train/tram"),
        ("cat", "dog", "test"),
        ("cat", "dog", "val/cat", "val/dog"),
        ("train", "test", "bus"),
    ):
        with pytest.raises(DataError) as caught:
            find_layout(_tree(*folders), [], "P")
        assert "is named like a split and lies beside" in str(caught.value)
        assert "say --layout classes where every top folder is a class, or --layout splits/classes" in str(caught.value)
    assert _classes("bus", "car", "train/steam", "train/tram", layout="classes")[0] == ["bus", "car", "train"]
    assert _classes("bus", "train/a", "train/b", layout="splits/classes") == (
        ["a", "b"], [], ["passed over beside the splits: bus"]
    )  # fmt: skip


def test_folders_that_all_hold_the_same_folders_are_asked_about() -> None:
    sites = ("north/cat", "north/dog", "south/cat", "south/dog")
    with pytest.raises(DataError) as caught:
        find_layout(_tree(*sites), [], "P")
    assert str(caught.value) == (
        "P: the top folders (north, south) all hold the same folders (cat, dog): say --layout classes where the top "
        "ones are the classes, or --layout groups/classes where those are the classes, or --split TRAIN,TEST where "
        "the top ones are splits."
    )
    assert _classes(*sites, layout="classes")[0] == ["north", "south"]
    united = find_layout(_tree(*sites), [], "P", "groups/classes")
    assert united.train == {name: _tree(f"north/{name}", f"south/{name}") for name in ("cat", "dog")}

    inside = ("cat/train", "cat/test", "dog/train", "dog/test")
    with pytest.raises(DataError, match="or --layout classes/splits where those are the splits of each.$"):
        find_layout(_tree(*inside), [], "P")
    below = find_layout(_tree(*inside), [], "P", "classes/splits")
    assert below.train == {name: _tree(f"{name}/train") for name in ("cat", "dog")}
    assert below.test == {name: _tree(f"{name}/test") for name in ("cat", "dog")}
    # One folder of the same name in each class asks nothing: Tiny ImageNet has `images` there.
    assert _classes("n1/images", "n2/images") == (["n1", "n2"], [], [])


def test_images_above_the_classes_are_said() -> None:
    found = find_layout([*_tree("data/a", "data/b"), "preview.png"], [], "P")
    assert found.remarks == ("1 images above the class folders were passed over (preview.png)",)


def test_droppings_of_file_managers_and_devices_are_passed_over() -> None:
    more = ["a/@eaDir/1.png/x.png", "@eaDir/1.png", "#recycle/1.png", "a/thumbs.db", "lost+found/2.png", ".t/3.png"]
    assert find_layout([*_tree("a", "b"), *more], ["a/@eaDir", "$RECYCLE.BIN"], "P").train == {
        name: _tree(name) for name in ("a", "b")
    }


def test_all_faults_are_told_at_once_with_counts_and_first_names(tmp_path: Path) -> None:
    files = class_folders() | {
        "train/x.png": b"",
        "train/cat/1.heic": b"1",
        "train/cat/2.heic": b"1",
        "train/cat/e.png": b"",
        **{f"train/dog/{n}.jpg": b"abc" for n in range(5)},
        "test/emu/1.png": class_folders()["train/cat/0000.png"],
    }
    folder = write_folder(tmp_path / "d", files)
    (folder / "train" / "gnu").mkdir()
    with pytest.raises(DataError) as caught:
        load_data(str(folder))
    assert str(caught.value).replace(str(folder), "P").split("; also ") == [
        "P: train/x.png: an image outside of any class folder; move it into its class",
        "the class folder 'gnu' has no images; add some or remove it",
        "the class 'gnu' is in the training split only; both splits need the same class folders",
        "the class 'emu' is in the test split only; both splits need the same class folders",
        "train/cat/1.heic: not an image by its name; remove it or move it out of the class folder "
        "(1 more like it: train/cat/2.heic)",
        "train/cat/e.png: an empty file, expected an image",
        "train/dog/0.jpg: not a readable image: expected PNG, JPEG, WebP, GIF, BMP, TIFF or PPM "
        "(4 more like it: train/dog/1.jpg, train/dog/2.jpg, train/dog/3.jpg, ...).",
    ]


def test_faults_of_a_folder_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d", {"a/1.png": b"", "b/1.png": b""})
    program = (
        "import sys\nfrom dim.cli.main import main\n"
        f"sys.argv = ['dim', 'distill', '--data', {str(folder)!r}]\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n" and "a/1.png: an empty file, expected an image" in done.stderr


def test_another_layout_is_refused() -> None:
    with pytest.raises(
        BadValueError, match="^layout is 'x': it must be one of auto, classes, splits/classes, classes/s"
    ):
        load_data("digits", DataOptions(layout="x"))


def _split(*folders: str, split: str, layout: str = "auto") -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    found = find_layout(_tree(*folders), [], "P", layout, split)
    assert not found.faults
    return found.train, found.test


def test_splits_that_are_asked_for_are_read_and_no_others() -> None:
    names = ("a", "b")
    folders = [f"{split}/{name}" for split in ("train", "val", "test", "fold 1") for name in names]
    for train, test in (("train", "val"), ("test", "train"), ("fold 1", "val")):
        assert _split(*folders, split=f"{train}, {test}") == (
            {name: _tree(f"{train}/{name}") for name in names},
            {name: _tree(f"{test}/{name}") for name in names},
        )
    assert _split(*folders, split="val") == ({name: _tree(f"val/{name}") for name in names}, {})
    below = [f"{name}/{split}" for split in ("train", "val", "test") for name in names]
    for layout in ("auto", "classes/splits"):
        assert _split(*below, split="train,val", layout=layout) == (
            {name: _tree(f"{name}/train") for name in names},
            {name: _tree(f"{name}/val") for name in names},
        )
    doubled = [f"{split}/{split}/{name}" for split in ("seg_train", "seg_test") for name in names]
    assert _split(*doubled, split="seg_train,seg_test")[1] == {
        name: _tree(f"seg_test/seg_test/{name}") for name in names
    }


@pytest.mark.parametrize("split", ["nope", "train,nope", "train,TEST", "train,train", "train,val,test", "", ",", "a,b"])
def test_a_split_that_is_not_there_is_refused(split: str) -> None:
    folders = [f"{name}/{inner}" for name in ("train", "val", "test") for inner in ("a", "b")]
    with pytest.raises(DataError, match=r"^P: no split '.*' \(found: .*test, train, val\); say --split TRAIN or"):
        find_layout(_tree(*folders), [], "P", "auto", split)


def test_a_layout_without_splits_takes_none() -> None:
    with pytest.raises(DataError, match="^P: --layout classes has no splits; leave out --split.$"):
        find_layout(_tree("a", "b"), [], "P", "classes", "a")


def test_groups_below_single_folders_are_asked_about_too() -> None:
    doubled = [f"{name}/{name}/{inner}" for name in ("seg_train", "seg_test") for inner in ("sea", "wood")]
    with pytest.raises(DataError, match=r"^P: the top folders \(seg_test, seg_train\) all hold the same folders"):
        find_layout(_tree(*doubled), [], "P")
    assert _classes(*doubled, layout="groups/classes")[0] == ["sea", "wood"]
    assert _classes("cat/images", "dog/images")[0] == ["cat", "dog"]


def test_splits_below_some_folders_only_are_asked_about() -> None:
    for folders in (
        ("a/train", "a/test", "b/train", "b/test", "c"),
        ("images/train/a", "images/train/b", "images/test/a", "images/test/b", "masks/train/a"),
    ):
        with pytest.raises(
            DataError, match=r"^P: '\w+' holds folders named like splits \(test, train\): name that folder"
        ):
            find_layout(_tree(*folders), [], "P")
    assert _classes("a/train", "a/test", "b", layout="classes")[0] == ["a", "b"]
    assert _classes("vehicle/train", "vehicle/car", "animal")[0] == ["animal", "vehicle"]
