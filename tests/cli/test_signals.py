"""What batch systems do to `dim generate`: SIGTERM, and a kill without warning, here and with a set in a bucket."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_tools import dim
from s3_tools import objects
from set_tools import identities, tree

from dim.cli.main import TERMINATED

# botocore and moto warn about their own insides.
pytestmark = [pytest.mark.filterwarnings("ignore")]
WAIT_S = 120


def started(tmp_path: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start `dim generate` with an empty temporary folder of its own, as a batch job is."""
    (tmp_path / "tmp").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "dim.cli.main", "generate", *map(str, arguments)]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def stop_when(process: subprocess.Popen[str], begun: Callable[[], object], sign: signal.Signals) -> tuple[str, str]:
    """Wait until a run has begun its work, send it a signal, and return what it printed."""
    end = time.monotonic() + WAIT_S
    while not begun() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(sign)
    return process.communicate(timeout=WAIT_S)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["imagefolder", "npz", "webdataset"])
def test_sigterm_leaves_a_set_that_the_same_command_completes(tiny_bundle: Path, fast: Path, format: str) -> None:
    engine = ["--engine", "onnxruntime-cpu", "--threads", 1] if format == "npz" else ["--engine", "fake"]
    size = ["--ipc", 20_000] if format == "npz" else ["--ipc", 4000]
    wish = [*size, *engine, "--bundle", tiny_bundle, "--format", format]
    wish += ["--shard-images", 300] if format == "webdataset" else []
    assert dim("generate", *wish, "--out", fast / "one").code == 0
    out = fast / "set"
    begun = {
        "imagefolder": lambda: any((out / ".dim" / "parts").glob("*.json")),
        "webdataset": lambda: any((out / ".dim" / "parts").glob("*.json")),
        "npz": lambda: any(path.stat().st_size > 2**16 for path in (out / ".dim" / "work").glob("*/*.npz")),
    }[format]
    process = started(fast, *wish, "--out", out)
    printed, said = stop_when(process, begun, signal.SIGTERM)
    assert (process.returncode, printed) == (TERMINATED, "") and TERMINATED == 143
    kept, last = said.splitlines()[-2:]
    if format == "npz":
        assert kept == (
            f"No part of the set in {out} is finished yet, so nothing is kept: the same command begins again."
        )
    else:
        assert re.fullmatch(
            rf"What is finished is kept in {out}, [\d,]+ of 12,000 images: the same command completes the set\.", kept
        )
    assert last == "Terminated."
    # ONNX Runtime leaves a file of its own among the temporary ones.
    assert not list((fast / "tmp").glob("dim-*")) and not list((out / ".dim" / "work").glob("*"))
    before = identities(out)
    # An NPZ is one part, which was cut off and is made anew.
    assert bool(before) == (format != "npz")
    assert json.loads((out / "dataset.json").read_text())["complete"] is False
    assert dim("generate", *wish, "--out", out).code == 0
    assert tree(out) == tree(fast / "one")
    after = identities(out)
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_a_set_in_a_bucket_is_completed_after(tiny_bundle: Path, tmp_path: Path, s3: Any, sign: signal.Signals) -> None:
    wish = ["--ipc", 400, "--engine", "fake", "--bundle", tiny_bundle, "--format", "webdataset", "--shard-images", 20]
    assert dim("generate", *wish, "--out", tmp_path / "one").code == 0
    expected, prefix = tree(tmp_path / "one"), f"signals/{sign.name}"
    seed = random.randrange(2**32)
    print("seed", seed)
    moment = random.Random(seed).randrange(1, 30)

    def begun() -> bool:
        parts = s3.list_objects_v2(Bucket="bucket", Prefix=f"{prefix}/.dim/parts/").get("KeyCount", 0)
        return bool(parts >= moment)

    process = started(tmp_path, *wish, "--out", f"s3://bucket/{prefix}")
    _, said = stop_when(process, begun, sign)
    if sign == signal.SIGTERM:
        assert process.returncode == TERMINATED, said
        assert said.splitlines()[-1] == "Terminated." and "Traceback" not in said
        assert not list((tmp_path / "tmp").iterdir())
    else:
        assert process.returncode == -signal.SIGKILL, said
    half = objects(s3, prefix)
    tars = [name for name in half if name.endswith(".tar")]
    assert 0 < len(tars) < 60 and all(half[name] == expected[name] for name in tars)
    again = started(tmp_path, *wish, "--out", f"s3://bucket/{prefix}")
    printed, said = again.communicate(timeout=WAIT_S)
    assert again.returncode == 0, said
    assert printed.splitlines()[0] == f"s3://bucket/{prefix}: 1,200 images as webdataset, complete."
    assert objects(s3, prefix) == expected


def test_a_second_sigterm_does_not_cut_the_cleaning_up_short(tmp_path: Path) -> None:
    code = f"""
import os, signal
from dim.cli import inspect
def work(explicit, sha256):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        open({str(tmp_path / "clean")!r}, "w").close()
inspect.choose_bundle = work
from dim.cli.main import main
main(["inspect"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "Terminated.\n")
    assert (tmp_path / "clean").exists()


def test_a_program_that_handles_sigterm_itself_keeps_its_way(tiny_bundle: Path) -> None:
    def handler(number: int, frame: object) -> None:
        """Something of the program's own."""

    before = signal.signal(signal.SIGTERM, handler)
    try:
        assert dim("inspect", tiny_bundle, "--json").code == 0
        assert signal.getsignal(signal.SIGTERM) is handler
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert dim("inspect", tiny_bundle, "--json").code == 0
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
