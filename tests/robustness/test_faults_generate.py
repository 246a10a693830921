"""A fault at every call by which a set touches the disk: no partial file, no work lost, and the same bytes again.

In this test every call meets every kind of fault; of kills in earnest, of a forked child, there is a sample unless
DIM_ALL_FAULTS is set.
"""

import gc
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import KINDS, Faults, Killed, chosen_points, count_points
from set_tools import generate, identities, tree
from teacher_graphs import teacher_graph
from tiny_bundle import build_tiny_bundle

from dim.runtime.bundle import Bundle, open_bundle
from dim.runtime.errors import OutputError

# Interrupted in one piece, without DIM_ALL_FAULTS.
SAMPLE = 12
# A set's bundle, where it is to go.
Act = Callable[[Bundle, Path], object]


def make(**sizes: Any) -> Act:
    """Write a set; one encoding thread, so that the calls come in the same order every time."""
    return lambda bundle, out: generate(bundle, out, **{"counts": (9, 6, 2), "encoders": 1, **sizes})


def lose_a_file(bundle: Bundle, out: Path) -> None:
    """Write a set of two parts and lose one."""
    make(format="npy", shard_images=10)(bundle, out)
    (out / "images-00001-of-00002.npy").unlink()


# What is in the folder before, and what is done then.
WAYS: dict[str, tuple[Act | None, Act]] = {
    "imagefolder": (None, make(format="imagefolder")),
    "npz": (None, make(format="npz", shard_images=10)),
    "npy": (None, make(format="npy", shard_images=10)),
    "parquet": (None, make(format="parquet", shard_images=10)),
    "webdataset": (None, make(format="webdataset", shard_images=10)),
    "imagefolder with soft labels": (None, make(format="imagefolder", soft_labels=True)),
    "npz with soft labels": (None, make(format="npz", soft_labels=True)),
    "instead of another set": (make(seed=1, format="npz"), make(format="imagefolder", overwrite=True)),
    "a lost file": (lose_a_file, make(format="npy", shard_images=10)),
}


def finished(folder: Path) -> dict[str, bytes]:
    """Read the files of a set; its `.dim/` may outlive it where it cannot be removed, and the next run tries again."""
    return {name: data for name, data in tree(folder).items() if not name.startswith(".dim/")}


def count_open() -> int:
    """Files and threads of this process."""
    return len(os.listdir("/proc/self/fd")) + threading.active_count()


class Case:
    """A way to write a set, and how it goes undisturbed."""

    def __init__(self, bundle: Bundle, name: str, folder: Path) -> None:
        self.bundle, (self.before, self.act) = bundle, WAYS[name]
        self.start = self.prepare(folder / "start")
        out = self.prepare(folder / "set")
        self.calls = count_points(folder, lambda: self.act(bundle, out)).calls
        self.expected = tree(out)

    def prepare(self, out: Path) -> Path:
        """Bring a folder to the state before."""
        if self.before is not None:
            self.before(self.bundle, out)
        return out

    def check(self, out: Path, where: str) -> None:
        """Look at what a fault left, then run again and compare."""
        old = finished(self.start)
        for name, data in finished(out).items():
            if name != "dataset.json":
                whole = [files[name] for files in (old, self.expected) if name in files]
                assert data in whole, f"{name} bears its final name and is not finished, {where}"
        kept = {name: value for name, value in identities(out).items() if name in self.expected and name not in old}
        self.act(self.bundle, out)
        assert tree(out) == self.expected, where
        after = identities(out)
        assert {name: after[name] for name in kept} == kept, where


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    path = tmp_path_factory.mktemp("bundle") / "b.dim"
    build_tiny_bundle(path, extra_files={"teacher.onnx": teacher_graph()})
    with open_bundle(path, engine="fake", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module", params=WAYS)
def case(request: pytest.FixtureRequest, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(bundle, request.param, tmp_path_factory.mktemp("case"))


@pytest.mark.slow
@pytest.mark.parametrize("how", KINDS)
def test_a_fault_at_every_call(
    case: Case, how: str, fast: Path, record_property: Callable[[str, object], None]
) -> None:
    points = chosen_points(case.calls, how, SAMPLE)
    for at in points:
        out = case.prepare(fast / str(at) / "set")
        where = f"{how} at call {at}, {case.calls[at - 1]}"
        said, opened = "", count_open()
        with Faults(fast, at, how) as faults:
            try:
                case.act(case.bundle, out)
            except OutputError as error:
                said = str(error)
            except Killed:
                assert faults.dead
        assert len(faults.calls) >= at
        if not faults.dead and count_open() > opened:
            gc.collect()  # what an error's traceback kept
            assert count_open() <= opened, where
        assert not said or "run the same command again, what is finished is kept" in said, where
        assert "\n" not in said and "None" not in said and ".dim/" not in said, said
        assert said or faults.dead or finished(out) == case.expected, where
        case.check(out, where)
        shutil.rmtree(out.parent)
    record_property("faults injected", len(points))


@pytest.mark.slow
def test_a_kill_in_earnest(case: Case, fast: Path, record_property: Callable[[str, object], None]) -> None:
    points = chosen_points(case.calls, "kill", SAMPLE)
    for at in points:
        out = case.prepare(fast / str(at) / "set")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            with Faults(fast, at, "SIGKILL"):
                case.act(case.bundle, out)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), at
        case.check(out, f"SIGKILL at call {at}, {case.calls[at - 1]}")
        shutil.rmtree(out.parent)
    record_property("faults injected", len(points))
