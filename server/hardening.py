"""What a process asks of the kernel for its memory, which holds updates, sessions and tickets: that no file is made of it."""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import suppress
from typing import Final

PR_SET_DUMPABLE: Final = 4


def forbid_core_dumps() -> None:
    """For the rest of the process, as far as the system lets it; a process that it starts has to ask again.

    The limit holds for files. Where the kernel pipes cores to a program (systemd, apport), Linux ignores the limit, but not the
    mark on the process, which also keeps debuggers of the same user out.
    """
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
