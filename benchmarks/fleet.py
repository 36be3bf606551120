"""A whole population against one server: `fedrho serve` and `fedrho fleet`, for many rounds, on the cores that there are.

Both are the commands that anybody would give, in processes of their own. Their CPU time and their memory are read from the
operating system once a second; what was counted is compared with what the devices' ledgers hold. Prints; asserts nothing.
FEDRHO_FLEET_DEVICES, _STEPS and _GOAL take other numbers.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

DEVICES = int(os.environ.get("FEDRHO_FLEET_DEVICES", "2000"))
STEPS = int(os.environ.get("FEDRHO_FLEET_STEPS", "50"))
GOAL = int(os.environ.get("FEDRHO_FLEET_GOAL", str(max(1, DEVICES // 20))))
MIB = 1024 * 1024
TASK = """
name = "fleet"
algorithm = "dp-ftrl"
model = "digits-logistic"
steps = {steps}
population = {devices}
[round]
goal = {goal}
deadline_seconds = 60
lease_seconds = 20
retry_seconds = [{least}, {most}]
[privacy]
clip_norm = 0.5
rho = 10.0
delta = 1e-5
[participation]
max_times = {times}
min_separation = 4
[local]
batch_size = 10
learning_rate = 0.5
"""


@dataclass
class Usage:
    """A process, looked at once a second: when, and resident bytes; CPU seconds at last."""

    process: psutil.Process
    times: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    cpu: float = 0.0

    def look(self, now: float) -> None:
        try:
            used = self.process.cpu_times()
            self.resident.append(self.process.memory_info().rss)
        except psutil.Error:
            return
        self.times.append(now)
        self.cpu = used.user + used.system

    def slope(self) -> float:
        """Bytes a second, by least squares over the second half of the time."""
        half = len(self.times) // 2
        if len(self.times) - half < 3:
            return float("nan")
        return float(np.polyfit(self.times[half:], self.resident[half:], 1)[0])

    def show(self, what: str) -> None:
        print(f"  CPU time of {what:<28} {self.cpu:8.1f} s")
        half = self.resident[len(self.resident) // 2] / MIB if self.resident else float("nan")
        print(f"  memory of {what:<30} {half:8.0f} MiB half-way, {max(self.resident, default=0) / MIB:.0f} MiB at its peak")
        print(f"    and its slope in the second half       {60 * self.slope() / MIB:+8.2f} MiB a minute")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="fedrho-bench-") as name:
        folder = Path(name)
        visits = DEVICES / 150.0  # seconds between two visits, so that about 150 come in a second
        text = TASK.format(
            steps=STEPS,
            devices=DEVICES,
            goal=GOAL,
            least=0.5 * visits,
            most=1.5 * visits,
            times=max(2, 2 * STEPS * GOAL // DEVICES),
        )
        (folder / "task.toml").write_text(text)
        metrics = _free_port()
        with _started(folder, "serve", "task.toml", "--port", "0", "--metrics-port", str(metrics), "--store", "store") as server:
            address = _address(folder / "serve.log", server)
            began = time.monotonic()
            arguments = ("fleet", address, "--devices", str(DEVICES), "--spread", f"{visits:g}", "--json")
            with _started(folder, *arguments) as fleet:
                counted = _watched(server, fleet, metrics, began, folder)
        _report(json.loads((folder / "fleet.out").read_text()), counted)


@contextmanager
def _started(folder: Path, command: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`fedrho COMMAND`, its output in `COMMAND.out` and `COMMAND.log` of the folder; ended with the block."""
    with (folder / f"{command}.out").open("wb") as out, (folder / f"{command}.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "fedrho", command, *arguments], cwd=folder, stdout=out, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _address(log: Path, server: subprocess.Popen[bytes]) -> str:
    """Where devices are to go, as the server says."""
    while server.poll() is None:
        if found := re.search(r"fedrho join (\S+)", log.read_text()):
            return found[1]
        time.sleep(0.1)
    raise SystemExit(f"the server has ended: {log.read_text()}")


def _watched(
    server: subprocess.Popen[bytes], fleet: subprocess.Popen[bytes], metrics: int, began: float, folder: Path
) -> tuple[float, float]:
    """Until the fleet has ended; seconds to the last release, and uploads that the server says it counted."""
    used = Usage(psutil.Process(server.pid)), Usage(psutil.Process(fleet.pid))
    counted, released, last = 0.0, 0, 0.0
    while fleet.poll() is None:
        now = time.monotonic() - began
        for one in used:
            one.look(now)
        counted, seen = _counted(metrics, counted), len(re.findall(r"^step ", (folder / "serve.log").read_text(), re.MULTILINE))
        released, last = (seen, now) if seen > released else (released, last)
        time.sleep(1.0)
    print(f"\n{DEVICES} devices, {STEPS} rounds of {GOAL} reports, {os.cpu_count()} cores")
    used[0].show("the server")
    used[1].show("the fleet")
    if fleet.returncode:
        raise SystemExit((folder / "fleet.log").read_text())
    return last, counted


def _counted(metrics: int, before: float) -> float:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=5) as answer:
            found = re.search(r'^fedrho_uploads_total\{outcome="COUNTED"\} (\S+)', answer.read().decode(), re.MULTILINE)
    except OSError:
        return before
    return float(found[1]) if found else before


def _report(fleet: dict[str, object], counted: tuple[float, float]) -> None:
    seconds, uploads = counted
    visits = fleet["visits"]
    assert isinstance(visits, dict)
    pace = f"{STEPS / seconds:.2f} rounds, {uploads / seconds:.0f} uploads a second"
    print(f"  from the first device to the last release {seconds:8.1f} s  ({pace})")
    print(f"  visits                                    {sum(visits.values()):8d}    ({visits})")
    print(f"  counted, as the server says               {uploads:8.0f}")
    print(f"  counted, as the devices were told         {visits.get('counted', 0):8d}")
    print(f"  in the devices' ledgers                   {fleet['in_ledgers']:8}")
    print(f"  counted and in no ledger                  {fleet['lost']:8}")


if __name__ == "__main__":
    main()
