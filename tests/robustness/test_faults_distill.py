"""A fault at every call by which a distillation touches the disk: resuming ends in the same bytes.

A sample of the faults by default; DIM_ALL_FAULTS=1 meets every call with every kind of fault.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import KINDS, Faults, Killed, chosen_points, count_points
from quick_runs import FRESH, quick
from set_tools import tree
from small_images import make_images

from dim.config import DistillConfig
from dim.distillation.distill import distill
from dim.runs import curves
from dim.runs.folder import lock_run
from dim.runtime.errors import RunError

SHORT = {"stage1.steps": 2, "stage2.steps": 2, "checkpoint_steps": 1, "grid_steps": 1, "log_steps": 1}
# The published pool rides in the checkpoints, the kept one has files of its own.
CONFIGS = {"kept": quick(**SHORT), "fresh": quick(**{**SHORT, **FRESH})}
DATA = make_images(per_class=16)
# The configuration, the calls of a run of it, and what they leave.
Undisturbed = tuple[DistillConfig, list[str], dict[str, bytes]]


@pytest.fixture(scope="module", autouse=True)
def every_picture_is_drawn_once() -> Iterator[None]:
    """The same metrics give the same picture, and drawing it takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "curves_png", functools.cache(curves.curves_png))
        yield


@pytest.fixture(scope="module", params=CONFIGS)
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    config, folder = CONFIGS[request.param], tmp_path_factory.mktemp("undisturbed")
    counted = count_points(folder, lambda: distill(DATA, config, folder / "run"))
    assert {"write", "fsync", "replace", "open", "mkdir", "unlink"} <= counted.kinds.keys()
    return config, counted.calls, tree(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize("how", KINDS)
def test_resuming_after_a_fault_ends_in_the_same_bytes(
    undisturbed: Undisturbed, how: str, fast: Path, record_property: Callable[[str, object], None]
) -> None:
    config, calls, expected = undisturbed
    points = chosen_points(calls, how, 3)
    for at in points:
        run_dir, said = fast / str(at), ""
        where = f"{how} at call {at}, {calls[at - 1]}"
        with Faults(fast, at, how) as faults:
            try:
                distill(DATA, config, run_dir)
            except RunError as error:
                said = str(error)
            except Killed:
                assert faults.dead
        assert len(faults.calls) >= at
        check_nothing_partial(run_dir, expected, where)
        assert said or faults.dead or tree(run_dir) == expected, where
        assert "\n" not in said and "None" not in said
        assert distill(DATA, config, run_dir, resume=True).finished
        found = tree(run_dir)
        assert found.keys() == expected.keys(), where
        assert [name for name in expected if found[name] != expected[name]] == [], where
        shutil.rmtree(run_dir)
    record_property("faults injected", len(points))


def check_nothing_partial(run_dir: Path, expected: dict[str, bytes], where: str) -> None:
    """Every file with a final name is whole, but for the log, which is cut back to the checkpoint that is resumed."""
    for name, data in tree(run_dir).items():
        if name == "curves.png":
            assert data.endswith(b"IEND\xaeB`\x82"), f"{name} after {where}"
        elif name != "metrics.jsonl" and not name.endswith(".tmp") and name in expected:
            assert data == expected[name], f"{name} after {where}"


def test_a_run_is_written_by_one_process(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    distill(DATA, CONFIGS["kept"], run_dir, time_limit_s=0.0)
    message = f"^Another process is writing {run_dir}: wait for it, stop it, or choose another --out.$"
    with lock_run(run_dir), pytest.raises(RunError, match=message):
        distill(DATA, CONFIGS["kept"], run_dir, resume=True)
