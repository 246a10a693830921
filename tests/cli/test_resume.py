"""`dim distill`: the first Ctrl-C stops at a checkpoint, and `--resume --out RUN` alone goes on."""

import json
import signal
from pathlib import Path

import pytest
from cli_tools import dim, one_line

from dim.distillation.session import Session

OPTIONS = [
    *("--data", "digits", "--preset", "tiny", "--seed", 3, "--steps", 6, "--matching-steps", 2, "--threads", 1),
    *("--size", 16, "--matching-loss", "none", "--set", "deployment.latent_stds=[]"),
    *("--set", "deployment.fixed_latents=0", "--set", "generator.width=8", "--set", "discriminator.width=8"),
]


def send_at(step: int, monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Send signals during a step of stage 1."""
    finish = Session._is_late

    def receive(session: Session, done: int) -> bool:
        if done == step:
            for number in numbers:
                signal.raise_signal(number)
        return finish(session, done)

    monkeypatch.setattr(Session, "_is_late", receive)


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that Ctrl-C stopped at step 3, far from the next regular checkpoint."""
    run = tmp_path / "my run"
    with monkeypatch.context() as patch:
        send_at(3, patch, signal.SIGINT)
        ran = dim("distill", *OPTIONS, "--out", run)
    assert (ran.code, ran.out) == (130, "")
    assert ran.err.splitlines()[-3:] == [
        "Stopping at a checkpoint after the step under way; Ctrl-C ends at once.",
        f"Stopped at a checkpoint; go on with  dim distill --resume --out '{run}'",
        "Interrupted.",
    ]
    assert [path.name for path in run.glob("checkpoints/*.json")] == ["stage1-00000003.json"]
    return run


@pytest.mark.slow
def test_the_folder_is_enough_to_go_on(stopped: Path, tmp_path: Path) -> None:
    assert f"go on with dim distill --resume --out '{stopped}'" in one_line(dim("export", stopped))
    ran = dim("distill", "--resume", "--out", stopped, "--threads", 1, "--set", "log_steps=1")
    assert ran.code == 0 and "Resuming at step 3 of stage1." in ran.err.splitlines()
    assert dim("distill", *OPTIONS, "--out", tmp_path / "whole").code == 0
    for name in ("generator.safetensors", "config.json", "source.json"):
        assert (stopped / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_a_resume_refuses_other_settings_and_needs_to_find_the_data(stopped: Path) -> None:
    for option, why in {
        "--steps=7": f"{stopped} holds a run of another configuration (stage1 differ): leave these options out, "
        "because --resume takes those of the first call; or choose another --out.",
        "--preset=small": f"{stopped} holds a run of preset tiny, not small: leave --preset out, because "
        "--resume takes that of the first call; or choose another --out.",
        "--size=7": "--size is 7: it must be between 8 and 128 pixels.",
        "--set=generator.width=x": "--set generator.width is 'x'; it must be an integer.",
    }.items():
        assert one_line(dim("distill", "--resume", "--out", stopped, option)) == why
    (stopped / "source.json").unlink()
    assert one_line(dim("distill", "--resume", "--out", stopped)) == (
        f"{stopped} does not say where its data lie: name them by --data."
    )
    assert "Resuming at step 3" in dim("distill", "--resume", "--out", stopped, "--data", "digits").err
    assert json.loads((stopped / "source.json").read_text())["places"] == ["digits"]


def test_what_begins_a_run_names_its_data(tmp_path: Path) -> None:
    assert dim("distill", "--preset", "tiny").code == 2
    for more in ([], ["--out", tmp_path / "none"]):
        assert one_line(dim("distill", "--resume", *more)) == (
            "There is no run to resume: name its folder by --out, or begin one by --data."
        )


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_sigterm_stops_as_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        send_at(1, patch, signal.SIGINT, signal.SIGINT)
        ran = dim("distill", *OPTIONS, "--out", tmp_path)
    kept = f"{tmp_path} has no checkpoint yet, so nothing but the settings is kept: begin again with  dim distill "
    assert ran.code == 130 and ran.err.splitlines()[-2:] == [f"{kept}--resume --out {tmp_path}", "Interrupted."]
    with monkeypatch.context() as patch:
        send_at(2, patch, signal.SIGTERM, signal.SIGTERM)
        ran = dim("distill", "--resume", "--out", tmp_path)
    assert ran.code == 143 and ran.err.splitlines()[-1] == "Terminated."
    assert [path.name for path in tmp_path.glob("checkpoints/*.json")] == ["stage1-00000002.json"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
