"""Child processes that never outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

GRACE_SECONDS = 3.0


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """`fedrho ARGUMENTS` with its output in `log`; ends when this process does, however that happens.

    The child holds the reading end of a pipe that this process never writes to; `end_with_parent` waits for its end.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "fedrho", *arguments],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "FEDRHO_END_WITH_PARENT": "1"},
        )


def end_with_parent() -> None:
    """In a child made by `start`: when the parent is gone, asks this process to end, then makes it."""
    if os.environ.get("FEDRHO_END_WITH_PARENT") == "1":
        threading.Thread(target=_watch, daemon=True).start()


def stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends all of them, gently first; another Ctrl-C meanwhile changes nothing."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _stop(children)
    finally:
        signal.signal(signal.SIGINT, before)


def _stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            child.terminate()
    for child in children:
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdin:
            child.stdin.close()


def _watch() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(GRACE_SECONDS)
    os._exit(1)
