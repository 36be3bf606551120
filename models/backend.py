"""TensorFlow and Keras, imported without the lines that TensorFlow writes to standard error before its log settings apply."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@contextmanager
def _native_stderr_silenced() -> Iterator[None]:
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


with _native_stderr_silenced():
    import keras
    import tensorflow as tf

if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3":  # TensorFlow's Python logs by itself, as of loops that it would have vectorized
    tf.get_logger().setLevel("ERROR")

__all__ = ["SeveralThreads", "keras", "one_thread", "tf"]

THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
"""What TensorFlow reads as it begins, where nothing was set otherwise."""


class SeveralThreads(RuntimeError):
    """TensorFlow has begun to compute in this process, and not on one thread."""


def one_thread() -> None:
    """All that TensorFlow computes in this process is computed on one thread: its bits then do not depend on the machine's cores.

    Raises SeveralThreads where it is too late for that.
    """
    threading = tf.config.threading
    if (threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads()) == (1, 1):
        return
    try:
        threading.set_intra_op_parallelism_threads(1)
        threading.set_inter_op_parallelism_threads(1)
    except RuntimeError as error:
        if any(os.environ.get(name) != "1" for name in THREADS):
            raise SeveralThreads("TensorFlow has begun in this process with more than one thread") from error
