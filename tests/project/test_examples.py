"""The examples run, say what they promise, and keep it."""

import os
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from digits_bundle import build_digits_bundle

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_digits_bundle(tmp_path_factory.mktemp("digits") / "digits.dim")


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error::UserWarning", str(EXAMPLES / name), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_edge_pipeline_learns_real_digits_without_torch(digits: Path) -> None:
    printed = run("edge_sklearn.py", str(digits), "--batches", "150")
    accuracies = [float(match) for match in re.findall(r"([\d.]+)% of 359 real test images", printed)]
    *on_stream, on_real = accuracies
    assert len(on_stream) == 4 and on_stream[-1] >= 85 and on_real > 93
    assert printed.endswith("torch was never imported\n")


@pytest.mark.slow
def test_jax_loop_lowers_its_loss(digits: Path) -> None:
    losses = [float(match) for match in re.findall(r"loss ([\d.]+)", run("jax_loop.py", str(digits), "--epochs", "60"))]
    assert len(losses) == 5 and losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_torch_example_runs_and_its_loss_falls(digits: Path) -> None:
    printed = run("torch_iterable.py", str(digits), "--epochs", "3")
    found = re.findall(r"epoch (\d): mean loss ([\d.]+) over (\d+) steps", printed)
    assert [epoch for epoch, _, _ in found] == ["0", "1", "2"]
    assert float(found[2][1]) < 0.7 * float(found[0][1])
    # Two workers, 250 images each, in batches of 64.
    assert {steps for _, _, steps in found} == {"8"}


@pytest.mark.slow
def test_torch_example_under_two_ranks(digits: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(EXAMPLES / "torch_iterable.py"), str(digits), "--epochs", "2", "--workers", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.findall(r"over (\d+) steps", done.stdout) == ["4", "4"]


def dataset(digits: Path, **arguments: Any) -> Any:
    from dim.runtime import open_bundle

    example = runpy.run_path(str(EXAMPLES / "torch_iterable.py"))
    return example["StreamDataset"](open_bundle(digits, engine="fake"), **arguments)


def images_of(batches: Any) -> Counter[tuple[bytes, int]]:
    return Counter(
        (image.numpy().tobytes(), int(label))
        for images, labels in batches
        for image, label in zip(images, labels, strict=True)
    )


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2])
def test_every_image_of_an_epoch_comes_once(
    digits: Path, monkeypatch: pytest.MonkeyPatch, world: int, workers: int
) -> None:
    import torch.distributed as dist

    data = dataset(digits, ipc=7, batch_size=5, equal_steps=False)
    data.epoch = 3
    expected = images_of(data)
    assert sum(expected.values()) == len(expected) == 70
    namespace = type(data).__iter__.__globals__
    found: Counter[tuple[bytes, int]] = Counter()
    steps = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: world)
    for rank in range(world):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        for worker in range(workers):
            info = type("Info", (), {"id": worker, "num_workers": workers})
            monkeypatch.setitem(namespace, "get_worker_info", lambda info=info: info)
            found += images_of(data)
            data.equal_steps = True
            steps.append(len(list(data)))
            data.equal_steps = False
    assert found == expected and len(set(steps)) == 1


def test_workers_get_the_bundle_by_pickle(digits: Path) -> None:
    import pickle

    data = dataset(digits, ipc=2, batch_size=10)
    copy = pickle.loads(pickle.dumps(data.bundle))
    assert copy.classes == data.bundle.classes
