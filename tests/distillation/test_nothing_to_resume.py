"""`--resume` where there is nothing to go on from: the run begins, and says so."""

from pathlib import Path

import pytest
from quick_runs import Stop, quick, stop_at
from small_images import make_images

from dim.distillation.distill import distill
from dim.runs.folder import lock_run
from dim.runtime.errors import RunError

NO_CHOICES = {"deployment.latent_stds": (), "deployment.fixed_latents": 0}


def begin(run: Path, *, steps: int = 1, **options: object) -> list[str]:
    """Begin or resume a run, and stop it after some steps; return what it said."""
    said: list[str] = []
    with pytest.raises(Stop):
        distill(
            make_images(),
            quick(**NO_CHOICES),
            run,
            say=said.append,
            progress=stop_at("stage1", steps),
            **options,  # type: ignore[arg-type]
        )
    return said


def test_a_run_that_begins_though_it_was_to_go_on_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    new = f"There is no run in {run} to resume: a new one begins; if there should be one, stop and check --out."
    assert new in begin(run, resume=True)
    assert f"The run in {run} has no checkpoint yet: it begins at the first step." in begin(run, resume=True, steps=3)
    assert begin(run, resume=True, steps=5)[-1] == "Resuming at step 2 of stage1."
    for checkpoint in (run / "checkpoints").glob("*.safetensors"):
        checkpoint.write_bytes(b"")
    assert f"No checkpoint in {run / 'checkpoints'} is whole: the run begins at the first step." in begin(
        run, resume=True
    )
    assert not any("resume" in line or "begins" in line for line in begin(tmp_path / "other"))


def test_a_second_run_into_one_folder_changes_nothing_there(tmp_path: Path) -> None:
    """Neither the settings of the first one, nor a file in the making."""
    run = tmp_path / "run"
    begin(run)
    (run / ".x.json.1-0.tmp").write_text("in the making")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with lock_run(run), pytest.raises(RunError, match=f"Another process is writing {run}: wait for it, stop it, or"):
        distill(make_images(), quick(**NO_CHOICES), run, resume=True)
    with lock_run(tmp_path / "new"), pytest.raises(RunError, match="Another process is writing"):
        distill(make_images(), quick(**NO_CHOICES), tmp_path / "new")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert list((tmp_path / "new").iterdir()) == []
