"""The processor: its name, its instruction sets, and how many of its cores this process may use."""

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from dim.runtime.errors import BadValueError

_GROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Count the cores that this process may use: those it may run on, no more than a container's quota of CPU time."""
    return max(1, min([len(os.sched_getaffinity(0)), *(math.ceil(quota) for quota in list_cpu_quotas())]))


def check_threads(threads: int | None) -> None:
    """Check a number of threads that was asked for.

    Raises:
        BadValueError: below 1, or more than the machine has cores, which only take memory and turns from each other.
    """
    cores = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= cores:
        raise BadValueError(
            f"The number of threads is {threads:,}; it must lie between 1 and {cores:,}, the cores of this machine."
        )


def list_cpu_quotas(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> list[float]:
    """List the limits on CPU time that containers set for this process, in cores.

    Args:
        groups: where control groups are mounted.
        membership: the file that says which groups the process is in, as `/proc/self/cgroup`.

    Returns:
        the limits of the process's groups and of those above them, versions 1 and 2; empty without a limit.
    """
    try:
        lines = membership.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    quotas = []
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:
            roots = [groups, groups / "unified"]
        elif "cpu" in controllers.split(","):
            roots = list(dict.fromkeys([groups / controllers, groups / "cpu"]))
        else:
            continue
        for folder in (folder for root in roots for folder in _list_upwards(root, path)):
            quotas += _read_quota(folder)
    return quotas


def _list_upwards(root: Path, path: str) -> Iterator[Path]:
    """List a group's folder and those above; in a container they may be mounted without the host's part of the path."""
    steps = [step for step in path.split("/") if step not in ("", ".", "..")]
    for kept in range(len(steps), -1, -1):
        yield root.joinpath(*steps[:kept])


def _read_quota(folder: Path) -> list[float]:
    """Read the quota of one group as cores; none where it has no limit."""
    try:
        if (both := folder / "cpu.max").is_file():
            quota, period = both.read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return [int(quota) / int(period)] if quota.isdecimal() and int(period) > 0 else []
    except (OSError, ValueError):
        return []


def processor_name() -> str:
    """Return the processor's model name, or what the system calls its kind."""
    return _read_cpuinfo("model name") or platform.processor() or platform.machine()


def list_processor_flags() -> frozenset[str]:
    """List the instruction sets of the processor by Linux's names, such as "avx512_bf16"; empty where it has no say."""
    return frozenset((_read_cpuinfo("flags") or _read_cpuinfo("Features")).split())


def find_bf16_instructions() -> str | None:
    """Name the instructions that multiply bf16, the fastest first: "AMX-BF16", "AVX512-BF16", or None."""
    flags = list_processor_flags()
    return "AMX-BF16" if "amx_bf16" in flags else "AVX512-BF16" if "avx512_bf16" in flags else None


def _read_cpuinfo(field: str) -> str:
    """Return the first value of a field of /proc/cpuinfo, empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    values = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(field))
    return next(values, "")
