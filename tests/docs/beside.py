"""Programs of a page that go on beside it: started as in a terminal of their own, waited for, and stopped with Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

PATIENCE: Final = 600.0
"""Seconds; a machine where this is too short runs no test."""
STOPPED: Final = (0, 130)
"""Exit codes after Ctrl-C: at the end of the work, or before it."""


class Beside:
    """One program, what it prints in a file of its own, and all that it starts in its group of processes."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._shown = " ".join(command)
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def __str__(self) -> str:
        return f"{self._shown}: exit code {self._process.returncode}\n{self._log.read_text(encoding='utf-8', errors='replace')}"

    def wait_for(self, line: str) -> None:
        """A regular expression. Raises AssertionError where it ends without having printed that."""
        deadline = time.monotonic() + PATIENCE
        while True:
            ended = self._process.poll() is not None
            printed = " ".join(self._log.read_text(encoding="utf-8", errors="replace").split())
            if re.search(line, printed):
                return
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"waited for {line!r} of {self}")
            time.sleep(0.05)

    def stop(self) -> None:
        """With Ctrl-C, as a terminal does for all that runs in it. Raises AssertionError for another exit code than that."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT)
        self._process.wait(PATIENCE)
        assert self._process.returncode in STOPPED, str(self)

    def end(self) -> None:
        """Whatever of it is left."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
