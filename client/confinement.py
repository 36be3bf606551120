"""What a training process denies itself, before it sees an example: network, disk, other processes, most of the processor.

Each guard is tried; which of them hold is for the parent to know. The operating system keeps those of `Guard` but the last,
which Python itself keeps: it holds everywhere, for code in Python. On Linux the network is gone for native code as well.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from enum import Enum

if sys.platform != "win32":
    import resource


class Guard(Enum):
    """Something that a training process cannot do, and who sees to it."""

    LOW_PRIORITY = "nice"
    NO_NETWORK = "network namespace"
    NO_CORE_DUMP = "core dump"
    NO_FILES = "file size"
    LITTLE_MEMORY = "memory"
    ENDS_WITH_PARENT = "parent"
    AUDITED = "audit hook"


CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
SIGKILL = 9
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
STARTS_PROCESSES = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
CHANGES_FILES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "os.utime",
    "os.setxattr",
    "os.removexattr",
    "shutil.move",
)


def confine_early(parent: int) -> list[Guard]:
    """While the process has one thread, for which alone some of this works; `parent` is the process that it must not outlive."""
    return _held({
        Guard.LOW_PRIORITY: _be_nice,
        Guard.ENDS_WITH_PARENT: lambda: _end_with(parent),
        Guard.NO_NETWORK: _leave_the_network,
    })  # fmt: skip


def confine(memory_bytes: int) -> list[Guard]:
    """When all libraries are loaded and no example is; for good."""
    return _held({
        Guard.LITTLE_MEMORY: lambda: _limit_memory(memory_bytes),
        Guard.NO_FILES: lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        Guard.NO_CORE_DUMP: _dump_nothing,
        Guard.AUDITED: lambda: sys.addaudithook(_refuse),
    })  # fmt: skip


def limit_cpu(seconds: float) -> None:
    """Ends the process with SIGXCPU once it has used this much more processor time, all threads together."""
    if sys.platform != "win32":
        used = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        soft = int(used.ru_utime + used.ru_stime + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def resident_bytes(pid: int) -> int | None:
    """How much memory a process holds; None where the system does not say, or there is no such process."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _held(guards: dict[Guard, Callable[[], object]]) -> list[Guard]:
    held = []
    for guard, establish in guards.items():
        with suppress(OSError, ValueError, AttributeError, NameError):
            establish()
            held.append(guard)
    return held


def _be_nice() -> None:
    os.nice(19)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _end_with(parent: int) -> None:
    _libc("prctl", PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _leave_the_network() -> None:
    """Into a namespace with no interface but a loopback that is down; one's own user namespace first, where that is needed."""
    try:
        _libc("unshare", CLONE_NEWNET)
    except OSError:
        user, group = os.getuid(), os.getgid()
        _libc("unshare", CLONE_NEWUSER | CLONE_NEWNET)
        with suppress(OSError):
            _write_maps(user, group)


def _write_maps(user: int, group: int) -> None:
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _dump_nothing() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, AttributeError):
        _libc("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)  # a dump may also go to a program, which no limit concerns


def _limit_memory(memory_bytes: int) -> None:
    """Private memory beyond what the libraries hold already; the parent watches the rest. Only Linux counts so."""
    resident = resident_bytes(os.getpid())
    if resident is None:
        raise OSError("the system does not say how much memory is held")
    with open("/proc/self/status") as file:
        data = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:"))
    most = data + max(0, memory_bytes - resident)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _libc(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name} failed")


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    """The audit hook: no sockets, no processes, no signals to any, nothing that is written to a file or a log."""
    if event.startswith("socket."):
        raise PermissionError("training has no network")
    if event in STARTS_PROCESSES:
        raise PermissionError("training starts no processes")
    if event == "os.killpg" or (event == "os.kill" and arguments[0] != os.getpid()):
        raise PermissionError("training signals no processes")
    if event.startswith("syslog."):
        raise PermissionError("training writes no log")
    if event in CHANGES_FILES or (event == "open" and _writes(arguments)):
        raise PermissionError("training writes no files")


def _writes(arguments: tuple[object, ...]) -> bool:
    path, flags = arguments[0], arguments[2]
    return isinstance(flags, int) and bool(flags & WRITING) and path != os.devnull
