"""How many cores this process may use, and how many threads may be asked for."""

import os
from pathlib import Path

import pytest
from cli_tools import dim, one_line

from dim.runtime import cores
from dim.runtime.cores import check_threads, list_cpu_quotas, usable_cores
from dim.runtime.engines.base import EngineOptions
from dim.runtime.errors import BadValueError

GROUPS: dict[str, tuple[str, dict[str, str], list[float]]] = {
    "v2 in a container": ("0::/\n", {"cpu.max": "150000 100000\n"}, [1.5]),
    "v2 without a limit": ("0::/\n", {"cpu.max": "max 100000\n"}, []),
    "v2 of a service, and the slice above": (
        "0::/system.slice/dim.service\n",
        {"system.slice/dim.service/cpu.max": "400000 100000", "system.slice/cpu.max": "300000 100000"},
        [4.0, 3.0],
    ),
    "v2 whose path is the host's": ("0::/docker/0123abc\n", {"cpu.max": "200000 100000"}, [2.0]),
    "v1 in a container": (
        "12:cpuset:/\n4:cpu,cpuacct:/docker/0123abc\n1:name=systemd:/\n",
        {"cpu,cpuacct/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
        [2.5],
    ),
    "v1 of a group": (
        "4:cpu:/batch/7\n",
        {"cpu/batch/7/cpu.cfs_quota_us": "50000", "cpu/batch/7/cpu.cfs_period_us": "100000"},
        [0.5],
    ),
    "v1 without a limit": ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
    "both versions": (
        "4:cpu:/\n0::/\n",
        {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000", "unified/cpu.max": "max 100000"},
        [3.0],
    ),
    "no group": ("", {"cpu.max": "100000 100000"}, []),
    "damaged": ("0::/\nx\n", {"cpu.max": "many\n"}, []),
    "a period of nothing": ("0::/\n", {"cpu.max": "100000 0"}, []),
    "a path that leads out": ("0::/../../secret\n", {"cpu.max": "100000 100000"}, [1.0]),
}


@pytest.mark.parametrize("name", GROUPS)
def test_quotas_of_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    membership, files, expected = GROUPS[name]
    (tmp_path / "self").write_text(membership)
    for file, content in files.items():
        (tmp_path / "groups" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / file).write_text(content)
    assert list_cpu_quotas(tmp_path / "groups", tmp_path / "self") == expected
    monkeypatch.setattr(cores, "list_cpu_quotas", lambda: expected)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert usable_cores() == min([8, *(-int(-quota // 1) for quota in expected)])


def test_without_control_groups(tmp_path: Path) -> None:
    assert list_cpu_quotas(tmp_path, tmp_path / "none") == []


def test_threads_beyond_the_machine_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    most = os.cpu_count() or 1
    for count in (1, most, None):
        check_threads(count)
        EngineOptions(threads=count)
    for count in (0, -1, most + 1, 10_000):
        with pytest.raises(
            BadValueError, match=rf"The number of threads is {count:,}; it must lie between 1 and {most}"
        ):
            EngineOptions(threads=count)
    common = ["--threads", 10_000, "--bundle", tiny_bundle]
    line = f"The number of threads is 10,000; it must lie between 1 and {most}, the cores of this machine."
    assert one_line(dim("generate", "--ipc", 1, "--out", tmp_path / "set", *common)) == line
    assert one_line(dim("verify", tiny_bundle, "--threads", 10_000)) == line
    assert one_line(dim("bench", *common)) == line
    assert not (tmp_path / "set").exists()
