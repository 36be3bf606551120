"""Objects under names: a folder and an object store behave alike; and which file systems a folder may lie on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedrho.server.release import StoreConflict
from fedrho.server.storage import blobs, published
from fedrho.server.storage.blobs import FolderObjects, Objects, UrlObjects
from fedrho.server.storage.leader import NETWORK_FILE_SYSTEMS, file_system
from fedrho.server.storage.published import Published


@pytest.fixture(params=["folder", "memory", "local"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    if request.param == "folder":
        return FolderObjects(tmp_path)
    if request.param == "memory":
        return UrlObjects(f"memory://{os.urandom(8).hex()}/deep/")
    (tmp_path / "published").mkdir()
    (tmp_path / "blobs").mkdir()
    return UrlObjects(f"local://{tmp_path}")


def test_what_was_put_is_there_and_stays_as_it_was(objects: Objects) -> None:
    assert objects.get("blobs/a") is None
    assert objects.keys("blobs/") == set()
    for data in (b"first", b"second"):
        objects.put("blobs/a", data)
    objects.put("blobs/empty", b"")
    objects.put("published/b", b"other")
    assert objects.get("blobs/a") == b"first"
    assert objects.get("blobs/empty") == b""
    assert objects.keys("blobs/") == {"blobs/a", "blobs/empty"}
    for _ in range(2):
        objects.delete("blobs/a")
    assert objects.keys("blobs/") == {"blobs/empty"}
    assert objects.get("blobs/a") is None


def test_a_blob_is_what_its_name_says_or_an_error(objects: Objects) -> None:
    digest, key = blobs.name_of(b"weights")
    with pytest.raises(StoreConflict, match="is missing"):
        blobs.read(objects, digest)
    objects.put(key, b"weights")
    assert blobs.read(objects, digest) == b"weights"
    objects.delete(key)
    objects.put(key, b"weight")
    with pytest.raises(StoreConflict, match="is damaged"):
        blobs.read(objects, digest)


def test_the_greatest_step_counts_and_nobody_takes_it_back(objects: Objects) -> None:
    """A server that was overtaken says late what it had committed."""
    run, notes = b"\x0a" * 16, [Published(b"\x0a" * 16, step, bytes([step]) * 32) for step in range(12)]
    for note in notes:
        published.publish(objects, note)
        assert published.read_all(objects) == {run: note}
    assert len(objects.keys("published/")) == 1
    with pytest.raises(StoreConflict, match="another server leads by now; it published step 11, after our 9"):
        published.publish(objects, notes[9])
    assert published.read_all(objects) == {run: notes[11]}
    assert len(objects.keys("published/")) == 1
    objects.put(f"published/{run.hex()}.9", b"late")
    published.tidy(objects)
    assert len(objects.keys("published/")) == 1
    assert published.read_all(objects) == {run: notes[11]}


def test_a_step_is_published_with_one_link(objects: Objects) -> None:
    note = Published(b"\x0a" * 16, 3, b"\x01" * 32)
    for _ in range(2):
        published.publish(objects, note)
    with pytest.raises(StoreConflict, match="step 3 was published with another history"):
        published.publish(objects, Published(note.run, note.step, b"\x02" * 32))
    assert published.read_all(objects) == {note.run: note}


def test_a_note_under_another_name_is_damage(objects: Objects) -> None:
    published.publish(objects, Published(b"\x0a" * 16, 3, b"\x01" * 32))
    (key,) = objects.keys("published/")
    objects.put(key.replace(".3", ".7"), objects.get(key) or b"")
    with pytest.raises(StoreConflict, match="damaged"):
        published.read_all(objects)


def test_what_a_crash_left_half_written_is_no_note_and_is_removed(objects: Objects) -> None:
    note = Published(b"\x0a" * 16, 3, b"\x01" * 32)
    published.publish(objects, note)
    objects.put(f"published/{note.run.hex()}.4.0123abcd.tmp", b"half")
    assert published.read_all(objects) == {note.run: note}
    published.tidy(objects)
    assert len(objects.keys("published/")) == 1


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
me@host:/ /home/me/far\\040away fuse.sshfs rw 0 0
tmpfs /home/me/near tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/run1", "ext4"),
        ("/home/me/run", "nfs4"),
        ("/homes/run", "ext4"),
        ("/home/me/far away/run", "fuse.sshfs"),
        ("/home/me/near", "tmpfs"),
        ("/home/me/near/../x", "nfs4"),
    ],
)
def test_the_file_system_of_a_folder_is_that_of_its_nearest_mount(folder: str, kind: str) -> None:
    assert file_system(Path(folder), MOUNTS) == kind
    assert (kind in NETWORK_FILE_SYSTEMS) == (kind in ("nfs4", "fuse.sshfs"))
    assert file_system(Path(folder), "") == ""
