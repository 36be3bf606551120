"""What people see of a command: bars that never wrap, a cursor that comes back, help, names at Tab, and exit codes."""

from __future__ import annotations

import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fedrho import cli, completions, console
from fedrho.commands import PANELS, PLACES
from fedrho.labels.progress import TrainProgress
from fedrho.labels.recipes import METHODS
from fedrho.progress import Bar, FileProgress, Pace, clock, rate_text
from fedrho.server.tasks import ALGORITHMS
from fedrho.simulations.data import catalogue
from fedrho.simulations.study import ENGINES
from fedrho.usage import near
from fedrho.work import Work
from tests.commanding import Run, refused, runner
from tests.docs.shell import PROGRAM, check_line

HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"


@pytest.fixture
def fedrho(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    return runner(monkeypatch, capfd)


# -- pace and bar --------------------------------------------------------------------------------------------------------------


def test_a_pace_forgets_the_slow_beginning_and_slows_while_the_next_is_overdue() -> None:
    pace = Pace(100)
    assert pace.left(0.0) is None
    pace.reached(0, 0.0)
    for done in range(1, 31):
        pace.reached(done, 50.0 + done)  # fifty seconds of tracing, then one a second
    assert pace.rate(80.0) == pytest.approx(1.0)
    assert pace.left(80.0) == pytest.approx(70.0)
    assert pace.left(80.5) == pytest.approx(69.5)
    slow = pace.rate(180.0)
    assert slow is not None
    assert slow < 0.2
    pace.skipped_to(60, 181.0)
    assert pace.rate(182.0) is None


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("plain", [False, True])
def test_a_line_is_never_wider_than_the_terminal(width: int, plain: bool) -> None:
    for bar in (Bar("training", 12345), Bar("step", None), FileProgress("a-name-of-a-file.tar.gz", 10 << 20)):
        bar.reach(1, "rho 4.1 of 10, accuracy 0.881 (simulation), " * 3)
        bar.reach(70)
        text = bar.line(width, time.monotonic() + 1, plain).plain
        assert len(text) <= width
        assert "\n" not in text
        assert not plain or text.isascii()


def test_a_line_says_unit_done_rate_time_left_and_budget() -> None:
    bar = Bar("step", 30)
    began = time.monotonic()
    bar.reach(0)
    bar.reach(12, "rho 4.1 of 10")
    assert re.fullmatch(r"step 12/30 ━+ +[\d.]+ \S+ ETA \d+:\d\d rho 4.1 of 10", bar.line(80, began + 5).plain)
    bar.reach(30, "rho 10 of 10")
    assert re.fullmatch(r"step 30/30 ━+ +[\d.]+ \S+ in 0:0\d rho 10 of 10", bar.line(80, began + 5).plain)


def test_a_long_training_moves_by_the_steps_of_its_models() -> None:
    progress = TrainProgress(2, quiet=True)
    began = time.monotonic()
    progress.reach(0)
    progress.begun("LP-2ST", [100, 300])
    said = []
    for done, steps, loss in ((50, 100, 1.5), (100, 100, 1.0), (150, 300, 0.5), (300, 300, math.nan)):
        progress.fitting(done, steps, loss)
        said.append((progress._done, progress.line(140, began + 4).plain))
    assert [done for done, _ in said] == [0.125, 0.25, 0.625, 1.0]
    shown = r"training 0/2 ━+ +[\d.]+ \S+ ETA \d+:\d\d LP-2ST: step 150/300 of model 2/2, loss on answers 0.500"
    assert re.fullmatch(shown, said[2][1])
    assert "nan" not in said[3][1]
    progress.ended()
    progress.begun("DP-SGD", [10], skipped=True)
    progress.ended()
    assert progress._done == 2


def test_rates_and_times_are_said_as_people_say_them() -> None:
    assert [rate_text(rate, "step") for rate in (2400.4, 2.08, 0.25, 0.001)] == [
        "2400 steps/s",
        "2.08 steps/s",
        "4 s/step",
        "16.7 min/step",
    ]
    assert rate_text(20.0, "canary") == "20 canaries/s"
    assert [clock(seconds) for seconds in (8, 750, 11100, 356700)] == ["0:08", "12:30", "3:05:00", "4 d 3:05:00"]


# -- on a terminal -------------------------------------------------------------------------------------------------------------


def on_a_terminal(code: str, number: int | None, **environment: str) -> tuple[int, bytes]:
    """Runs `code` behind a terminal of 60 columns; sends a signal when it says `ready`. Exit code and all that was written."""
    command = [sys.executable, "-c", f"import fedrho.cli as cli, sys; from fedrho import console\n{code}"]
    primary, secondary = pty.openpty()
    settings = {**os.environ, "COLUMNS": "60", "TERM": "xterm", **environment}
    with subprocess.Popen(command, stdout=secondary, stderr=secondary, stdin=secondary, env=settings) as process:
        os.close(secondary)
        written = b""
        while select.select([primary], [], [], 30)[0]:
            try:
                written += os.read(primary, 65536)
            except OSError:
                break
            if number is not None and b"ready" in written:
                process.send_signal(number)
                number = None
        os.close(primary)
    return process.returncode, written


WORK = """
from fedrho.work import Work
console.keep_stderr()
with Work("beginning", "rho 1 of 2") as work:
    for unit, total in (("canary", 3), ("part", 2), ("iteration", None)):
        for done in range(3):
            work.progress(unit, done, total, "working")
            work._live.refresh() if work._live else None
print("result")
"""
SPINNER = """
import time
def app(**_):
    with console.working("ready"):
        time.sleep(30)
cli.app = app
cli.main()
"""
BAR = """
from fedrho.progress import StepProgress
console.keep_stderr()
with StepProgress(3) as progress:
    for step in range(4):
        progress.show(step, "rho 1 of 2, and words enough to fill a line of sixty columns twice over, or nearly so")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_gives_the_cursor_back(number: int) -> None:
    code, written = on_a_terminal(SPINNER, number)
    assert code == 130
    assert HIDE in written
    assert written.rindex(SHOW) > written.rindex(HIDE)
    assert written.endswith(b"fedrho: stopped\r\n")


def test_a_bar_stays_on_its_line_and_where_there_is_no_cursor_it_is_lines() -> None:
    code, written = on_a_terminal(BAR, None)
    assert code == 0
    assert written.count(b"\n") == 1
    assert written.rindex(SHOW) > written.rindex(HIDE)
    code, written = on_a_terminal(BAR, None, TERM="dumb")
    assert b"\x1b" not in written
    assert [line.split()[1] for line in written.decode().splitlines()] == ["0/3", "1/3", "2/3", "3/3"]


def test_work_of_several_parts_shows_each_and_leaves_nothing_but_the_result() -> None:
    code, written = on_a_terminal(WORK, None)
    assert code == 0
    shown = written.decode()
    for part in ("canary 2/3 ", "part 1/2 ", "iteration 2", "working, rho 1 of 2"):
        assert part in shown
    assert shown.endswith("\x1b[2Kresult\r\n")  # the line is empty again, and the cursor in it
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    for manner in ("plain", "silent"):
        assert on_a_terminal(f"console.{manner}(True)\n{WORK}", None) == (0, b"result\r\n")


def test_what_is_unlike_one_another_claims_no_time_left() -> None:
    work = Work("beginning", "rho 1")
    for unit, head in (("part", r"part 1/3"), ("row", r"row 1/3")):
        work.progress(unit, 0, 3, "working")
        work.progress(unit, 1, 3, "working")
        line = work.line(100, time.monotonic() + 5).plain
        assert re.fullmatch(head + r" ━+ +(for 0:05|[\d.]+ s/row ETA 0:\d\d) working, rho 1", line)
        assert ("ETA" in line) == (unit == "row")
    work.progress("row", 3, 3, "working")
    assert re.fullmatch(r"row 3/3 ━+ for 0:0\d working, rho 1", work.line(100, time.monotonic() + 5).plain)
    work.progress("byte", 1 << 20, 4 << 20, "reading")
    assert work.line(100, time.monotonic()).plain.startswith("1.0/4.0 MiB ")


def test_letters_that_cannot_be_written_are_spelled() -> None:
    line = "console.keep_stderr(); console.spell_what_cannot_be_encoded(); print('\\u03b5'); console.err.print('\\u03c1')"
    command = [sys.executable, "-c", f"import fedrho.cli; from fedrho import console; {line}"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\u03b5\n", b"\\u03c1\n")


# -- help ----------------------------------------------------------------------------------------------------------------------


def test_the_help_lists_every_command_once_on_one_line_without_importing_any(
    fedrho: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert [name for commands in PANELS.values() for name in commands] == list(PLACES)
    code, out, err = fedrho("--help")
    assert (code, err) == (0, "")
    for name, said in ((name, said) for commands in PANELS.values() for name, said in commands.items()):
        assert re.search(rf"^│ {name} +{re.escape(said)} +│$", out, re.MULTILINE), name
    assert max(map(len, out.splitlines())) <= 80
    found = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['fedrho', '--help']\nimport fedrho.cli as c\ntry: c.main()\n"
         "except SystemExit: print('numpy' in sys.modules, file=sys.stderr)"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert found.stderr == "False\n"


def commands(group: Any = PROGRAM, path: str = "fedrho") -> list[tuple[str, Any]]:
    """Groups, too."""
    found = []
    for name, command in group.commands.items():
        found.append((f"{path} {name}", command))
        found += commands(command, f"{path} {name}") if hasattr(command, "commands") else []
    return found


def test_every_command_and_every_group_has_an_example_of_itself_that_it_takes() -> None:
    every = commands()
    assert sum(hasattr(command, "commands") for _, command in every) == 6
    assert len(every) > 46
    for path, command in every:
        short = path.replace("simulate run", "simulate")
        found = re.search(rf"^Example: (({path}|{short})\b.*)$", command.help, re.MULTILINE)
        assert found, path
        check_line(found[1])
    for line in re.findall(r"^  (fedrho .*)$", PROGRAM.epilog or "", re.MULTILINE):
        check_line(line)


def test_no_name_of_an_option_is_cut_where_a_console_has_80_columns() -> None:
    narrow = CliRunner(env={"COLUMNS": "80", "LINES": "25"})
    for path, command in commands():
        shown = narrow.invoke(cli.app, [*path.split()[1:], "--help"], color=False).stdout
        names = {name for one in command.params for name in one.opts if name.startswith("--")}
        assert names <= set(shown.split()), path
        extras = re.findall(r"[\w-]*\[[\w.]+\]", " ".join(str(one.help).replace("\\", "") for one in command.params))
        assert all(extra in shown for extra in extras), path  # brackets are markup of the help


def test_json_and_quiet_mean_the_same_for_every_command() -> None:
    meant = {"--json": "plain", "--quiet": "silent"}
    found = [(path, one) for path, command in commands() for one in command.params if one.opts[0] in meant]
    assert len(found) > 30
    for path, one in found:
        called = one.callback
        assert getattr(called, "__wrapped__", called).__name__ == meant[one.opts[0]], (path, one.opts)


def test_the_page_says_which_commands_have_no_json_and_which_are_quiet() -> None:
    page = " ".join((Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8").split())
    leaves = [(path.removeprefix("fedrho "), command) for path, command in commands() if not hasattr(command, "commands")]
    having = {
        option: [path for path, command in leaves if any(option in one.opts for one in command.params)]
        for option in ("--json", "--quiet")
    }
    without = re.findall("`([^`]+)`", page.partition("those that run until they are stopped: ")[2].partition(". `--quiet`")[0])
    quiet = re.findall("`([^`]+)`", page.partition("`--quiet`, of ")[2].partition(", says nothing but errors")[0])
    assert sorted(without) == sorted(path for path, _ in leaves if path not in having["--json"])
    assert sorted(quiet) == sorted(having["--quiet"])


# -- completion ----------------------------------------------------------------------------------------------------------------


def completed(line: str) -> list[str]:
    words = line.split(" ")
    environment = {"_FEDRHO_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    command = [sys.executable, "-c", "import sys; sys.argv = ['fedrho']; from fedrho.cli import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fedrho s", ["serve", "status", "shard", "simulate"]),
        ("fedrho models show digits-", ["digits-logistic", "digits-mlp", "digits-wide-mlp"]),
        ("fedrho simulate --eng", ["--engine"]),
        ("fedrho serve examples/dig", []),
    ],
)
def test_tab_completes(line: str, expected: list[str]) -> None:
    assert completed(line) == expected


def test_names_that_are_completed_are_those_there_are() -> None:
    from fedrho.client.computer import BUILT_IN
    from fedrho.demo_command import Algorithm

    assert catalogue.names() == completions.DATA_SETS
    assert tuple(METHODS) == completions.METHODS
    assert set(completions.ENGINES) < set(ENGINES)
    assert {name.rstrip("=") for name in completions.CONDITIONS} == set(BUILT_IN)
    assert {one.value for one in Algorithm} == set(ALGORITHMS)


# -- errors and exit codes -----------------------------------------------------------------------------------------------------


def test_a_wrong_name_gets_the_near_one(fedrho: Run) -> None:
    refused(fedrho("demmo"), "did you mean demo?")
    refused(fedrho("account", "spend", "--mechanism", "tre", "--noise-multiplier", 1), "did you mean 'tree'?")
    refused(fedrho("simulate", "example", "digitz"), "did you mean 'digits'?")
    refused(fedrho("labels", "train", "--dataset", "digitz", "--epsilon", 1), "--dataset digitz", "did you mean 'digits'?")
    assert near("qqqq", ["tree"]) == ""


@pytest.mark.parametrize("line", ["serve", "simulate", "account membership", "labels train", "labels audit --matrix"])
def test_a_folder_where_a_file_belongs_is_said_so(line: str, fedrho: Run, tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    code, out, err = fedrho(*line.split(), "folder.toml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "folder" in err.replace("folder.toml", "") or "Is a directory" in err
    assert "Errno" not in err


def test_what_a_file_lacks_is_said_in_one_line(fedrho: Run, tmp_path: Path) -> None:
    np.save("one.npy", np.ones(3))
    Path("one.npy").rename("one.npz")
    refused(fedrho("account", "membership", "one.npz"), "one.npz", "docs/auditing.md")
    Path("empty.csv").touch()
    refused(fedrho("labels", "audit", "--matrix", "empty.csv"), "empty.csv: is empty")
    Path("labelled").mkdir()
    Path("classes").write_bytes(b"\xff")
    refused(
        fedrho(*["labels", "train", "--dataset", "digits", "--epsilon", "1", "--classes", "classes"]),
        "--classes classes",
        "UTF-8",
    )
    (tmp_path / "begun").mkdir()
    Path("begun/experiment.toml").write_text("seeds = 1\n")
    refused(fedrho(*["labels", "export", "begun", "--out", "x.keras"]), "no training is finished", "--out begun")


def test_what_is_quiet_says_nothing(fedrho: Run) -> None:
    assert fedrho("data", "fetch", "digits", "--quiet") == (0, "", "")
    assert fedrho("data", "fetch", "digits")[1] != ""


def test_what_would_be_ignored_is_refused(fedrho: Run) -> None:
    refused(fedrho("predict", "m.npz", "--text", "a", "--temperature", 2), "--temperature", "--continue")
    refused(fedrho("predict", "m.npz", "--features", "1", "--seed", 2), "--seed", "--continue")


def test_sizes_and_addresses_are_checked_before_anything_is_built(fedrho: Run, tmp_path: Path) -> None:
    refused(fedrho("models", "show", "applications:MobileNetV2:99999x99999x3:10:stateless"), "at most 1024 x 1024")
    refused(fedrho("shard", "nohost"), "not HOST:PORT")
    assert list(tmp_path.iterdir()) == []


def test_the_exit_codes_that_are_documented_are_those_there_are(fedrho: Run) -> None:
    """One real case each; 130 is above. Of 1, an audit that finds less noise than is claimed, and a pipe that nobody reads."""
    assert fedrho("--version")[0] == 0
    assert fedrho("simulate", "nothing.toml")[0] == 2
    Path("m.csv").write_text("0.9,0.1\n0.1,0.9\n")
    code, _, err = fedrho("labels", "audit", "--matrix", "m.csv", "--epsilon", 1)
    assert (code, err.count("\n")) == (1, 1)
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
    table = page.partition("## Exit codes")[2].partition("## ")[0]
    assert re.findall(r"^\| (\d+) \|", table, re.MULTILINE) == ["0", "1", "2", "130"]
    assert not console.err.is_terminal
