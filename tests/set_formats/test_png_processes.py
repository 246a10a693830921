"""Encoder processes: the same bytes as in this process, whatever becomes of them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from set_tools import generate, tree

from dim.runtime import open_bundle
from dim.runtime.bundle import Bundle
from dim.runtime.set_formats import png_pixels
from dim.runtime.set_formats import png_processes as encoder_processes
from dim.runtime.set_formats.png import encode_png
from dim.runtime.set_formats.png_processes import EncoderProcesses
from dim.runtime.sets import pipeline

COUNTS = (40, 30, 20)


@pytest.fixture
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, engine="fake", say=lambda line: None) as opened:
        yield opened


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> list[EncoderProcesses]:
    """Let every set have processes, however small and whatever the machine; return those that were made."""
    made: list[EncoderProcesses] = []

    class Noted(EncoderProcesses):
        def __init__(self, count: int) -> None:
            super().__init__(count)
            made.append(self)

    monkeypatch.setattr(pipeline, "PROCESS_IMAGES", 1)
    monkeypatch.setattr(pipeline, "usable_cores", lambda: 3)
    monkeypatch.setattr(pipeline, "EncoderProcesses", Noted)
    return made


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_many_threads_get_what_each_asked_for(count: int) -> None:
    batches = [images(1 + n % 7, 8 + n % 5, 9, 1 + 2 * (n % 2)) for n in range(40)]
    batches.append(images(5, 8, 8, 3)[:, ::-1])  # not contiguous
    batches.append(images(2000, 32, 32, 3))  # more than a pipe holds
    with EncoderProcesses(count) as processes, ThreadPoolExecutor(5) as pool:
        assert processes.count == count
        assert list(pool.map(processes.encode_png, batches)) == [encode_png(batch) for batch in batches]


def test_processes_end_with_the_context() -> None:
    with EncoderProcesses(2) as processes:
        running = [process._process for process in processes._all]
        assert [process.poll() for process in running] == [None, None]
    assert None not in [process.returncode for process in running]


def test_a_killed_process_is_replaced_by_this_one(caplog: pytest.LogCaptureFixture) -> None:
    batch = images(300, 28, 28, 1)
    with EncoderProcesses(2) as processes:
        processes.encode_png(batch)
        processes._all[0]._process.kill()
        processes._all[0]._process.wait()
        with caplog.at_level("WARNING", "dim.runtime"), ThreadPoolExecutor(4) as pool:
            assert list(pool.map(processes.encode_png, [batch] * 12)) == [encode_png(batch)] * 12
    assert set(caplog.messages) == {"An encoder process ended; its images are encoded by this one."}


@pytest.mark.parametrize("ends", [True, False], ids=["killed", "lives on"])
def test_half_a_reply_is_never_taken_for_the_next(ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor while the process that was killed is still to end, and goes on replying."""
    batch = images(50, 28, 28, 1)
    with EncoderProcesses(1) as processes:
        process = processes._all[0]
        read, calls = process._read, []

        def fail_once(size: int) -> bytes:
            calls.append(size)
            if len(calls) == 2:  # the sizes were read, the files were not
                raise MemoryError
            return read(size)

        monkeypatch.setattr(process, "_read", fail_once)
        kill = process._process.kill
        if not ends:
            monkeypatch.setattr(process._process, "kill", lambda: None)
        with pytest.raises(MemoryError):
            processes.encode_png(batch)
        assert [processes.encode_png(batch) for _ in range(3)] == [encode_png(batch)] * 3
        kill()
        assert process._process.wait(timeout=60) == -signal.SIGKILL


def test_another_pillow_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png_pixels, "encoder_version", lambda: "Pillow 1, zlib 1")
    asked = []
    monkeypatch.setattr(encoder_processes, "encode_png", lambda batch: asked.append(len(batch)) or [])
    with EncoderProcesses(1) as processes:
        processes.encode_png(images(3, 8, 8, 3))
    assert asked == [3]


@pytest.mark.parametrize("broken", ["/no/such/python", ""])
def test_no_process_to_be_had(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setattr(sys, "executable", broken)
    batch = images(3, 8, 8, 3)
    with EncoderProcesses(2) as processes:
        assert processes.count == 0 and processes.encode_png(batch) == encode_png(batch)


def test_a_frozen_program_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with EncoderProcesses(2) as processes:
        assert processes.count == 0


def test_the_script_imports_nothing_of_ours_and_no_numpy() -> None:
    ran = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", png_pixels.__file__],
        input=png_pixels.REQUEST.pack(1, 8, 8, 1) + bytes(64),
        capture_output=True,
        timeout=60,
    )
    assert ran.returncode == 0
    imported = {line.split("|")[-1].strip() for line in ran.stderr.decode().splitlines() if "|" in line}
    assert "PIL.PngImagePlugin" in imported
    assert not {name for name in imported if name.split(".")[0] in ("dim", "numpy", "torch")}


@pytest.mark.parametrize("format", ["imagefolder", "webdataset", "parquet"])
def test_sets_are_the_same(bundle: Bundle, tmp_path: Path, apart: list[EncoderProcesses], format: str) -> None:
    generate(bundle, tmp_path / "apart", counts=COUNTS, format=format)
    assert [processes.count for processes in apart] == [2]
    pipeline.PROCESS_IMAGES = 10**9
    generate(bundle, tmp_path / "here", counts=COUNTS, format=format)
    assert [processes.count for processes in apart] == [2, 0]
    assert tree(tmp_path / "apart") == tree(tmp_path / "here")


def test_pixels_need_no_encoder(bundle: Bundle, tmp_path: Path, apart: list[EncoderProcesses]) -> None:
    generate(bundle, tmp_path / "set", counts=COUNTS, format="npz")
    assert [processes.count for processes in apart] == [0]


_GENERATE = """
import sys
from dim.runtime import open_bundle; from dim.runtime.sets import pipeline
from dim.runtime.sets.generate import generate; from dim.runtime.sets.request import SetRequest

pipeline.PROCESS_IMAGES, pipeline.usable_cores = 1, lambda: 3
with open_bundle(sys.argv[1], engine="fake", say=lambda line: None) as bundle:
    request = SetRequest(per_class=(200_000, 0, 0), format="webdataset")
    generate(bundle, request, sys.argv[2], progress=lambda *done: print(flush=True))
"""


def children(pid: int) -> list[int]:
    """List the direct children of a process."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_parent(tiny_bundle: Path, tmp_path: Path, sent: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _GENERATE, str(tiny_bundle), str(tmp_path / "set")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert parent.stdout is not None
    with parent.stdout as told:
        told.readline(), told.readline()  # the first images are written
        helpers = children(parent.pid)
        assert len(helpers) == 2
        parent.send_signal(sent)
        parent.wait(timeout=60)
    deadline = time.monotonic() + 60
    for helper in helpers:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            while time.monotonic() < deadline and Path(f"/proc/{helper}/stat").read_text().split()[2] != "Z":
                time.sleep(0.02)
            assert Path(f"/proc/{helper}/stat").read_text().split()[2] == "Z"
