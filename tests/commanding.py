"""`fedrho ARGUMENTS` in the test's own process, and what is expected of a line on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

Ended = tuple[int, str, str]
"""Exit code, standard output, standard error."""
Run = Callable[..., Ended]


def runner(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *first: str) -> Run:
    """Runs `fedrho FIRST ARGUMENTS`, through everything that the console script goes through."""
    from fedrho import cli, console

    def run(*arguments: Any) -> Ended:
        monkeypatch.setattr(sys, "argv", ["fedrho", *first, *map(str, arguments)])
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            console.err.file.close()
            console.err.file = None  # type: ignore[assignment]  # standard error itself, as before
        return int(ended.value.code or 0), *capfd.readouterr()

    return run


def refused(ended: Ended, *expected: str) -> None:
    """Exit code 2, nothing on standard output, and one line with all that is expected in it."""
    code, out, err = ended
    assert (code, out) == (2, ""), ended
    (line,) = err.strip().splitlines()
    assert line.startswith("fedrho: ")
    for text in expected:
        assert text in line
