"""Memory does not grow with the number of images; every process tells its own peak, its encoders included."""

import subprocess
import sys
from pathlib import Path

import pytest

from dim.runtime.sets.pipeline import DEFAULT_MAX_ENCODERS

SCRIPT = """
import sys
from dim.runtime.set_formats import png_processes as encoder_processes; from dim.runtime.sets import pipeline
from dim.runtime.bundle import open_bundle
from dim.runtime.sets.generate import generate; from dim.runtime.sets.request import SetRequest

def kib(process, file, name):
    return next(int(line.split()[1]) for line in open(f"/proc/{process}/{file}") if line.startswith(name + ":"))

# Pages that processes share count once, so their proportional part is added up; read before each is told to end.
helpers = []
end = encoder_processes.EncoderProcess.close
def close(self):
    helpers.append(kib(self._process.pid, "smaps_rollup", "Pss"))
    end(self)
encoder_processes.EncoderProcess.close = close

pipeline.usable_cores = lambda: 16  # as many encoders as any machine has without being asked
bundle, out, format, images = sys.argv[1:]
with open_bundle(bundle, engine="fake") as opened:
    generate(opened, SetRequest(per_class=[int(images) - 2, 1, 1], format=format), out)
# Not ru_maxrss, which begins with the memory of the process that started this one.
print((kib("self", "status", "VmHWM") + sum(helpers)) // 1024, len(helpers))
"""


def peak_mib(bundle: Path, out: Path, format: str, images: int) -> tuple[int, int]:
    """Return the peak memory and the number of encoder processes in it."""
    command = [sys.executable, "-c", SCRIPT, str(bundle), str(out), format, str(images)]
    peak, helpers = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(peak), int(helpers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "images"), [("npz", 100_000), ("webdataset", 15_000), ("parquet", 15_000), ("imagefolder", 8_000)]
)
def test_peak_memory_stays(tiny_bundle: Path, tmp_path: Path, format: str, images: int) -> None:
    small, none = peak_mib(tiny_bundle, tmp_path / "small", format, 500)
    large, helpers = peak_mib(tiny_bundle, tmp_path / "large", format, images)
    assert (none, helpers) == (0, 0 if format == "npz" else DEFAULT_MAX_ENCODERS)
    assert large - small <= 50, f"{small} MiB for 500 images, {large} MiB for {images:,}"
