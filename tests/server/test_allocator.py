"""Memory that is freed stays with the process: seen by its effect, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from fedrho.server.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def upload():
    chunks = [bytearray(512 * 1024) for _ in range(10)]
    for chunk in chunks:
        chunk[::4096] = bytes(128)
for _ in range(20):
    upload()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    upload()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


FLOODED = """
import sys, time
from fedrho.server.allocator import Trimmer, keep_freed_memory, resident
assert keep_freed_memory()
trimmer = Trimmer(0.05, 64 * 1024 * 1024)
if sys.argv[1] == "trimmed":
    trimmer.start()
    time.sleep(0.2)
flood = [b"x" * 1_000_000 for _ in range(200)]
time.sleep(0.2)
high = resident()
del flood[:-1]
ends = time.monotonic() + 10
while high - resident() < 150_000_000 and time.monotonic() < ends and sys.argv[1] == "trimmed":
    time.sleep(0.05)
print(high - resident())
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, check=True, text=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_the_pages_of_an_upload_are_fetched_once_and_not_for_every_upload() -> None:
    pages = 20 * 10 * 128
    assert faults("default") > pages / 2
    assert faults("kept") < pages / 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the call is glibc's")
@pytest.mark.parametrize(("how", "least", "most"), [("kept", -1e6, 50e6), ("trimmed", 150e6, 250e6)])
def test_the_memory_of_a_flood_is_given_back(how: str, least: float, most: float) -> None:
    """Even where a look came in the middle of it."""
    done = subprocess.run([sys.executable, "-c", FLOODED, how], capture_output=True, check=True, text=True, timeout=60)
    assert least < int(done.stdout) < most
