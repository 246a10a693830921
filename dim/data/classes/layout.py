"""Finds the splits and the classes in a tree of image files.

Read without a question: `train/<class>/*` beside `test/<class>/*`, and `<class>/*` alone. Split folders are known by
their usual names in any case (`Train`, `TESTING`, `train_images`, `val`). A single top folder is looked through. Trees
that can be read in two ways are refused with the value of `--layout` that answers for each.
"""

import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field

from dim.data.files.names import EXTENSIONS, extension_of, is_passed_over, suggest_format
from dim.data.options import AUTO, CLASSES, GROUPS, SPLITS, SPLITS_BELOW
from dim.runtime.errors import DataError

_ROLES = {
    **dict.fromkeys(("train", "training", "trainset", "trainingset", "trn"), "train"),
    **dict.fromkeys(("test", "testing", "testset", "tst"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "validationset", "dev", "eval"), "validation"),
}
_FILLERS = frozenset(("image", "images", "img", "imgs", "picture", "pictures", "set", "split", "data", "dataset"))
_SIDECARS = frozenset((".txt", ".md", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".html"))
_SHOWN = 3


@dataclass(frozen=True)
class Fault:
    """What is wrong with some files or folders of a tree, all in the same way."""

    sentence: str
    """Names the first of them and says what to do."""
    others: tuple[str, ...] = ()
    """The names of the others."""

    def __str__(self) -> str:
        if not self.others:
            return self.sentence
        return f"{self.sentence} ({len(self.others)} more like it: {list_first(self.others)})"


@dataclass(frozen=True)
class Layout:
    """Where the images of a tree lie: per split, per class, their sorted paths."""

    train: dict[str, list[str]]
    test: dict[str, list[str]]
    remarks: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    heeds: frozenset[str] = frozenset()
    """Fields of `DataOptions` that had a say in it."""
    origin: str = ""
    """The table that the labels are from."""
    answer: str = ""
    """The option that asks for this reading, as in `--layout classes`."""


@dataclass
class _Folder:
    folders: "dict[str, _Folder]" = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    """Paths from the top of the tree."""

    def all_files(self) -> list[str]:
        below = [file for folder in self.folders.values() for file in folder.all_files()]
        return sorted([*self.files, *below])

    def list_images(self) -> list[str]:
        return [file for file in self.files if extension_of(file) in EXTENSIONS]

    def has_images(self) -> bool:
        return bool(self.list_images()) or any(folder.has_images() for folder in self.folders.values())

    def list_filled(self) -> list[str]:
        """Names of the folders in it with images at any depth."""
        return [name for name, folder in self.folders.items() if folder.has_images()]


@dataclass
class _Findings:
    asked: tuple[str, ...] = ()
    """Names of the splits that the user asked for, training first."""
    remarks: list[str] = field(default_factory=list)
    sidecars: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    joined: list[str] = field(default_factory=list)
    """Folders in class folders whose images were joined with others of the class."""
    faults: list[Fault] = field(default_factory=list)


def split_role(name: str) -> str:
    """Return "train", "test" or "validation" for a folder that is named like a split, else ""."""
    words = [word for word in re.split(r"[\s_.\-]+", name.casefold()) if word and word not in _FILLERS]
    return _ROLES.get(re.sub(r"20\d\d$", "", words[0]), "") if len(words) == 1 else ""


def find_asked_splits(names: Iterable[str], asked: str, where: str) -> tuple[str, ...]:
    """Find the splits that the user asked for.

    Args:
        names: of the splits that there are.
        asked: one name, or two joined by a comma, training first.
        where: stands for the source in messages.

    Returns:
        one name or two that differ.

    Raises:
        DataError: one of them is not there, or `asked` is of another form.
    """
    listed = ", ".join(names := list(names)) or "none"
    wanted = tuple(name.strip() for name in asked.split(","))
    missing = [name for name in wanted if name not in names]
    if len(wanted) > 2 or missing or len(set(wanted)) < len(wanted):
        bad = missing[0] if missing and len(wanted) <= 2 else asked
        raise DataError(f"{where}: no split '{bad}' (found: {listed}); say --split TRAIN or --split TRAIN,TEST.")
    return wanted


def list_first(names: Iterable[str]) -> str:
    """Write the first names of many, and that there are more."""
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def find_layout(
    files: list[str], folders: list[str], source: str, layout: str = AUTO, split: str | None = None
) -> Layout:
    """Find splits and classes among the paths of a tree.

    Args:
        files: relative paths of all files.
        folders: relative paths of folders, to find classes without images; may be incomplete.
        source: stands for the tree in messages.
        layout: one of `LAYOUTS`.
        split: folders to read as splits, one name or two joined by a comma; None for those with usual names.

    Returns:
        the files by split and class, with all that is wrong with them.

    Raises:
        DataError: no class folders, no such split, or a tree that can be read in two ways.
    """
    findings = _Findings(asked=() if split is None else tuple(name.strip() for name in split.split(",")))
    top = _look_through(_build_tree(files, folders), layout, findings)
    if not top.folders:
        raise DataError(
            f"{source}: no class folders found; expected train/<class>/<images> or <class>/<images>"
            f"{suggest_format(files) or _suggest_above(top, source)}."
        )
    if split is not None:
        if layout == AUTO:
            layout = SPLITS if set(findings.asked) & set(top.folders) else _guess_where_splits_lie(top, findings.asked)
        if layout not in (SPLITS, SPLITS_BELOW):
            raise DataError(f"{source}: --layout {layout} has no splits; leave out --split.")
        above = [top] if layout == SPLITS else [top.folders[name] for name in top.list_filled()]
        find_asked_splits(sorted({name for folder in above for name in folder.list_filled()}), split, source)
    if layout == AUTO:
        layout = _guess_layout(top, source, findings)
    read = {CLASSES: _read_classes, SPLITS: _read_splits, SPLITS_BELOW: _read_splits_below, GROUPS: _read_groups}
    train, test = read[layout](top, source, findings)
    if joined := list(dict.fromkeys(findings.joined)):
        findings.remarks.append(
            f"{len(joined)} folders in class folders were read as part of their class ({list_first(joined)})"
        )
    if findings.sidecars:
        count, first = len(findings.sidecars), findings.sidecars[0]
        findings.remarks.insert(0, f"{count} text files beside images were passed over ({first})")
    if names := findings.strays:
        outside = "an image outside of any class folder; move it into its class"
        findings.faults.append(
            Fault(f"{names[0]}: {outside}{_suggest(top, findings, train, test, layout)}", tuple(names[1:]))
        )
    if names := findings.empty:
        sentence = f"the class folder '{names[0]}' has no images; add some or remove it"
        findings.faults.append(Fault(sentence, tuple(names[1:])))
    findings.faults += _compare_splits(train, test)
    heeds, answer = frozenset(("layout", "split")), f"--layout {layout}"
    return Layout(train, test, tuple(findings.remarks), tuple(findings.faults), heeds, answer=answer)


def _suggest_above(top: _Folder, source: str) -> str:
    """Say that a folder of images may be a class of the folder above it, as the end of a sentence."""
    if not any("/" not in image for image in top.list_images()) or not os.path.isdir(source):
        return ""
    above = shlex.quote(os.path.normpath(os.path.join(source, "..")))
    return f"; it holds images itself: write --data {above} if it is one class of the set there"


def _suggest(
    top: _Folder, findings: _Findings, train: dict[str, list[str]], test: dict[str, list[str]], layout: str
) -> str:
    """Say which option reads a tree whose split folders hold images and no class folders."""
    filled = top.list_filled()
    if layout != SPLITS or findings.asked or test or len(filled) < 2:
        return ""
    if not train:
        return f", or say --layout {CLASSES} where {list_first(filled)} are the classes"
    first = next(name for name in filled if split_role(name) == "train")
    return f", or say --split {first} where only '{first}' has labels"


def find_only_class(files: list[str], folders: list[str], source: str) -> Layout | None:
    """Read a tree whose images lie in one folder, not named like a split, as one class; None for any other tree."""
    top = _look_through(_build_tree(files, folders), CLASSES, _Findings())
    if len(top.folders) != 1 or split_role(*top.folders) or not top.list_filled():
        return None
    return find_layout(files, folders, source, CLASSES)


def _build_tree(files: list[str], folders: list[str]) -> _Folder:
    top = _Folder()

    def open_folder(parts: list[str]) -> _Folder:
        folder = top
        for part in parts:
            folder = folder.folders.setdefault(part, _Folder())
        return folder

    for path in sorted(folders):
        if not is_passed_over(path):
            open_folder(path.split("/"))
    for path in sorted(files):
        if not is_passed_over(path):
            open_folder(path.split("/")[:-1]).files.append(path)
    return top


def _look_through(top: _Folder, layout: str, findings: _Findings) -> _Folder:
    """Return the folder that holds splits or classes: below any single folder that is not a split."""
    strays: list[str] = []
    while len(top.folders) == 1:
        ((name, inner),) = top.folders.items()
        if split_role(name) or name in findings.asked or (layout == CLASSES and not inner.folders):
            break
        strays += top.list_images()
        top = inner
    if strays and top.folders:
        findings.remarks.append(f"{len(strays)} images above the class folders were passed over ({strays[0]})")
    return top


def _guess_layout(top: _Folder, source: str, findings: _Findings) -> str:
    roles = {name: split_role(name) for name in top.list_filled()}
    trains = [name for name, role in roles.items() if role == "train"]
    tests = [name for name, role in roles.items() if role in ("test", "validation")]
    others = [name for name, role in roles.items() if not role]
    nested = [name for name in (*trains, *tests) if top.folders[name].list_filled()]
    if not trains and not tests:
        _ask_about_groups(top, source)
        _ask_about_splits_below(top, source)
        return CLASSES
    if trains and tests and nested:
        return SPLITS
    if not others:
        if not trains:
            raise DataError(
                f"{source}: a test folder without a train folder beside it; name the other one 'train', or say "
                f"--layout {CLASSES} where the folders ({list_first(tests)}) are the classes."
            )
        return SPLITS
    if not tests and not nested:
        findings.remarks.append(f"the folder '{trains[0]}' lies beside '{others[0]}' and is read as a class")
        return CLASSES
    both = ""
    if trains and not tests and top.folders[others[0]].list_filled():
        both = f", or --split {trains[0]},{others[0]} where '{others[0]}' is the test split"
    raise DataError(
        f"{source}: '{(*trains, *tests)[0]}' is named like a split and lies beside '{others[0]}': say --layout "
        f"{CLASSES} where every top folder is a class, or --layout {SPLITS} where the classes lie in the splits{both}."
    )


def _guess_where_splits_lie(top: _Folder, asked: tuple[str, ...]) -> str:
    below = not any(split_role(name) for name in top.folders) and any(
        name in folder.folders for folder in top.folders.values() for name in asked
    )
    return SPLITS_BELOW if below else SPLITS


def _ask_about_groups(top: _Folder, source: str) -> None:
    """Refuse top folders that all hold the same sub-folders: either may be the classes."""
    filled = [_look_into(top.folders[name]) for name in top.list_filled()]
    inner = sorted({name for folder in filled for name in folder.list_filled()})
    same = all(sorted(folder.list_filled()) == inner and not folder.list_images() for folder in filled)
    if len(filled) < 2 or len(inner) < 2 or not same:
        return
    if any(split_role(name) == "train" for name in inner):
        below = f"--layout {SPLITS_BELOW} where those are the splits of each"
    else:
        below = f"--layout {GROUPS} where those are the classes, or --split TRAIN,TEST where the top ones are splits"
    raise DataError(
        f"{source}: the top folders ({list_first(top.list_filled())}) all hold the same folders ({list_first(inner)}): "
        f"say --layout {CLASSES} where the top ones are the classes, or {below}."
    )


def _ask_about_splits_below(top: _Folder, source: str) -> None:
    """Refuse a top folder that holds both a training and a test split: its images would become one class."""
    for name in top.list_filled():
        splits = [inner for inner in top.folders[name].list_filled() if split_role(inner)]
        if len({split_role(inner) for inner in splits} - {"validation"}) == 2:
            raise DataError(
                f"{source}: '{name}' holds folders named like splits ({list_first(sorted(splits))}): name that folder "
                f"alone where it is the set, or say --layout {SPLITS_BELOW} where every class has its splits, or "
                f"--layout {CLASSES} where all its images are one class."
            )


def _look_into(folder: _Folder) -> _Folder:
    """Return what a folder holds; a single folder of folders in it is looked through."""
    while len(filled := folder.list_filled()) == 1 and not folder.list_images():
        if not folder.folders[filled[0]].list_filled():
            break
        folder = folder.folders[filled[0]]
    return folder


_Split = dict[str, list[str]]


def _read_classes(top: _Folder, source: str, findings: _Findings) -> tuple[_Split, _Split]:
    return _read_split(top, findings), {}


def _read_splits(top: _Folder, source: str, findings: _Findings) -> tuple[_Split, _Split]:
    by_role: dict[str, list[str]] = {"train": [], "test": [], "validation": [], "": []}
    for name in sorted(top.folders):
        by_role[split_role(name)].append(name)
    for role in ("train", "test", "validation"):
        filled = [name for name in by_role[role] if top.folders[name].has_images()]
        by_role[role] = filled or by_role[role][:1]
        if len(filled) > 1 and not findings.asked:
            raise DataError(
                f"{source}: the folders {list_first(filled)} are all named like the {role} split: "
                "merge them or move all but one elsewhere."
            )
    if findings.asked:
        by_role = {"train": [findings.asked[0]], "test": list(findings.asked[1:]), "validation": []}
    if not by_role["train"]:
        raise DataError(f"{source}: no folder is named like a training split; name it 'train'.")
    test = next((name for role in ("test", "validation") for name in by_role[role]), None)
    (train,) = by_role["train"]
    others = sorted(set(top.folders) - {train, test})
    train_classes = _read_split(_enter_split(top, train), findings)
    test_classes = {} if test is None else _read_split(_enter_split(top, test), findings)
    if test is not None and split_role(test) == "validation" and not findings.asked:
        findings.remarks.append(f"the folder '{test}' serves as test split")
    if test is not None and not test_classes:
        findings.remarks.append(f"the folder '{test}' has no class folders and is passed over")
    if others:
        findings.remarks.append(f"passed over beside the splits: {', '.join(others[:5])}")
    findings.strays += top.list_images()
    return train_classes, test_classes


def _enter_split(top: _Folder, name: str) -> _Folder:
    """Return a split's folder; `train/train/<class>`, as some archives have it, is looked through."""
    folder = top.folders[name]
    while len(folder.folders) == 1 and not folder.list_images():
        ((inner, below),) = folder.folders.items()
        if inner != name and (not split_role(name) or split_role(inner) != split_role(name)):
            break
        folder = below
    return folder


def _read_splits_below(top: _Folder, source: str, findings: _Findings) -> tuple[_Split, _Split]:
    train: _Split = {}
    test: _Split = {}
    others: list[str] = []
    findings.strays += top.list_images()
    for name in sorted(top.folders):
        for inner, folder in sorted(top.folders[name].folders.items()):
            role = _role_asked(inner, findings.asked) if findings.asked else split_role(inner)
            split = {"train": train, "test": test, "validation": test}.get(role)
            if split is None or (role == "validation" and name in test):
                others.append(f"{name}/{inner}")
            else:
                split[name] = _pick_files(folder, findings)
        findings.strays += top.folders[name].list_images()
        if not train.get(name):
            findings.empty.append(name)
    if others:
        findings.remarks.append(f"passed over beside the splits: {', '.join(others[:5])}")
    return train, test


def _role_asked(name: str, asked: tuple[str, ...]) -> str:
    return dict(zip(asked, ("train", "test"), strict=False)).get(name, "")


def _read_groups(top: _Folder, source: str, findings: _Findings) -> tuple[_Split, _Split]:
    united = _Folder(files=top.files)
    for group in map(_look_into, top.folders.values()):
        united.files = united.files + group.files
        for name, folder in group.folders.items():
            united.folders.setdefault(name, _Folder()).files += folder.all_files()
    return _read_split(united, findings), {}


def _read_split(folder: _Folder, findings: _Findings) -> _Split:
    """Take the folders in a folder for classes."""
    findings.strays += folder.list_images()
    classes = {name: _pick_files(folder.folders[name], findings) for name in sorted(folder.folders)}
    findings.empty += [name for name, files in classes.items() if not files]
    for name in classes:
        if len(below := _look_into(folder.folders[name]).list_filled()) > 1:
            findings.joined += [f"{name}/{sub}" for sub in below]
    return classes


def _pick_files(folder: _Folder, findings: _Findings) -> list[str]:
    """List a class's files; what is no image by its name stays, so that it is told."""
    files = folder.all_files()
    findings.sidecars += [file for file in files if extension_of(file) in _SIDECARS]
    return [file for file in files if extension_of(file) not in _SIDECARS]


def _compare_splits(train: _Split, test: _Split) -> list[Fault]:
    if not test:
        return []
    faults = []
    for here, there, where in ((train, test, "training"), (test, train, "test")):
        odd = [name for name in here if name not in there]
        if odd:
            sentence = f"the class '{odd[0]}' is in the {where} split only; both splits need the same class folders"
            faults.append(Fault(sentence, tuple(odd[1:])))
    return faults
