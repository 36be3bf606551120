"""TensorFlow and Keras for a process of ours that trains and does nothing else, sooner there and smaller.

Where Keras finds scikit-learn and matplotlib it imports them, for wrappers and pictures that training has no use for: a third of
the time that it takes to start, and 90 MiB. Whoever asks for them later gets them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

NEEDLESS = ("sklearn", "matplotlib")


def load() -> None:
    """Imports TensorFlow and Keras without them; what is there already stays."""
    with _left_out(*NEEDLESS):
        import fedrho.models.backend  # noqa: F401


@contextmanager
def _left_out(*names: str) -> Iterator[None]:
    """Importing one of `names` is an ImportError."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
