"""A fault at every call by which an export touches the disk: the old bundle or the new one, and the same bytes again.

A sample of the faults by default; DIM_ALL_FAULTS=1 meets every call with every kind of fault.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from export_runs import export_each_network_once, make_run
from faults import KINDS, Faults, Killed, chosen_points, count_points
from set_tools import tree

from dim.export.add_precisions import add_precisions
from dim.export.export_run import export_run
from dim.runtime.errors import OutputError

# A run, what is done with it, the calls of that, and what they leave.
Way = tuple[Path, Callable[[Path], object], list[str], dict[str, bytes]]


def nothing(run: Path) -> None:
    """Leave a run without a bundle."""


def another_bundle(run: Path) -> None:
    """Put a bundle of other weights where that of a run goes."""
    export_run(make_run(run.parent / "other", seed=1), out=run / "little.dim")


def export(run: Path) -> None:
    export_run(run, precisions=("fp32", "fp16"))


def add_half(run: Path) -> None:
    add_precisions(run / "little.dim", ("fp16",))


# What is there before, and what is done then.
WAYS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "a new bundle": (nothing, export),
    "a bundle instead of another": (another_bundle, export),
    "a further precision": (export_run, add_half),
}


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    prepare, act = WAYS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        export_each_network_once(patch)
        folder = tmp_path_factory.mktemp("way")
        start = make_run(folder / "start")
        prepare(start)
        run = Path(shutil.copytree(start, folder / "run"))
        counted = count_points(folder, lambda: act(run))
        yield start, act, counted.calls, tree(run)


@pytest.mark.slow
@pytest.mark.parametrize("how", KINDS)
def test_a_fault_leaves_the_old_bundle_or_the_new(
    way: Way, how: str, fast: Path, record_property: Callable[[str, object], None]
) -> None:
    start, act, calls, expected = way
    points = chosen_points(calls, how, 3)
    for at in points:
        run = Path(shutil.copytree(start, fast / str(at)))
        where = f"{how} at call {at}, {calls[at - 1]}"
        said = ""
        with Faults(fast, at, how) as faults:
            try:
                act(run)
            except OutputError as error:
                said = str(error)
            except Killed:
                assert faults.dead
        assert len(faults.calls) >= at
        assert "\n" not in said and "None" not in said and ".tmp" not in said, where
        found = final(run)
        assert found in (final(start), expected), where
        assert said or faults.dead or found == expected, where
        act(run)
        assert final(run) == expected, where
        shutil.rmtree(run)
    record_property("faults injected", len(points))


def final(run: Path) -> dict[str, bytes]:
    """The files of a run but for those under temporary names, which only a kill leaves."""
    return {name: data for name, data in tree(run).items() if not name.startswith(".")}
