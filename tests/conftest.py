"""What every test shares: one thread, no display, a cache and data folder that die with the tests, a tiny bundle."""

import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from s3_tools import s3_server
from tiny_bundle import build_tiny_bundle

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # some tests import ONNX Runtime before dim turns it off
os.environ["MPLBACKEND"] = "Agg"
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # in the background of a script; processes of tests would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A shared machine stalls at random, so no test may fail for being slow; the examples are the same in every run.
settings.register_profile("dim", deadline=None, derandomize=True)
settings.load_profile("dim")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of three classes, 8x8 grey images, in every precision; read it, never write into it."""
    return build_tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny.dim", precisions=("fp32", "fp16", "int8"))


@pytest.fixture(scope="session", autouse=True)
def _private_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests out of the user's own cache and data, and their bundle out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("DIM_DATA", str(tmp_path_factory.mktemp("data")))
        patch.delenv("DIM_BUNDLE", raising=False)
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA GPU")


@pytest.fixture
def fast(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: hundreds of runs that flush to a disk take minutes."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A bucket behind a real S3 interface on loopback, and a client to it."""
    with s3_server() as client:
        yield client


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many faults were injected, and how many bits flipped."""
    counts: Counter[tuple[str, str]] = Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if getattr(report, "when", "") == "call":
            for what, value in report.user_properties:
                counts[report.nodeid.partition("::")[0], what] += value
    for (file, what), value in sorted(counts.items()):
        terminalreporter.write_line(f"{file}: {value:,} {what}")
