"""Interruption in earnest: kills and Ctrl-C at random moments, a mount that goes away, a file that was cut off.

Faults at every single call are injected in test_faults_generate.
"""

import os
import platform
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from set_tools import generate, identities, tree

from dim.runtime.bundle import open_bundle
from dim.runtime.errors import OutputError


def check_nothing_partial(out: Path, expected: dict[str, bytes]) -> None:
    for name, data in tree(out).items():
        if not name.startswith(".dim/") and name != "dataset.json":
            assert data == expected[name], f"{name} bears its final name and is not finished"


SCRIPT = """
import sys
from dim.runtime.bundle import open_bundle
from dim.runtime.sets.generate import generate; from dim.runtime.sets.request import SetRequest
bundle, out, format = sys.argv[1:4]
request = SetRequest(per_class=(4000, 2000, 1000), format=format)
generate(open_bundle(bundle, engine="fake"), request, out, progress=lambda *state: print(*state, flush=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("format", ["imagefolder", "npz"])
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_kills_at_random_moments(tiny_bundle: Path, fast: Path, format: str, sign: signal.Signals) -> None:
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    print("seed", seed)
    command = [sys.executable, "-c", SCRIPT, str(tiny_bundle)]
    with open_bundle(tiny_bundle, engine="fake") as bundle:
        generate(bundle, fast / "one", counts=(4000, 2000, 1000), format=format)
    expected, out = tree(fast / "one"), fast / "set"
    for _ in range(3):
        process = subprocess.Popen([*command, str(out), format], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.4))
        process.send_signal(sign)
        process.communicate()
        check_nothing_partial(out, expected)
    before = identities(out)
    with open_bundle(tiny_bundle, engine="fake") as bundle:
        assert generate(bundle, out, counts=(4000, 2000, 1000), format=format).complete
    assert tree(out) == expected
    after = identities(out)
    assert {name: after[name] for name in before} == before


def test_a_mount_that_goes_away(tiny_bundle: Path, tmp_path: Path) -> None:
    out, gone = tmp_path / "set", tmp_path / "gone"

    def unmount(what: str, done: float, total: float | None, note: str) -> None:
        if done > 0 and not gone.exists():
            out.rename(gone)
            out.mkdir()

    with open_bundle(tiny_bundle, engine="fake") as bundle:
        with pytest.raises(OutputError, match="went away or stopped working while the set was written"):
            generate(bundle, out, counts=(900, 60, 3), progress=unmount)
        assert list(out.iterdir()) == []
        out.rmdir()
        gone.rename(out)
        assert generate(bundle, out, counts=(900, 60, 3)).complete
        generate(bundle, tmp_path / "one", counts=(900, 60, 3))
    assert tree(out) == tree(tmp_path / "one")


def test_what_a_killed_process_was_making_is_removed(tiny_bundle: Path, tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    work = tmp_path / ".dim" / "work"
    kept = {f"{platform.node()}.{os.getpid()}.0", f"elsewhere.{dead.pid}.0", "of another kind"}
    for name in (*kept, f"{platform.node()}.{dead.pid}.0"):
        (work / name).mkdir(parents=True)
        (work / name / "train.npz").write_bytes(b"half")
    with open_bundle(tiny_bundle, engine="fake") as bundle:
        generate(bundle, tmp_path, counts=(600, 0, 0), shard=(0, 2))
    assert {path.name for path in work.iterdir()} == kept


@pytest.mark.parametrize("format", ["npz", "npy"])
def test_a_file_that_was_cut_off_is_made_anew(tiny_bundle: Path, tmp_path: Path, format: str) -> None:
    def interrupt(what: str, done: float, total: float | None, note: str) -> None:
        if done >= 1500:
            raise KeyboardInterrupt

    counts = (3000, 1000, 0)
    with open_bundle(tiny_bundle, engine="fake") as bundle:
        with pytest.raises(KeyboardInterrupt):
            generate(bundle, tmp_path / "set", counts=counts, format=format, progress=interrupt)
        assert not [name for name in tree(tmp_path / "set") if name.endswith((".npz", ".npy"))]
        assert generate(bundle, tmp_path / "set", counts=counts, format=format).images_drawn == 4000
        generate(bundle, tmp_path / "one", counts=counts, format=format)
    assert tree(tmp_path / "set") == tree(tmp_path / "one")
