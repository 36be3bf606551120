"""A file from the network arrives whole and right, or not at all: against a web server in this process that misbehaves."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fedrho.simulations.data import download
from fedrho.simulations.data.base import DataError
from fedrho.simulations.data.cache import Cache
from fedrho.simulations.data.download import MIRROR, RemoteFile, fetch, packed, unpacked_sha256

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """What the server does; `asked` are the paths and ranges of all requests."""

    address: str = ""
    content: bytes = CONTENT
    breaks_after: list[int] = field(default_factory=list)
    """Bytes after which each of the first connections ends."""
    ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def file(self, name: str = "some/file.bin", sha256: str | None = SHA256) -> RemoteFile:
        return RemoteFile(name, sha256, len(self.content), (f"{self.address}/file.bin",))


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    found = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, found)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def answer(request: BaseHTTPRequestHandler, site: Site) -> None:
    wanted = request.headers.get("Range")
    site.asked.append((request.path, wanted))
    if "missing" in request.path:
        request.send_error(404)
        return
    begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and site.ranges else 0
    if begin >= len(site.content):
        request.send_error(416)
        return
    body = site.content[begin:]
    request.send_response(206 if begin else 200)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body[: site.breaks_after.pop(0)] if site.breaks_after else body)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_a_file_arrives_under_its_own_name_and_nothing_else_is_left(site: Site, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    path = fetch(site.file(), tmp_path, lambda *said: told.append(said))
    assert path == tmp_path / "some" / "file.bin"
    assert path.read_bytes() == CONTENT
    assert left(tmp_path) == {"file.bin"}
    assert told[-1] == ("some/file.bin", len(CONTENT), len(CONTENT))


def test_a_connection_that_breaks_is_taken_up_where_it_broke(site: Site, tmp_path: Path) -> None:
    site.breaks_after = [1000, 2000]
    assert fetch(site.file(), tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in site.asked] == [None, "bytes=1000-", "bytes=3000-"]


def test_what_came_before_an_interruption_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    site.breaks_after = [1000, 1, 1]
    with pytest.raises(DataError, match="goes on from 1002 bytes"):
        fetch(site.file(), tmp_path)
    assert left(tmp_path) == {"file.bin.part"}
    assert fetch(site.file(), tmp_path).read_bytes() == CONTENT
    assert site.asked[-1][1] == "bytes=1002-"
    assert left(tmp_path) == {"file.bin"}


def test_what_came_whole_before_a_crash_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "file.bin.part").write_bytes(CONTENT)
    assert fetch(site.file(), tmp_path).read_bytes() == CONTENT
    assert site.asked == []


def test_a_server_that_knows_no_ranges_is_asked_for_all_of_it(site: Site, tmp_path: Path) -> None:
    site.breaks_after, site.ranges = [1000], False
    assert fetch(site.file(), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("before", [b"of another file", CONTENT[:5] + b"x", CONTENT + b"and more"])
def test_a_beginning_that_does_not_belong_to_the_file_is_thrown_away(before: bytes, site: Site, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "file.bin.part").write_bytes(before)
    assert fetch(site.file(), tmp_path).read_bytes() == CONTENT
    assert left(tmp_path) == {"file.bin"}


def test_a_wrong_checksum_is_told_with_both_and_the_file_is_kept_aside(site: Site, tmp_path: Path) -> None:
    site.content = b"something else"
    with pytest.raises(DataError) as refused:
        fetch(site.file(), tmp_path)
    found = hashlib.sha256(b"something else").hexdigest()
    assert f"sha256 {found}, expected {SHA256}; kept as file.bin.wrong" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert left(tmp_path) == {"file.bin.wrong"}


def test_a_server_that_sends_more_than_the_file_has_fills_no_disk(site: Site, tmp_path: Path) -> None:
    file = site.file()
    site.content = CONTENT * 5
    with pytest.raises(DataError, match=f"it sends more than the {file.most} bytes"):
        fetch(file, tmp_path)
    assert not any(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())


def test_a_missing_file_is_told_with_its_address_and_where_to_put_it(site: Site, tmp_path: Path) -> None:
    url = f"{site.address}/missing.bin"
    with pytest.raises(DataError) as refused:
        fetch(RemoteFile("some/file.bin", SHA256, 1, (url,)), tmp_path)
    place = tmp_path / "some" / "file.bin"
    assert str(refused.value) == (
        f"some/file.bin: cannot be fetched from {url} (HTTP 404); without a network, put the file at {place}"
    )
    assert left(tmp_path) == set()


def test_no_network_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"cannot be fetched from http://127\.0\.0\.1:9/x \(.+\); without a network, put"
    ) as refused:
        fetch(RemoteFile("file.bin", SHA256, 1, ("http://127.0.0.1:9/x",)), tmp_path)
    assert "\n" not in str(refused.value)


def test_the_next_address_is_tried_where_one_fails(site: Site, tmp_path: Path) -> None:
    urls = (f"{site.address}/missing.bin", "file:///etc/hostname", f"{site.address}/file.bin")
    assert fetch(RemoteFile("file.bin", SHA256, 1, urls), tmp_path).read_bytes() == CONTENT


def test_a_mirror_of_ones_own_comes_first(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRROR, f"{site.address}/mine/")
    fetch(site.file(), tmp_path)
    assert site.asked == [("/mine/some/file.bin", None)]


def test_of_processes_that_want_the_same_file_one_fetches_it(site: Site, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from fedrho.simulations.data.download import RemoteFile, fetch; "
        f"fetch(RemoteFile('file.bin', {SHA256!r}, 0, ({site.address!r} + '/file.bin',)), Path(sys.argv[1]))"
    )
    children = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(2)]
    assert [child.wait(60) for child in children] == [0, 0]
    assert len(site.asked) == 1
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_threads_that_want_the_same_file_fetch_it_once(site: Site, tmp_path: Path) -> None:
    threads = [threading.Thread(target=fetch, args=(site.file(), tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(site.asked) == 1


def test_a_file_put_there_by_hand_is_used_and_checked(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "some" / "file.bin"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    assert Cache(tmp_path).path(site.file()) == path
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=rf"{path}: sha256 [0-9a-f]{{64}}, expected {SHA256}"):
        Cache(tmp_path).path(site.file())
    assert site.asked == []


def test_a_file_may_be_packed_otherwise_if_its_content_is_right(site: Site, tmp_path: Path) -> None:
    """The address gives the plain file, it is kept packed, and who packed it by hand need not have the same packer."""
    file = RemoteFile("a.gz", "0" * 64, 0, (f"{site.address}/a",), unpacked_sha256, SHA256, packed)
    path = fetch(file, tmp_path)
    assert gzip.decompress(path.read_bytes()) == CONTENT
    assert left(tmp_path) == {"a.gz"}
    path.write_bytes(gzip.compress(CONTENT, 1))
    assert Cache(tmp_path).path(file) == path
    path.write_bytes(gzip.compress(CONTENT[1:]))
    with pytest.raises(DataError, match=f"expected {SHA256}"):
        Cache(tmp_path).path(file)
    path.write_bytes(b"not packed at all")
    with pytest.raises(DataError, match="cannot be read"):
        Cache(tmp_path).path(file)


def test_a_folder_that_cannot_be_written_is_told(site: Site, tmp_path: Path) -> None:
    (tmp_path / "some").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"some.*cannot be written"):
        fetch(site.file(), tmp_path)


def test_a_folder_marked_read_only_gets_no_download(site: Site, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o555)
    try:
        with pytest.raises(DataError, match=r"no such file, and .* cannot be written to"):
            Cache(tmp_path).path(site.file())
    finally:
        os.chmod(tmp_path, 0o755)
    assert site.asked == []
