"""Who is let in: an operator who shows the token gets a session, which lives in this process alone."""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

SESSION_SECONDS: Final = 8 * 3600.0
MOST_SESSIONS: Final = 32
"""More than operators; the oldest one ends for a new one."""
NAME_BYTES: Final = 32
GUESSES: Final = 10
"""Wrong tokens that may come at once, from everybody together: on loopback all callers look alike."""
GUESS_SECONDS: Final = 6.0
"""After which one more may."""


class TooManyGuesses(Exception):
    """Nothing was compared."""


@dataclass(frozen=True)
class Session:
    """`form` is what a form of this session has to bring along."""

    form: str = field(repr=False)
    ends_at: float


class Sessions:
    """All of them; `clock` is in seconds and never goes back."""

    def __init__(self, token: str, clock: Callable[[], float]) -> None:
        self._token, self._clock = token.encode(), clock
        self._open: dict[str, Session] = {}
        self._guesses, self._guessed_at = float(GUESSES), clock()

    def login(self, shown: str) -> str | None:
        """The name of a new session for whoever shows the token, or the content of `operator.json`; raises TooManyGuesses."""
        now = self._clock()
        self._guesses = min(GUESSES, self._guesses + (now - self._guessed_at) / GUESS_SECONDS)
        self._guessed_at = now
        if self._guesses < 1.0:
            raise TooManyGuesses
        if not hmac.compare_digest(_token_in(shown).encode("utf-8", "surrogatepass"), self._token):
            self._guesses -= 1.0
            return None
        name = os.urandom(NAME_BYTES).hex()
        self._open = {key: one for key, one in list(self._open.items())[-MOST_SESSIONS + 1 :] if one.ends_at > now}
        self._open[name] = Session(os.urandom(NAME_BYTES).hex(), now + SESSION_SECONDS)
        return name

    def known(self, name: str) -> Session | None:
        session = self._open.get(name)
        return session if session is not None and session.ends_at > self._clock() else None

    def logout(self, name: str) -> None:
        self._open.pop(name, None)


def _token_in(shown: str) -> str:
    """A token as it stands, or out of a pasted `operator.json`."""
    text = shown.strip()
    if not text.startswith("{"):
        return text
    try:
        return str(json.loads(text)["token"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
