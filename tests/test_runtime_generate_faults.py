"""Interruption: errors injected at every call that touches the disk, kills at every such call and at random moments.

Afterwards no final name holds a partial file, and the same call ends in the same bytes without rewriting what was
finished.
"""

import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from set_tools import identities, tree

from dim.runtime.bundle import Bundle
from dim.runtime.errors import OutputError
from dim.runtime.generate import GenerateSummary, generate

COUNTS = (9, 6, 2)
TOUCHING = ("write", "rename", "replace", "link", "fsync", "fdatasync", "mkdir", "open", "unlink")


class InjectedFault:
    """Patches the functions of `os` that touch the disk; the n-th call below `root` fails, is cut short or kills."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path, at: int, how: str) -> None:
        self.calls, self.at, self.how = 0, at, how
        self._root = str(root)
        self._ours: set[int] = set()
        for name in TOUCHING:
            patch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *rest: Any, **named: Any) -> Any:
            ours = first in self._ours if isinstance(first, int) else str(first).startswith(self._root)
            if not ours:
                return real(first, *rest, **named)
            self.calls += 1
            if self.calls == self.at:
                if self.how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif self.how == "short" and name == "write" and len(rest[0]) > 1:
                    return real(first, bytes(rest[0])[: len(rest[0]) // 2])
                elif self.how != "short":
                    raise OSError(getattr(errno, self.how), os.strerror(getattr(errno, self.how)), str(first))
            result = real(first, *rest, **named)
            if name == "open":
                self._ours.add(result)
            return result

        return call


@pytest.fixture
def fast(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: hundreds of runs that flush to a disk take minutes."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def make(bundle: Bundle, out: Path, format: str) -> GenerateSummary:
    sizes: dict[str, Any] = {} if format == "imagefolder" else {"shard_images": 10}
    return generate(bundle, out, counts=COUNTS, format=format, encoders=1, **sizes)


def check_nothing_partial(out: Path, expected: dict[str, bytes]) -> None:
    for name, data in tree(out).items():
        if not name.startswith(".dim/") and name != "dataset.json":
            assert data == expected[name], f"{name} bears its final name and is not finished"


def count_points(bundle: Bundle, folder: Path, format: str) -> tuple[int, dict[str, bytes]]:
    with pytest.MonkeyPatch.context() as patch:
        fault = InjectedFault(patch, folder, 0, "EIO")
        make(bundle, folder / "set", format)
    return fault.calls, tree(folder / "set")


@pytest.mark.parametrize("format", ["imagefolder", "npz", "npy"])
@pytest.mark.parametrize("how", ["ENOSPC", "EIO", "short"])
def test_errors_at_every_call(tiny_bundle: Path, fast: Path, format: str, how: str) -> None:
    with Bundle(tiny_bundle, engine="fake") as bundle:
        points, expected = count_points(bundle, fast / "reference", format)
        assert points > 25
        for at in range(1, points + 1):
            out = fast / str(at) / "set"
            with pytest.MonkeyPatch.context() as patch:
                InjectedFault(patch, out.parent, at, how)
                try:
                    make(bundle, out, format)
                except OutputError as error:
                    assert how != "short"
                    assert "run the same command again, what is finished is kept" in str(error)
            check_nothing_partial(out, expected)
            before = identities(out)
            assert make(bundle, out, format).complete
            assert tree(out) == expected
            after = identities(out)
            assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("format", ["imagefolder", "npz", "npy"])
def test_a_kill_at_every_call(tiny_bundle: Path, fast: Path, format: str) -> None:
    with Bundle(tiny_bundle, engine="fake") as bundle:
        points, expected = count_points(bundle, fast / "reference", format)
        for at in range(1, points + 1):
            out = fast / str(at) / "set"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                with pytest.MonkeyPatch.context() as patch:
                    InjectedFault(patch, out.parent, at, "kill")
                    make(bundle, out, format)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status) or at > points - 3
            check_nothing_partial(out, expected)
            before = identities(out)
            assert make(bundle, out, format).complete
            assert tree(out) == expected
            after = identities(out)
            assert {name: after[name] for name in before} == before


SCRIPT = """
import sys
from dim.runtime.bundle import Bundle
from dim.runtime.generate import generate
bundle, out, format = sys.argv[1:4]
generate(Bundle(bundle, engine="fake"), out, counts=(4000, 2000, 1000), format=format,
         progress=lambda *state: print(*state, flush=True))
"""


@pytest.mark.parametrize("format", ["imagefolder", "npz"])
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_kills_at_random_moments(tiny_bundle: Path, fast: Path, format: str, sign: signal.Signals) -> None:
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    print("seed", seed)
    command = [sys.executable, "-c", SCRIPT, str(tiny_bundle)]
    with Bundle(tiny_bundle, engine="fake") as bundle:
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
    with Bundle(tiny_bundle, engine="fake") as bundle:
        assert generate(bundle, out, counts=(4000, 2000, 1000), format=format).complete
    assert tree(out) == expected
    after = identities(out)
    assert {name: after[name] for name in before} == before


def test_a_mount_that_goes_away(tiny_bundle: Path, tmp_path: Path) -> None:
    out, gone = tmp_path / "set", tmp_path / "gone"

    def unmount(done: int, total: int, written: int) -> None:
        if done > 0 and not gone.exists():
            out.rename(gone)
            out.mkdir()

    with Bundle(tiny_bundle, engine="fake") as bundle:
        with pytest.raises(OutputError, match="went away or stopped working while the set was written"):
            generate(bundle, out, counts=(900, 60, 3), progress=unmount)
        assert list(out.iterdir()) == []
        out.rmdir()
        gone.rename(out)
        assert generate(bundle, out, counts=(900, 60, 3)).complete
        generate(bundle, tmp_path / "one", counts=(900, 60, 3))
    assert tree(out) == tree(tmp_path / "one")


def test_an_npz_goes_on_inside_the_file(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dim.runtime import writers_npz

    monkeypatch.setattr(writers_npz, "FLUSH_BYTES", 256 * 64)

    def interrupt(done: int, total: int, written: int) -> None:
        if done >= 1500:
            raise KeyboardInterrupt

    with Bundle(tiny_bundle, engine="fake") as bundle:
        with pytest.raises(KeyboardInterrupt):
            generate(bundle, tmp_path / "set", counts=(1000, 1000, 0), format="npz", progress=interrupt)
        partial = next((tmp_path / "set/.dim/partial").glob("*.npz"))
        with open(partial, "ab") as file:
            file.write(b"torn")
        summary = generate(bundle, tmp_path / "set", counts=(1000, 1000, 0), format="npz")
        assert 0 < summary.images_drawn <= 500
        generate(bundle, tmp_path / "one", counts=(1000, 1000, 0), format="npz")
    assert tree(tmp_path / "set") == tree(tmp_path / "one")
