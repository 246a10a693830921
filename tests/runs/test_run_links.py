"""A run that holds links is not written: they could lead what is written out of its folder."""

from pathlib import Path

import pytest

from dim.runs.folder import lock_run
from dim.runtime.errors import RunError


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "checkpoints/stage1-1.json", "grids/x.png"])
def test_a_link_inside_a_run_is_refused(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    (run / name).parent.mkdir(parents=True)
    (run / name).symlink_to(tmp_path)
    with pytest.raises(RunError, match=f"run/{name} is a link, which a run does not follow: remove it"), lock_run(run):
        pass


def test_the_run_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    with lock_run(tmp_path / "run"):
        pass
