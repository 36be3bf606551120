"""A folder of results: the same bytes broken off or not, damaged or not; one line where the disk will not have them."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from fedrho.server.tasks import load_task
from fedrho.simulations import checkpoints, events, records
from fedrho.simulations.folder import DiskFull, FolderError, StudyFolder, check_new, check_same, fresh, stored_values
from fedrho.simulations.study import StudyError, load_study
from tests.simulations.toy_study import digests, run_toy, study_values, toy_study

TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def killed() -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.simulations.killed_studies"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=TOP, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_a_study_killed_at_any_point_and_taken_up_leaves_the_bytes_of_an_unbroken_one(killed: dict[str, Any]) -> None:
    assert len(killed["killed"]) >= 10
    for point, found in killed["killed"].items():
        assert found["killed"], point
        assert found["before"] != killed["unbroken"], point
        assert found["again"] == 0, point
        assert found["after"] == killed["unbroken"], point


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A finished study."""
    run_toy(tmp_path / "whole", *toy_study())
    return tmp_path / "whole"


def test_equal_studies_fill_their_folders_with_equal_bytes(whole: Path, tmp_path: Path) -> None:
    run_toy(tmp_path / "again", *toy_study())
    assert digests(tmp_path / "again") == digests(whole)


def test_another_seed_gives_another_path(whole: Path, tmp_path: Path) -> None:
    run_toy(tmp_path / "other", *toy_study(seed=1))
    assert digests(tmp_path / "other")["metrics.jsonl"] != digests(whole)["metrics.jsonl"]


@pytest.mark.parametrize("stop_after", [1, 3, 5, 7])
def test_a_study_that_was_stopped_and_taken_up_leaves_the_same_bytes(stop_after: int, whole: Path, tmp_path: Path) -> None:
    study, dataset = toy_study()
    run = run_toy(tmp_path / "stopped", study, dataset, stop_after)
    assert run.stopped
    assert len(run.rows) == stop_after
    assert checkpoints.steps(tmp_path / "stopped" / "checkpoints")[-1] == stop_after
    run_toy(tmp_path / "stopped", study, dataset)
    assert digests(tmp_path / "stopped") == digests(whole)


@pytest.mark.parametrize("name", [checkpoints.ARRAYS, checkpoints.VALUES, checkpoints.DIGESTS])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(name: str, whole: Path) -> None:
    before = digests(whole)
    (whole / "summary.json").unlink()
    damaged = whole / "checkpoints" / "step-000008" / name
    damaged.write_bytes(damaged.read_bytes()[:-3] + b"\0\0\0")
    assert [one.step for one in checkpoints.whole(whole / "checkpoints")] == [6]
    run = run_toy(whole, *toy_study())
    assert run.steps_here == 2
    assert digests(whole) == before


def test_without_any_whole_checkpoint_a_study_begins_anew(whole: Path) -> None:
    before = digests(whole)
    (whole / "summary.json").unlink()
    for step in checkpoints.steps(whole / "checkpoints"):
        (whole / "checkpoints" / f"step-{step:06d}" / checkpoints.VALUES).write_text("{}")
    run_toy(whole, *toy_study())
    assert digests(whole) == before


def test_rows_that_were_changed_are_noticed_and_written_anew(whole: Path) -> None:
    before = digests(whole)
    (whole / "summary.json").unlink()
    metrics = whole / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b'"step": 1,', b'"step": 9,'))
    run_toy(whole, *toy_study())
    assert digests(whole) == before


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    study, _ = toy_study()
    with StudyFolder(tmp_path / "one", study), pytest.raises(FolderError, match="another process is running this study"):
        StudyFolder(tmp_path / "one", study)


def test_a_changed_study_file_is_refused(whole: Path) -> None:
    (whole / "summary.json").unlink()
    text = (whole / "study.toml").read_text().replace("learning_rate = 0.5", "learning_rate = 0.6")
    (whole / "study.toml").write_text(text)
    study, dataset = load_study(whole / "study.toml")
    with pytest.raises(FolderError, match=r"of another study than its study\.toml, which was changed"):
        run_toy(whole, study, dataset)


def test_another_study_is_refused_by_the_keys_that_differ(whole: Path) -> None:
    task = {**study_values()["task"], "steps": 9}
    other, _ = toy_study(seed=4, task=task)
    with pytest.raises(FolderError, match=r"holds another study; record\.\w+, seed, task\.steps differ|seed, task\.steps differ"):
        check_same(whole, other.values())
    check_same(whole, toy_study()[0].values())


def test_the_stored_study_resolves_to_itself(whole: Path) -> None:
    study, _ = load_study(whole / "study.toml")
    assert study.text() == (whole / "study.toml").read_text()
    assert study.values()["task"]["population"] == 200
    assert study.values()["record"] == {"test_every": 2, "checkpoint_every": 3, "keep": 2, "clients": 20}


def test_a_server_takes_the_task_as_it_is(whole: Path) -> None:
    study, _ = toy_study()
    assert load_task(whole / "task.toml").file == study.task.file


# -- the disk ----------------------------------------------------------------------------------------------------------------


def limited(path: Path, most: int) -> str:
    """Runs a study where no file may be longer than `most` bytes, as on a disk that is full; what it says."""
    study, dataset = toy_study()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        run_toy(path, study, dataset)
    except (DiskFull, FolderError) as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return ""


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_and_one_line(whole: Path, tmp_path: Path) -> None:
    said = limited(tmp_path / "full", 4096)
    assert "cannot be written any more (File too large); the checkpoint of step " in said
    assert said.endswith("is whole")
    left = [one.step for one in checkpoints.whole(tmp_path / "full" / "checkpoints")]
    assert f"step {left[0]} " in said
    run_toy(tmp_path / "full", *toy_study())
    assert digests(tmp_path / "full") == digests(whole)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_small_file_system_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", small], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        with pytest.raises(FolderError, match="MB are free there, the study needs"):
            run_toy(small / "study", *toy_study())
        assert not (small / "study" / "metrics.jsonl").read_bytes()
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="cannot be written"):
        StudyFolder(tmp_path / "file" / "study", toy_study()[0])
    with pytest.raises(FolderError, match="is a file"):
        check_new(tmp_path / "file")


def test_new_folders_are_numbered_and_nothing_is_overwritten(whole: Path, tmp_path: Path) -> None:
    assert [fresh("toy", tmp_path).name for _ in range(3)] == ["toy-1", "toy-2", "toy-3"]
    (tmp_path / "toy-7").write_text("")
    assert fresh("toy", tmp_path).name == "toy-8"
    with pytest.raises(FolderError, match="is there already and not empty; go on with --resume"):
        check_new(whole)
    with pytest.raises(FolderError, match=r"toy-7: is a file; name a folder that `fedrho simulate` wrote"):
        stored_values(tmp_path / "toy-7")
    with pytest.raises(FolderError, match="holds no study"):
        stored_values(tmp_path)


def read_events(content: bytes) -> Iterator[Any]:
    """Of TensorBoard's file: eight bytes of length and four of their checksum before each record, four after it."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    while content:
        length = int.from_bytes(content[:8], "little")
        record = content[12 : 12 + length]
        assert content[12 + length : 16 + length] == masked_crc32c(record).to_bytes(4, "little")
        yield Event.FromString(record)
        content = content[16 + length :]


# -- what is written ---------------------------------------------------------------------------------------------------------


def test_lines_table_and_events_say_the_same(whole: Path) -> None:
    rows = [records.flat(row) for row in records.rows((whole / "metrics.jsonl").read_bytes())]
    table = pyarrow.parquet.read_table(whole / "metrics.parquet").to_pylist()
    assert table == rows
    (file,) = (whole / "tensorboard").iterdir()
    events = [event for event in read_events(file.read_bytes()) if event.HasField("summary")]
    assert [event.step for event in events] == [row["step"] for row in rows]
    assert [event.wall_time for event in events] == [row["virtual_seconds"] for row in rows]
    shown = {value.tag.rpartition("/")[2]: value.simple_value for value in events[1].summary.value}
    assert shown["accuracy"] == pytest.approx(rows[1]["held_out.accuracy"])
    assert shown["rho"] == pytest.approx(rows[1]["rho"])


def test_accuracy_is_measured_as_often_as_the_study_says_and_at_the_end(tmp_path: Path) -> None:
    task = {**study_values()["task"], "steps": 7}
    run = run_toy(tmp_path / "seven", *toy_study(task=task))
    assert [row["step"] for row in run.rows if row["held_out"]] == [2, 4, 6, 7]


@pytest.mark.slow
def test_a_sampled_study_has_epsilon_and_no_rho_and_no_task_for_a_server(tmp_path: Path) -> None:
    task = study_values()["task"]
    sampled = {**task, "algorithm": "dp-fedavg", "round": {"goal": 10}, "privacy": {"clip_norm": 0.5, "delta": 1e-7}, "steps": 4}
    del sampled["participation"]
    study, dataset = toy_study(task=sampled, sampling={"kind": "poisson", "epsilon": 8.0})
    run = run_toy(tmp_path / "sampled", study, dataset)
    assert [row["rho"] for row in run.rows] == [None] * 4
    assert [row["epsilon"] is not None for row in run.rows] == [False, True, False, True]
    assert run.rows[-1]["epsilon"] <= 8.0
    assert not (tmp_path / "sampled" / "task.toml").exists()
    again, _ = load_study(tmp_path / "sampled" / "study.toml")
    assert again.text() == (tmp_path / "sampled" / "study.toml").read_text()


def test_a_study_error_names_file_and_key(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"nothing\.toml: no such file; `fedrho simulate example`"):
        load_study(tmp_path / "nothing.toml")


def test_a_statement_is_a_text_for_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / events.FILE).write_bytes(events.beginning())
    (tmp_path / events.TEXTS).write_bytes(events.of_texts(12, {"statement": "it protects nobody\n"}))
    found = EventAccumulator(str(tmp_path)).Reload()
    (shown,) = found.Tensors("statement/text_summary")
    assert (shown.step, list(shown.tensor_proto.string_val)) == (12, [b"```\nit protects nobody\n```"])
    assert found.SummaryMetadata("statement/text_summary").plugin_data.plugin_name == "text"
