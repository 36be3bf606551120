"""How many workers this machine has room for: physical cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
GROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """What affinity and control group leave of the physical cores, at least 1. Two threads of a core train no faster than one."""
    logical = _allowed()
    return max(1, min(_physical(logical), _quota(len(logical))))


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _physical(logical: set[int]) -> int:
    """Distinct cores among these processors, as far as the system tells."""
    if not CPUS.exists():
        import psutil

        return min(len(logical), psutil.cpu_count(logical=False) or len(logical))
    return len({_text(CPUS / f"cpu{number}" / "topology" / "thread_siblings_list") or str(number) for number in logical})


def _quota(otherwise: int) -> int:
    """Whole processors that the control group of a container gives, versions 2 and 1; `otherwise` where it sets no limit."""
    allowed, _, period = _text(GROUPS / "cpu.max").partition(" ")
    if not period:
        allowed, period = _text(GROUPS / "cpu" / "cpu.cfs_quota_us"), _text(GROUPS / "cpu" / "cpu.cfs_period_us")
    try:
        return max(1, math.floor(int(allowed) / int(period))) if int(allowed) > 0 else otherwise
    except (ValueError, ZeroDivisionError):
        return otherwise


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
