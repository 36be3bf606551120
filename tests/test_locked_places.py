"""Who may not enter a folder gets one line, and exit code 2, wherever a command looks: as a user without rights, in a process."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedrho import cli, places, usage
from fedrho.console import BadInput
from fedrho.device import _paths
from fedrho.export import check_out
from fedrho.picture_files import check_picture
from fedrho.predicting import read_export
from fedrho.server.release import StoreConflict
from fedrho.server.storage.store import locate, open_store

RIGHTS = "-dac_override,-dac_read_search,-fowner"
NOBODY = 65534


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A store in a folder of somebody else's, which nobody but him and who may do everything can enter."""
    folder = tmp_path / "nob"
    with open_store(folder):
        pass
    if os.getuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
        folder.chmod(0o700)
    else:
        folder.chmod(0)
    yield folder
    folder.chmod(0o700)


def without_rights(*arguments: object, cwd: Path) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "fedrho", *map(str, arguments)]
    if os.getuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("root may enter every folder, and setpriv is missing")
        command = [setpriv, f"--bounding-set={RIGHTS}", f"--inh-caps={RIGHTS}", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("status nob", "nob: not yours to read (Permission denied); ask its owner, or a running server"),
        ("account ledger nob", "nob: not yours to read (Permission denied); ask its owner, or a running server"),
        ("export nob --out a.npz", "nob: not yours to read"),
        ("pause nob", "nob: not yours to read"),
        ("cancel nob --yes", "nob: not yours to read"),
        ("dashboard nob", "nob: not yours to read"),
        ("simulate paths --plot nob/a.png", "--plot: nob/a.png: not yours to look at (Permission denied); ask its owner"),
        ("models export mnist-cnn --out nob/m.keras", "--out nob/m.keras: not yours to look at"),
        ("predict nob/m.npz --features 1", "nob/m.npz: not yours to look at"),
        ("device ledger --history nob/x", "--history nob/x: not yours to look at"),
        ("device leave everything --history nob", "--history: path 'nob' is not readable; ask its owner"),
        ("labels train --dataset digits --epsilon 1 --out nob/o", "nob/o: Permission denied; ask its owner"),
        (
            "join 127.0.0.1:1 --data digits --history nob/x",
            "--history nob/x: not yours to look at (Permission denied); ask its owner",
        ),
        ("join 127.0.0.1:1 --data digits --tokens nob/x", "nob/x: Permission denied; ask its owner"),
    ],
)
@pytest.mark.slow
def test_a_command_that_may_not_look_says_so_in_one_line(line: str, expected: str, locked: Path) -> None:
    code, out, err = without_rights(*line.split(), cwd=locked.parent)
    assert (code, out) == (2, ""), err
    (said,) = err.strip().splitlines()
    assert said.startswith("fedrho: ")
    assert expected in said


@pytest.mark.slow
@pytest.mark.parametrize("line", ["join 127.0.0.1:1 --data digits --history nob", "fleet 127.0.0.1:1 --history nob"])
def test_a_device_that_could_remember_nothing_says_so_before_it_waits(line: str, locked: Path) -> None:
    locked.chmod(0o755 if os.getuid() == 0 else 0o500)
    code, _, err = without_rights(*line.split(), cwd=locked.parent)
    assert (code, err.strip().splitlines()) == (
        2,
        ["fedrho: --history nob: cannot be written (permission denied in nob); ask its owner, or name another place"],
    )


# -- without another user ------------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a folder `nob`, as `stat` says it."""
    stat = Path.stat

    def refusing(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if "nob" in self.parent.parts:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return stat(self, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", refusing)


@pytest.mark.usefixtures("nothing_is_seen")
@pytest.mark.parametrize("inside", ["nob", "nob/server", "nob/fedrho.sqlite"])
def test_a_store_in_a_locked_folder_is_somebody_elses(inside: str, tmp_path: Path) -> None:
    with pytest.raises(StoreConflict, match=r"not yours to read .*--operator HOST:PORT with --token-file"):
        locate(tmp_path / inside)


@pytest.mark.usefixtures("nothing_is_seen")
def test_places_in_a_locked_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nob").mkdir()
    monkeypatch.chdir(tmp_path)
    for look in (
        lambda: check_picture(Path("nob/a.png")),
        lambda: check_out(Path("nob/m.npz"), force=True),
        lambda: read_export(Path("nob/m.npz"), None),
        lambda: _paths(Path("nob/x"), None),
    ):
        with pytest.raises(BadInput, match=r"not yours to look at \(Permission denied\); ask its owner"):
            look()


def test_a_history_that_may_not_be_listed_is_not_an_empty_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refusing(path: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(BadInput, match="not yours to look at"):
        _paths(tmp_path, None)


def test_a_history_that_may_not_be_read_is_somebody_elses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "device-1.sqlite").write_bytes(b"")

    def refusing(self: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "open", refusing)
    for device in ("device-1", None):
        with pytest.raises(BadInput, match=r"not yours to look at \(Permission denied\); ask its owner"):
            _paths(tmp_path, device)
    assert _paths(tmp_path, "device-1", known=False) == [tmp_path / "device-1.sqlite"]


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EACCES, 2), (errno.EPERM, 2), (errno.EROFS, 1), (errno.ENOSPC, 1), (errno.EIO, 1)]
)
def test_what_a_file_system_says_and_nobody_caught_is_one_line(number: int, code: int) -> None:
    ended, line = cli._expected(OSError(number, os.strerror(number), "there/x"))
    assert ended == code
    assert line.startswith(f"there/x: {os.strerror(number)}; ")


def test_whoever_is_told_that_permission_is_denied_is_told_what_to_do() -> None:
    denied = BadInput("t.toml: cannot be read as text (Permission denied)")
    assert cli._expected(denied) == (2, f"{denied}; ask its owner, or name another place")
    missing = BadInput("t.toml: cannot be read as text (No such file or directory)")
    assert cli._expected(missing) == (2, str(missing))


@pytest.mark.parametrize(
    "defect",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "there/x"),  # to be looked for before it is opened
        FileExistsError(errno.EEXIST, "File exists", "there/x"),
        OSError(errno.EBADF, "Bad file descriptor", "there/x"),
        OSError(errno.EACCES, "Permission denied"),  # of no file
        OSError(errno.EIO, "Input/output error", 7),  # of a descriptor
        ValueError("there/x"),
    ],
)
def test_a_defect_keeps_its_traceback(defect: Exception) -> None:
    with pytest.raises(type(defect)) as raised:
        cli._expected(defect)
    assert raised.value is defect


@pytest.mark.parametrize(
    ("said", "better"),
    [
        ("path 'nob' is not readable", ("path 'nob' is not readable", f"; {places.ASK}")),
        ("file 'nob' does not exist", ("file 'nob' does not exist", "")),
        (
            "input should be a valid integer, unable to parse string as an integer",
            ("input should be a valid integer", "; allowed: a whole number, such as 10"),
        ),
        (
            "input should be a valid number, unable to parse string as a number",
            ("input should be a valid number", "; allowed: a number, such as 0.5"),
        ),
    ],
)
def test_typers_word_gets_a_next_step(said: str, better: tuple[str, str]) -> None:
    assert usage._plainly(said) == better


def test_a_folder_is_tried_before_anybody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places.check_folder("--history", tmp_path / "new" / "one")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"--history .*file: is a file; name a folder"):
        places.check_folder("--history", tmp_path / "file")
    with pytest.raises(BadInput, match=r"--history .*one: .*file is a file; name a folder"):
        places.check_folder("--history", tmp_path / "file" / "one")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(BadInput, match=r"--history .*new: cannot be written \(permission denied in .*\); ask its owner"):
        places.check_folder("--history", tmp_path / "new")
