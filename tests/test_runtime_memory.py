"""Memory does not grow with the number of images; every process tells its own peak."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from dim.runtime.bundle import Bundle
from dim.runtime.generate import generate
bundle, out, format, images = sys.argv[1:]
with Bundle(bundle, engine="fake") as opened:
    generate(opened, out, counts=[int(images) - 2, 1, 1], format=format)
# Not ru_maxrss, which begins with the memory of the process that started this one.
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024)
"""


def peak_mib(bundle: Path, out: Path, format: str, images: int) -> int:
    command = [sys.executable, "-c", SCRIPT, str(bundle), str(out), format, str(images)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(
    ("format", "images"), [("npz", 100_000), ("webdataset", 15_000), ("parquet", 15_000), ("imagefolder", 8_000)]
)
def test_peak_memory_stays(tiny_bundle: Path, tmp_path: Path, format: str, images: int) -> None:
    small = peak_mib(tiny_bundle, tmp_path / "small", format, 500)
    large = peak_mib(tiny_bundle, tmp_path / "large", format, images)
    assert large - small <= 50, f"{small} MiB for 500 images, {large} MiB for {images:,}"
