"""A run whose files were altered is resumed from what is whole, or refused in one sentence whose advice is true."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_runs import Stop, quick, same, stop_at, weights
from small_images import make_images

from dim.distillation.distill import distill
from dim.runs.checkpoint import CheckpointFolder, read_checkpoint
from dim.runs.metrics import parse_metrics
from dim.runs.tensors import read_tensors, write_tensors
from dim.runtime.errors import RunError

Tensors = dict[str, torch.Tensor]
NEWEST = "checkpoints/stage1-00000004"


def resume(run: Path, steps: int = 5) -> list[str]:
    """Go on with a run for some steps; return what it said."""
    said: list[str] = []
    with pytest.raises(Stop):
        distill(make_images(), quick(), run, resume=True, say=said.append, progress=stop_at("stage1", steps))
    return said


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 2 and 4."""
    run = tmp_path_factory.mktemp("begun") / "run"
    resume(run)
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    assert distill(make_images(), quick(), run).finished
    return run


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


def rewrite(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    """Change the tensors of the newest checkpoint, and record their hash as if it had been made so."""

    def apply(run: Path) -> None:
        checkpoint = read_checkpoint(run, f"{NEWEST}.json")
        tensors = dict(checkpoint.tensors)
        change(tensors)
        folder = CheckpointFolder(run, checkpoint.config_sha256)
        folder.save("stage1", 4, tensors, checkpoint.metrics_bytes)

    return apply


def first(tensors: Tensors, prefix: str) -> str:
    return next(name for name in sorted(tensors) if name.startswith(prefix) and tensors[name].dim() > 1)


def put(prefix: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return rewrite(lambda t: t.update({(name := first(t, prefix)): value(t[name])}))


def leave_out(prefix: str) -> Callable[[Path], None]:
    return rewrite(lambda t: t.pop(first(t, prefix)))


def flip(run: Path) -> None:
    path = run / f"{NEWEST}.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cut(run: Path) -> None:
    path = run / f"{NEWEST}.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def write_content(content: bytes) -> Callable[[Path], None]:
    """Give the newest checkpoint other bytes, with their hash."""

    def apply(run: Path) -> None:
        import hashlib

        (run / f"{NEWEST}.safetensors").write_bytes(content)
        record = json.loads((run / f"{NEWEST}.json").read_bytes())
        record["sha256"] = hashlib.sha256(content).hexdigest()
        (run / f"{NEWEST}.json").write_text(json.dumps(record))

    return apply


def swap_records(run: Path) -> None:
    shutil.copy(run / "checkpoints/stage1-00000002.json", run / f"{NEWEST}.json")


def edit_record(**fields: Any) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        record = json.loads((run / f"{NEWEST}.json").read_bytes())
        (run / f"{NEWEST}.json").write_text(json.dumps(record | fields))

    return apply


PASSED_OVER = {
    "a flipped bit": flip,
    "cut short": cut,
    "a header longer than the file": write_content((2**60).to_bytes(8, "little") + b"{}"),
    "a header that is no JSON": write_content((16).to_bytes(8, "little") + b"[" * 16),
    "no tensors": write_content(b""),
    "the record of another step": swap_records,
    "a step that was not made": edit_record(step=10**15),
    "another stage": edit_record(stage="stage2"),
    "no stage": edit_record(stage="stage9"),
    "the tensors of another step": edit_record(file="stage1-00000002.safetensors"),
    "an integer of 30 digits": edit_record(step=10**29),
    "an absurd version": edit_record(format_version=10**29),
    "another absurd version": edit_record(format_version=2**64),
}


@pytest.mark.parametrize("what", PASSED_OVER)
def test_a_checkpoint_that_is_not_whole_is_passed_over(run: Path, what: str) -> None:
    PASSED_OVER[what](run)
    said = resume(run, steps=3)
    damaged = [line for line in said if line.startswith("Checkpoint stage1-00000004.json is damaged (")]
    assert len(damaged) == 1 and damaged[0].isprintable() and len(damaged[0]) < 300
    assert said[-1] == "Resuming at step 2 of stage1."


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a weight of another shape": (put("ema.", lambda t: t[:1]), "size mismatch"),
    "a weight that is not finite": (put("ema.", lambda t: t * float("nan")), "the tensor ema.* is not finite"),
    "an infinite moment": (put("generator_optimiser.", lambda t: t / 0), "the tensor generator_optimiser.* not finite"),
    "a lost weight": (leave_out("discriminator."), "Missing key"),
    "a lost moment": (leave_out("discriminator_optimiser."), "lacks a state"),
    "a moment of another shape": (put("generator_optimiser.", lambda t: t.flatten()[:3]), "has the shape"),
    "a moment of no parameter": (rewrite(lambda t: t.update({"generator_optimiser.999.step": torch.ones(())})), ""),
    "a moment without a number": (rewrite(lambda t: t.update({"generator_optimiser.x.step": torch.ones(())})), ""),
    "no tensor at all": (rewrite(lambda t: t.clear()), ""),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_checkpoint_that_does_not_fit_is_refused(run: Path, what: str) -> None:
    alter, words = REFUSED[what]
    alter(run)
    with pytest.raises(RunError, match=f"stage1-00000004.json does not fit its run \\(.*{words}") as caught:
        distill(make_images(), quick(), run, resume=True)
    assert str(caught.value).endswith(f"): restore it, or remove it and go on with  dim distill --resume --out {run}")
    assert str(caught.value).isprintable()
    (run / f"{NEWEST}.json").unlink()
    assert resume(run, steps=3)[-1] == "Resuming at step 2 of stage1."


def test_a_checkpoint_beyond_the_last_step_is_refused(run: Path) -> None:
    checkpoint = read_checkpoint(run, f"{NEWEST}.json")
    folder = CheckpointFolder(run, checkpoint.config_sha256)
    folder.save("stage1", 10**7, checkpoint.tensors, checkpoint.metrics_bytes)
    with pytest.raises(RunError, match=r"stage1-10000000.json does not fit its run \(stage1 has 6 steps\)"):
        distill(make_images(), quick(), run, resume=True)


def test_checkpoints_of_another_run_are_refused(run: Path, finished: Path, tmp_path: Path) -> None:
    """Of the same configuration they are the same; of another one they are named."""
    other = tmp_path / "other"
    with pytest.raises(Stop):
        distill(make_images(), quick(seed=1), other, progress=stop_at("stage1", 5))
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    with pytest.raises(RunError, match="come from another configuration or other data: resume with the options of"):
        distill(make_images(), quick(), run, resume=True)


def rewrite_file(name: str, change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        tensors = read_tensors(run, name)
        change(tensors)
        write_tensors(run, name, tensors)

    return apply


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda run: None if (run / name).write_bytes(content) else None


LATER: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pool of another shape": (
        rewrite_file("pool.safetensors", lambda t: t.update({(n := first(t, "0.")): t[n][:1]})),
        "pool.safetensors",
    ),
    "a pool that is not finite": (
        rewrite_file("pool.safetensors", lambda t: t.update({(n := first(t, "0.")): t[n] / 0})),
        "pool.safetensors",
    ),
    "latents of another shape": (
        lambda run: (
            (run / "latents.npz").unlink(),
            write_tensors(run, "checkpoints/latents-unfinished.safetensors", {"latents": torch.zeros(1, 2, 3)}),
        )[0],
        "checkpoints/latents-unfinished.safetensors",
    ),
    "no latent std": (write("deployment.json", b"{}"), "deployment.json"),
    "a latent std of 30 digits": (write("deployment.json", b'{"latent_std": ' + b"9" * 30 + b"}"), "deployment.json"),
    "a latent std that is text": (write("deployment.json", b'{"latent_std": "1"}'), "deployment.json"),
    "a latent std that is true": (write("deployment.json", b'{"latent_std": true}'), "deployment.json"),
    "a choice that is no object": (write("deployment.json", b"[1]"), "deployment.json"),
    "a choice cut short": (write("deployment.json", b'{"latent_std'), "deployment.json"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", LATER)
def test_what_a_run_reads_later_is_refused_alike(finished: Path, tmp_path: Path, what: str) -> None:
    alter, name = LATER[what]
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "generator.safetensors").unlink()
    alter(run)
    with pytest.raises(RunError) as caught:
        distill(make_images(), quick(), run, resume=True)
    assert str(caught.value).startswith(f"{run / name}") and str(caught.value).isprintable()
    (run / name).unlink()
    assert distill(make_images(), quick(), run, resume=True).finished
    assert same(weights(run), weights(finished))


BROKEN_LINES = [
    b"",
    b"{",
    b"[1]",
    b"null",
    b'{"stage": 1, "step": 2}',
    b'{"stage": "stage1", "step": "2"}',
    b'{"stage": "stage1", "step": ' + b"9" * 30 + b"}",
    b'{"stage": "stage1", "step": ' + b"9" * 5000 + b"}",
    b'{"stage": "stage1", "step": true}',
    b'{"stage": "stage1", "step": -1}',
    b'{"stage": "\\u001b[2J", "step": 1}',
    b"\xff\xfe",
    b"[" * 100_000,
]


@pytest.mark.parametrize("line", BROKEN_LINES, ids=lambda line: repr(line[:40]))
def test_a_line_of_the_metrics_that_is_damaged_is_passed_over(line: bytes) -> None:
    whole = b'{"stage": "stage1", "step": 2, "loss": 0.5, "odd": "x", "nan": NaN, "huge": 1' + b"0" * 40 + b"}"
    expected = [{"stage": "stage1", "step": 2, "loss": 0.5}]
    assert parse_metrics(line + b"\n" + whole + b"\n") == expected
    assert parse_metrics(whole + b"\n" + line) == expected


def test_damaged_metrics_do_not_stop_a_run(run: Path) -> None:
    content = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(content[:-9].replace(b'"stage"', b'"st', 1))
    assert resume(run, steps=5)[-1] == "Resuming at step 4 of stage1."
