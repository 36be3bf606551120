"""TensorFlow runs on one thread in every test, as it does in a simulation, and as many tests beside one another want it. Ctrl-C
ends what tests start, wherever they run: a shell has programs in its background ignore it, and so whatever they start. And what
fails is shown at once, because a run that is stopped never comes to its summary."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # in the process that hears all workers
        config.pluginmanager.register(ShownAtOnce(config))


class ShownAtOnce:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line(f"\nFAILED {report.nodeid} ({report.when})", red=True)
            terminal.write_line(report.longreprtext)


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A command that ran in the test's own process leaves its way with signals behind, which later tests would get."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
