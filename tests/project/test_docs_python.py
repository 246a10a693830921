"""Every Python block of the README and the documentation runs as it stands."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_tools import dim
from doc_pages import PAGES, ROOT
from tiny_bundle import build_tiny_bundle

BLOCKS = [
    pytest.param(block, id=f"{path.relative_to(ROOT)}-{number}")
    for path in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with the bundles that the pages speak of, and go there."""
    bundle = build_tiny_bundle(tmp_path / "mnist.dim", classes=tuple("0123456789"))
    for place in ("runs/digits/digits.dim", "cifar10.dim"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).symlink_to(bundle)
    monkeypatch.setenv("DIM_BUNDLE", str(bundle))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stand_in_trackers(patch: pytest.MonkeyPatch) -> dict[str, list[tuple[dict[str, float], int | None]]]:
    """Let the trackers' modules note the calls that the pages make of them."""
    logged: dict[str, list[tuple[dict[str, float], int | None]]] = {"wandb": [], "mlflow": []}

    def log(values: dict[str, float]) -> None:
        logged["wandb"].append((values, None))

    def log_metrics(values: dict[str, float], *, step: int) -> None:
        logged["mlflow"].append((values, step))

    wandb = SimpleNamespace(init=lambda project: SimpleNamespace(log=log))
    patch.setitem(sys.modules, "wandb", wandb)
    patch.setitem(sys.modules, "mlflow", SimpleNamespace(start_run=contextlib.nullcontext, log_metrics=log_metrics))
    return logged


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_the_block_runs(block: str, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "import keras" in block:
        pytest.importorskip("keras", reason="Keras is no part of the extra `dev`", exc_type=ImportError)
    if "to_datasets" in block:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", digits / "hf")
    trackers = stand_in_trackers(monkeypatch)
    if "digits-npz/" in block:
        assert dim("generate", "--ipc", 2, "--format", "npz", "--out", "digits-npz").code == 0
    if "import jax" in block:  # it starts threads for good, and then warns of every fork
        done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return
    exec(compile(block, "block", "exec"), {"__name__": "docs"})
    for name, logged in trackers.items():
        if f"import {name}" in block:
            [metrics] = digits.glob("runs/tracked*/metrics.jsonl")
            written = [json.loads(line) for line in metrics.read_text().splitlines()]
            assert [values for values, _ in logged] == [
                {f"{line['stage']}/{key}": value for key, value in line.items() if key not in ("stage", "step")}
                for line in written
            ]
            assert name == "wandb" or [step for _, step in logged] == [line["step"] for line in written]


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 5
