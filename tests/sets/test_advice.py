"""What a refusal of `generate` advises is true: every way out that it names ends in the set that was asked for."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from set_tools import generate, tree

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.errors import OutputError
from dim.runtime.sets.verify_set import verify_set

COUNTS = (3, 2, 1)
ASKED = {"counts": COUNTS, "seed": 1}
AWAY = re.compile(r"move ((?:'[^']+'(?:, )?)+) away and use --overwrite")
WAYS = ("another folder", "move this one away", "use --overwrite", "the arguments that began it")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, engine="fake") as opened:
        yield opened


def break_plan(change: Callable[[dict[str, Any]], object] | bytes) -> Callable[[Path], object]:
    def apply(out: Path) -> None:
        place = out / "dataset.json"
        if isinstance(change, bytes):
            place.write_bytes(change)
        else:
            block = json.loads(place.read_bytes())
            change(block)
            place.write_text(json.dumps(block))

    return apply


def make_pipe(out: Path) -> None:
    (out / "dataset.json").unlink()
    os.mkfifo(out / "dataset.json")


def make_folder(out: Path) -> None:
    (out / "dataset.json").rename(out / "plan")
    (out / "dataset.json").mkdir()
    (out / "plan").rename(out / "dataset.json" / "plan")


def make_link(out: Path) -> None:
    (out / "dataset.json").rename(out.parent / "plan")
    (out / "dataset.json").symlink_to(out.parent / "plan")


def lose_plan(out: Path) -> None:
    (out / "dataset.json").unlink()


def leave_mine(out: Path) -> None:
    (out / "one" / "mine.txt").write_text("keep me")


BROKEN: dict[str, Callable[[Path], object]] = {
    "empty": break_plan(b""),
    "cut": break_plan(b'{"format_version": 1, "plan"'),
    "no object": break_plan(b"[]"),
    "a lost field": break_plan(lambda block: block.pop("created_by")),
    "an unknown field": break_plan(lambda block: block.update(more=1)),
    "a wrong type": break_plan(lambda block: block["plan"].update(seed="0")),
    "a plan that cannot be": break_plan(lambda block: block["plan"].update(counts=[2**32] * 3, part_images=1)),
    "another version": break_plan(lambda block: block.update(format_version=0)),
    "an absurd version": break_plan(lambda block: block.update(format_version=int("1" * 30))),
    "a pipe": make_pipe,
    "a folder": make_folder,
    "a link": make_link,
}
OTHER: dict[str, dict[str, Any]] = {
    "another seed": {"counts": COUNTS, "seed": 2},
    "another format": {"counts": COUNTS, "format": "npz"},
    "begun": {"counts": COUNTS, "seed": 2, "shard": (0, 2), "format": "npy", "shard_images": 2},
}
FOREIGN = ("thesis.tex", "README.md", "zero", ".hidden")


def follow(way: str, sentence: str, bundle: Bundle, out: Path, began: dict[str, Any]) -> None:
    """Do what one of the ways of a sentence says."""
    more: dict[str, Any] = {}
    if way == "another folder":
        out = out.with_name("another")
    elif way == "move this one away":
        out.rename(out.with_name("away"))
    elif way == "the arguments that began it":
        began = {name: value for name, value in began.items() if name != "shard"}
        assert generate(bundle, out, **began).complete
        return
    else:
        for name in re.findall("'([^']+)'", found[1]) if (found := AWAY.search(sentence)) else ():
            (out / name).rename(out.with_name("moved-" + name.replace("/", "-")))
        more = {"overwrite": True}
    assert generate(bundle, out, **ASKED, **more).complete
    rows: list[tuple[str, str, bool]] = []
    verify_set(out, lambda subject, check, ok, found, allowed: rows.append((subject, check, ok)))
    assert all(ok for _, _, ok in rows), rows


def try_every_way(bundle: Bundle, begin: Callable[[Path], dict[str, Any]], folder: Path) -> list[str]:
    """Return the ways that the refusal named; each was followed in a fresh copy of the place, and worked."""
    begin(folder / "first" / "set")
    with pytest.raises(OutputError) as caught:
        generate(bundle, folder / "first" / "set", **ASKED)
    sentence = str(caught.value)
    named = [way for way in WAYS if way in sentence]
    for number, way in enumerate(named):
        out = folder / str(number) / "set"
        began = begin(out)
        before = tree(out)
        follow(way, sentence, bundle, out, began)
        mine = {data for data in before.values() if data in (b"keep me", b"years of work")}
        assert mine <= set(tree(folder / str(number)).values())
    return named


@pytest.mark.parametrize("what", BROKEN)
def test_the_advice_on_a_broken_set_is_true(bundle: Bundle, tmp_path: Path, what: str) -> None:
    def begin(out: Path) -> dict[str, Any]:
        out.parent.mkdir()
        generate(bundle, out, **ASKED)
        BROKEN[what](out)
        return ASKED

    assert try_every_way(bundle, begin, tmp_path) == ["another folder", "move this one away"]


def test_a_newer_set_says_what_reads_it(bundle: Bundle, tmp_path: Path) -> None:
    generate(bundle, tmp_path, **ASKED)
    break_plan(lambda block: block.update(format_version=2, created_by="dim 9.1.0"))(tmp_path)
    with pytest.raises(OutputError, match=r"a newer dim \(9\.1\.0\).*: run  pip install --upgrade dim-distill$"):
        generate(bundle, tmp_path, **ASKED)


@pytest.mark.parametrize("mine", [False, True])
@pytest.mark.parametrize("what", OTHER)
def test_the_advice_on_another_set_is_true(bundle: Bundle, tmp_path: Path, what: str, mine: bool) -> None:
    """Also where a file of somebody's lies in a folder that the new set needs."""

    def begin(out: Path) -> dict[str, Any]:
        out.parent.mkdir()
        generate(bundle, out, **OTHER[what])
        if mine:
            (out / "one").mkdir(exist_ok=True)
            leave_mine(out)
        return OTHER[what]

    ways = ["another folder", "use --overwrite", *(["the arguments that began it"] if what == "begun" else [])]
    assert try_every_way(bundle, begin, tmp_path) == ways


@pytest.mark.parametrize("name", FOREIGN)
def test_the_advice_on_foreign_files_is_true(bundle: Bundle, tmp_path: Path, name: str) -> None:
    def begin(out: Path) -> dict[str, Any]:
        out.mkdir(parents=True)
        (out / name).write_text("years of work")
        return {}

    assert try_every_way(bundle, begin, tmp_path) == ["use --overwrite"]


def test_the_advice_on_a_set_without_its_plan_is_true(bundle: Bundle, tmp_path: Path) -> None:
    def begin(out: Path) -> dict[str, Any]:
        out.parent.mkdir()
        generate(bundle, out, **ASKED)
        lose_plan(out)
        return {}

    assert try_every_way(bundle, begin, tmp_path) == ["use --overwrite"]


def test_nothing_is_removed_before_all_that_is_in_the_way_is_named(bundle: Bundle, tmp_path: Path) -> None:
    generate(bundle, tmp_path, counts=COUNTS, seed=2)
    leave_mine(tmp_path)
    (tmp_path / "zero" / "0000000001.png").write_text("not one of ours, which have eight digits")
    before = tree(tmp_path)
    with pytest.raises(OutputError) as caught:
        generate(bundle, tmp_path, **ASKED, overwrite=True)
    assert str(caught.value) == (
        f"{tmp_path} holds 'one/mine.txt', 'zero/0000000001.png', in the way of the new set and not of an earlier "
        "one: move them away first."
    )
    assert {name: data for name, data in tree(tmp_path).items() if not name.startswith(".dim/")} == before


def test_many_names_are_counted(bundle: Bundle, tmp_path: Path) -> None:
    generate(bundle, tmp_path, counts=COUNTS, seed=2)
    for number in range(23):
        (tmp_path / "one" / f"mine-{number:02d}").write_text("keep me")
    with pytest.raises(OutputError, match="move 'one/mine-00', .*, 'one/mine-19' and 3 more away and use --overwrite"):
        generate(bundle, tmp_path, **ASKED)
    shutil.rmtree(tmp_path / "one")
    assert generate(bundle, tmp_path, **ASKED, overwrite=True).complete
