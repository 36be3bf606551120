"""Experiments in folders: no byte depends on a label but through answers; killed anywhere, nothing is asked twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from fedrho.console import BadInput
from fedrho.labels import baseline, ratings, recipes, settings
from fedrho.labels import experiment as experiments
from fedrho.labels.answered import alone, note_of
from fedrho.labels.data import LabelData, benchmark, hashed_order, own
from fedrho.labels.plots import accuracy_picture
from fedrho.labels.progress import TrainProgress
from fedrho.labels.runs import DiskMemory, ExperimentFolder
from fedrho.labels.settings import ExperimentFile, TrainingSection
from fedrho.labels.training import Trainer, cells, estimate
from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.labels.chance import Chance
from fedrho.privacy.labels.private import PrivateLabels
from fedrho.privacy.labels.randomizers import Randomizer
from fedrho.privacy.labels.stages import StageError, split
from fedrho.simulations.data.base import DataError
from fedrho.simulations.folder import FolderError
from tests.privacy.labels.softmax import SeededChance, SoftmaxRegression, blobs, equal

COUNT, CLASSES = 240, 4
FEATURES, LABELS = blobs(COUNT)
TEST, TEST_LABELS = blobs(300, seed=8)
DATA = LabelData(
    "blobs", FEATURES, LABELS, CLASSES, TEST, TEST_LABELS, (), True, "measured on 300 blobs, whose labels are public"
)
TRAINING = {"steps": 20, "learning_rate": 2.0}
STAGES: list[dict[str, Any]] = [
    {"share": 0.5, "prior": "clusters", "clusters": 2},
    {"share": 0.5, "prior": "model", "start": "warm", "retrain": "consensus"},
]


def given(**changes: Any) -> ExperimentFile:
    values: dict[str, Any] = {
        "dataset": "digits",
        "model": "softmax",
        "training": TRAINING,
        "runs": [{"name": "two stages", "epsilons": [2.0], "stages": STAGES}],
    }
    return settings.made({**values, **changes}, "test")


def softmax(training: TrainingSection) -> SoftmaxRegression:
    return SoftmaxRegression(CLASSES, 2, training.steps, training.learning_rate)


def run(path: Path, experiment: ExperimentFile, data: LabelData = DATA, **trainer: Any) -> dict[str, Any]:
    made = Trainer(experiment, data, softmax, **{"chance": SeededChance(1), **trainer})
    return experiments.run(experiment, data, path, made, TrainProgress(1, quiet=True))


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


# -- trials ------------------------------------------------------------------------------------------------------------------


def test_a_trial_is_short_everywhere_and_the_same_otherwise() -> None:
    stages = [{"share": 0.4, "training": {"epochs": 40.0, "mixup": 4.0}}, {"share": 0.6, "prior": "clusters", "simclr": 900}]
    whole = given(
        seeds=10,
        runs=[
            {"name": "stages", "epsilons": [3.0, 1.0], "stages": stages},
            {"name": "dp", "kind": "dp-sgd", "epsilons": [2.0], "dp_sgd": {"steps": 300}},
            {"name": "none", "kind": "non-private", "training": {"epochs": 7.0}},
        ],
    )
    short = settings.trial(whole, "test")
    assert (short.seeds, short.records, short.training.steps) == (1, 1000, 2)
    first, dp, none = short.runs
    assert first.epsilons == [3.0]
    assert [(stage.training.steps, stage.training.epochs) for stage in first.stages if stage.training] == [(2, 0.0)]
    assert [stage.simclr for stage in first.stages] == [0, 2]
    assert first.stages[0].training is not None
    assert first.stages[0].training.mixup == 4.0
    assert dp.dp_sgd is not None
    assert none.training is not None
    assert (dp.dp_sgd.steps, none.training.steps, none.training.epochs) == (2, 2, 0.0)
    assert settings.trial(short, "test") == short
    assert (whole.trial, short.trial) == (False, True)


def test_steps_of_each_model_are_known_before_and_told(tmp_path: Path) -> None:
    told: list[tuple[int, ...]] = []

    class Told(TrainProgress):
        def begun(self, name: str, fits: Sequence[int], skipped: bool = False) -> None:
            told.append(tuple(fits))
            super().begun(name, fits, skipped)

    experiment = given(training={"epochs": 4.0, "batch": 16, "learning_rate": 2.0})
    steps = Trainer(experiment, DATA, softmax).planned(next(cells(experiment)))
    assert steps == [30, 60, 60]  # 120 records, then all, twice: the second stage trains again on the consensus
    encoded = given(runs=[{"name": "one", "epsilons": [2.0], "stages": [{"prior": "clusters", "simclr": 900}]}])
    trainer = Trainer(encoded, DATA, softmax)
    assert trainer.planned(next(cells(encoded))) == [900, 20]
    trainer.groups = {"clusters-20-coordinates-0-simclr-900-any": np.zeros(240, np.int64)}
    assert trainer.planned(next(cells(encoded))) == [20]
    trainer = Trainer(experiment, DATA, lambda _: SoftmaxRegression(CLASSES, 2, 5, 2.0), chance=SeededChance(1))
    experiments.run(experiment, DATA, tmp_path / "run", trainer, Told(1, quiet=True))
    assert told == [(30, 60, 60)]


def test_a_folder_from_before_a_key_was_there_is_gone_on_in(tmp_path: Path) -> None:
    run(tmp_path / "run", given())
    path = tmp_path / "run" / "experiment.toml"
    old = "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith(("records", "trial")))
    assert old != path.read_text()
    path.write_text(old)
    before = contents(tmp_path / "run")
    run(tmp_path / "run", given())
    assert contents(tmp_path / "run") == before
    with pytest.raises(FolderError, match=r"what differs: seeds\. Choose"):
        run(tmp_path / "run", given(seeds=2))


def test_a_part_of_a_benchmark_is_chosen_without_its_labels() -> None:
    whole, part = benchmark("digits"), benchmark("digits", records=100)
    assert np.array_equal(part.features, whole.features[:100])
    assert np.array_equal(part.labels, whole.labels[:100])
    assert part.test_features is not None
    assert whole.test_features is not None
    assert np.array_equal(part.test_features, whole.test_features)
    with pytest.raises(BadInput, match=r"records: 10000, and digits has 1437"):
        benchmark("digits", records=10_000)
    with pytest.raises(BadInput, match=r"records: takes a part of a dataset"):
        settings.made(
            {**given().model_dump(exclude_none=True, exclude={"dataset"}), "data": "x.csv", "classes": ["a", "b"], "records": 5},
            "test",
        )


# -- non-interference and reads ----------------------------------------------------------------------------------------------


class Recorded(PrivateLabels):
    """Reads, charges and answers as ever; then says what a list says where it has something, or else adds to it."""

    __slots__ = ("_said", "_saying")

    def __init__(self, said: list[Any], saying: bool, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._said, self._saying = said, saying

    def answer(self, places: NDArray[np.int64], randomizer: Randomizer, priors: ArrayLike, chance: Chance) -> Answers:
        answers: Answers = self._through(super().answer(places, randomizer, priors, chance))
        return answers

    def histogram(self, *arguments: Any) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = self._through(super().histogram(*arguments))
        return counts

    def _through(self, true: Any) -> Any:
        if self._saying:
            return self._said.pop(0)
        self._said.append(true)
        return true


@pytest.mark.parametrize("measured", ["public test labels", "held-out answers"])
def test_one_changed_label_under_the_same_answers_changes_no_byte_of_the_folder(tmp_path: Path, measured: str) -> None:
    data = DATA if measured == "public test labels" else replace(DATA, test_features=None, test_labels=None)
    changed = data.labels.copy()
    changed[17] = (changed[17] + 1) % CLASSES
    said: list[Any] = []
    guardians: list[PrivateLabels] = []

    def guardian(saying: bool) -> Callable[..., PrivateLabels]:
        def make(*arguments: Any) -> PrivateLabels:
            guardians.append(Recorded(said, saying, *arguments))
            return guardians[-1]

        return make

    run(tmp_path / "one", given(), data, guardian=guardian(False))
    run(tmp_path / "other", given(), replace(data, labels=changed), guardian=guardian(True))
    assert not said
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    for private in guardians:
        charged = sum(count for _, _, count in private.ledger.rows())
        assert private.reads.sum() == charged
        assert set(private.reads) <= {1, 2}  # once, or twice with a histogram
        assert private.ledger.total == 2.0


def test_the_labels_are_in_no_file(tmp_path: Path) -> None:
    run(tmp_path, given())
    for kind in (np.int64, np.int32, np.uint8):
        needle = LABELS[:24].astype(kind).tobytes()
        assert not any(needle in content for content in contents(tmp_path).values())
    assert "array" not in repr(DATA)


# -- results -------------------------------------------------------------------------------------------------------------------


def test_a_single_run_has_the_figures_at_the_top_and_epsilon_is_the_ledgers(tmp_path: Path) -> None:
    results = run(tmp_path, given(seeds=3))
    (only,) = results["runs"]
    assert {key: results[key] for key in only} == only
    assert results["epsilon_total"] == 2.0  # half an epsilon of histograms and the rest
    assert results["epsilon_all_runs"] == 6.0
    assert len(results["accuracy_each"]) == 3
    assert results["accuracy_std"] == pytest.approx(np.std(results["accuracy_each"], ddof=1))
    assert results["statement"]["unit"] == "label"
    assert any("asked each label anew" in text for text in results["statement"]["assumptions"])
    assert json.loads((tmp_path / "results.json").read_bytes()) == results
    picture = accuracy_picture(results)
    assert picture["png"].startswith(b"\x89PNG")
    assert picture == accuracy_picture(results)


def test_accuracy_is_estimated_without_a_true_label(tmp_path: Path) -> None:
    agreement = (np.exp(2) * 0.9 + 0.1) / (np.exp(2) + 9)
    figures = estimate(agreement, 10_000, 10, 2.0)
    assert figures["accuracy"] == pytest.approx(0.9)
    assert figures["accuracy_standard_error"] == pytest.approx(0.0126, abs=1e-4)
    data = replace(DATA, test_features=None, test_labels=None)
    many = replace(data, features=np.tile(FEATURES, (20, 1)), labels=np.tile(LABELS, 20))
    results = run(tmp_path, given(held_out=0.3), many)
    assert results["accuracy_mean"] == pytest.approx(0.95, abs=5 * results["accuracy_standard_error"] + 0.05)
    assert results["epsilon_total"] == 2.0


# -- folders -------------------------------------------------------------------------------------------------------------------


def test_a_finished_folder_is_read_and_another_experiment_refused_with_what_differs(tmp_path: Path) -> None:
    results = run(tmp_path, given())
    before = contents(tmp_path)
    assert run(tmp_path, given(), guardian=None) == results  # nobody is asked
    assert contents(tmp_path) == before
    with pytest.raises(FolderError, match=r"what differs: training\.steps"):
        run(tmp_path, given(training={**TRAINING, "steps": 21}))
    with pytest.raises(FolderError, match="features_sha256"):
        run(tmp_path, given(), replace(DATA, features=FEATURES + 1))
    assert contents(tmp_path) == before


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with ExperimentFolder(tmp_path, given(), {}), pytest.raises(FolderError, match="another process"):
        ExperimentFolder(tmp_path, given(), {})
    ExperimentFolder(tmp_path, given(), {}).__exit__()


def test_what_is_written_is_read_back_and_a_draw_that_was_lost_is_counted(tmp_path: Path) -> None:
    memory = DiskMemory(tmp_path)
    answers = Answers(LABELS[:9], np.random.default_rng(0).random((9, CLASSES)), np.full(9, 2))
    assert memory.recall("stage-1") is None
    memory.begin("stage-1")
    assert DiskMemory(tmp_path).lost("stage-1") == 1
    memory.keep("stage-1", answers)
    assert DiskMemory(tmp_path).lost("stage-1") == 0
    found = DiskMemory(tmp_path).recall("stage-1")
    assert found is not None
    assert equal(found, answers)


def test_folders_say_the_same_experiment_as_their_file() -> None:
    values = recipes.experiment(
        {"dataset": "digits", "data": None, "model": None, "seeds": 2},
        list(recipes.METHODS),
        [0.5, 2.0],
        {"mixup": None, "steps": None, "epochs": None},
        {"prior": None, "temperature": None, "stages": None},
    )
    assert settings.made(tomllib.loads(values.text()), "again") == values
    assert len(list(cells(values))) == 2 * (8 * 2 + 1)


# -- killed ----------------------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from fedrho.labels import runs
from fedrho.simulations import files
from tests.labels.test_experiments import given, run

left = int(sys.argv[2])

def die() -> None:
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

def around(original):
    def mortal(*arguments):
        die()
        result = original(*arguments)
        die()
        return result
    return mortal

files.write_whole = around(files.write_whole)
runs.DiskMemory.begin = around(runs.DiskMemory.begin)
run(Path(sys.argv[1]), given(runs=[{"name": "r", "epsilons": [1.0], "stages": [{"retrain": "consensus"}]}]))
"""


def kill(path: Path, after: int) -> int:
    command = [sys.executable, "-c", KILLED, str(path), str(after)]
    return subprocess.run(command, cwd=Path(__file__).parents[2], env={**os.environ}, check=False, timeout=120).returncode


def resumable(path: Path) -> dict[str, Any]:
    return run(path, given(runs=[{"name": "r", "epsilons": [1.0], "stages": [{"retrain": "consensus"}]}]))


@pytest.mark.slow
def test_a_process_that_is_killed_anywhere_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    """In the test of stages every operation is tried; here kill -9 is real, and so is the disk."""
    whole = resumable(tmp_path / "whole")
    for after in (3, 5, 6, 7, 9, 13):
        path = tmp_path / str(after)
        assert kill(path, after) == -signal.SIGKILL
        kept = path / "cells" / "r-epsilon-1.0-seed-0" / "stage-1.answers.npz"
        told = kept.read_bytes() if kept.exists() else None
        begun = (kept.parent / "begun" / "stage-1").exists()
        if begun and told is None:
            with pytest.raises(BadInput, match="--again"):
                resumable(path)
            experiment = given(runs=[{"name": "r", "epsilons": [1.0], "stages": [{"retrain": "consensus"}]}])
            assert run(path, experiment, again=True)["epsilon_total"] == 2.0
            assert resumable(path)["epsilon_total"] == 2.0  # what was lost stays paid for
            continue
        assert resumable(path) == whole
        assert told is None or kept.read_bytes() == told
        assert contents(path) == contents(tmp_path / "whole")


def test_lost_answers_are_asked_again_on_demand_alone_and_cost_twice(tmp_path: Path) -> None:
    DiskMemory(tmp_path / "cells" / "two-stages-epsilon-2.0-seed-0").begin("stage-2")
    with pytest.raises(BadInput, match=r"--again asks the labels once more"):
        run(tmp_path, given())
    assert run(tmp_path, given(), again=True)["epsilon_total"] == 4.0


@pytest.mark.parametrize("damage", ["cut", "emptied", "garbage", "of others", "of two files"])
def test_kept_files_that_are_damaged_are_named_and_nothing_is_asked_anew(tmp_path: Path, damage: str) -> None:
    run(tmp_path, given())
    cell = tmp_path / "cells" / "two-stages-epsilon-2.0-seed-0"
    (cell / "result.json").unlink()
    kept = cell / "stage-1.answers.npz"
    changed = {"cut": kept.read_bytes()[:-40], "emptied": b"", "garbage": b"no archive"}.get(damage, b"")
    kept.write_bytes(changed)
    if damage == "of two files":
        np.savez(kept, labels=[0, 1], likelihoods=[[1.0, 0.0]], sizes=[2])
    if damage == "of others":
        np.savez(kept, labels=[0], likelihoods=[[1.0, 0.0]], sizes=[2])
    with pytest.raises((FolderError, BadInput), match=r"stage-1.*mend"):
        run(tmp_path, given())
    assert (cell / "begun" / "stage-1").stat().st_size == 1


# -- data ------------------------------------------------------------------------------------------------------------------------


def written(path: Path, labels: list[str], features: NDArray[np.float32]) -> Path:
    rows = [f"{label},{','.join(map(repr, row.tolist()))}" for label, row in zip(labels, features, strict=True)]
    path.write_text("\n".join(["y,a,b", *rows]) + "\n", encoding="utf-8")
    return path


def test_a_csv_is_read_with_public_classes_and_a_sorted_one_refused(tmp_path: Path) -> None:
    names = [f"class {label}" for label in LABELS]
    classes = [f"class {number}" for number in range(CLASSES)]
    data = own(written(tmp_path / "a.csv", names, FEATURES), "y", classes, None, public=False)
    assert np.array_equal(data.labels, LABELS)
    assert np.array_equal(data.features, FEATURES)
    assert data.classes == CLASSES
    assert own(tmp_path / "a.csv", "y", [*classes, "rare"], None, public=False).classes == CLASSES + 1
    by_class = np.argsort(LABELS, kind="stable")
    with pytest.raises(BadInput, match="sorted by class"):
        own(written(tmp_path / "b.csv", sorted(names), FEATURES[by_class]), "y", classes, None, public=False)
    for wanted, says in ((classes[:3], "none of --classes"), ([], "never inferred"), (["class 0"] * 2, "each once")):
        with pytest.raises(BadInput, match=says) as refused:
            own(tmp_path / "a.csv", "y", wanted, None, public=False)
        assert "class 3" not in str(refused.value)  # which label is none depends on labels


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("y,a\n1", "fields"),
        ("y,y\n1,2", "different names"),
        ("a,b\n1,2", "--label"),
        ("y,a\n0,x\n1,2\n", "cannot be read"),
        ("", "--label"),
    ],
)
def test_files_that_are_no_records_are_refused_in_a_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text.replace("1\n", "1,2,3\n") if says == "fields" else text, encoding="utf-8")
    with pytest.raises(BadInput, match=says):
        own(path, "y", ["0", "1"], None, public=False)


def test_a_test_file_that_holds_the_private_records_is_refused(tmp_path: Path) -> None:
    """Its labels count as public: accuracy on them, and the largest class, would be told of true labels at no epsilon."""
    names, classes = [str(label) for label in LABELS], [str(number) for number in range(CLASSES)]
    path = written(tmp_path / "a.csv", names, FEATURES)
    (tmp_path / "link.csv").symlink_to("a.csv")
    written(tmp_path / "copy.csv", names[::-1], FEATURES[::-1])
    for test in (path, tmp_path / "link.csv", tmp_path / "copy.csv"):
        with pytest.raises(BadInput, match="has the records of"):
            own(path, "y", classes, test, public=False)
    other = written(tmp_path / "other.csv", names, FEATURES + 1)
    assert own(path, "y", classes, other, public=False).test_features is not None
    some = written(tmp_path / "some.csv", names[:9], np.concatenate([FEATURES[:4], FEATURES[4:9] + 1]))
    data = own(path, "y", classes, some, public=False)
    assert data.test_features is not None
    assert np.array_equal(data.test_features, FEATURES[4:9] + 1)
    assert data.test_labels is not None
    assert np.array_equal(data.test_labels, LABELS[4:9])
    assert "4 of its 9 records are left out" in data.note
    assert own(path, "y", classes, path, public=True).note.endswith("says so")  # labels that everybody knows


def test_arrays_that_are_no_features_or_no_persons_are_refused(tmp_path: Path) -> None:
    path, classes, labels = tmp_path / "a.npz", ["0", "1"], np.array([0, 1, 1, 0, 1])
    for features in (np.full((5, 2), 2**40), np.full((5, 2), 1j), np.array(["x"] * 5), np.zeros(5, dtype=[("a", "f4")])):
        np.savez(path, features=features, labels=labels)
        with pytest.raises(BadInput, match=r"number"):
            own(path, "", classes, None, public=False)
    np.savez(path, features=np.ones((5, 2), np.float32), labels=labels, persons=np.arange(5))
    assert own(path, "", classes, None, public=False, user="persons").users is not None
    for user in ("labels", "features"):
        with pytest.raises(BadInput, match="neither labels nor features"):
            own(path, "", classes, None, public=False, user=user)


def test_an_archive_with_any_byte_changed_is_read_or_refused_in_a_line(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 60)
    np.savez_compressed(tmp_path / "a.npz", features=random.integers(0, 9, (60, 3)).astype(np.float32), labels=labels)
    whole, refused = (tmp_path / "a.npz").read_bytes(), 0
    for place in range(0, len(whole), 7):
        (tmp_path / "b.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            own(tmp_path / "b.npz", "", ["0", "1"], None, public=False)
        except BadInput:
            refused += 1
    assert refused > 10


@pytest.mark.slow
def test_a_benchmark_has_an_order_that_no_label_has_a_part_in() -> None:
    digits = benchmark("digits")
    assert (len(digits.labels), len(digits.test_features if digits.test_features is not None else ())) == (1437, 360)
    assert np.array_equal(hashed_order(digits.features), np.arange(1437))
    for name, says in (("shakespeare", "one by one"), ("nothing", "unknown data set")):
        with pytest.raises((BadInput, DataError), match=says):
            benchmark(name)


# -- private labels of one's own -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": 2},
        {"runs": [{"name": "r", "epsilons": [1.0, 2.0], "stages": [{}]}]},
        {"runs": [{"name": name, "epsilons": [1.0], "stages": [{}]} for name in "ab"]},
        {"runs": [{"name": "r", "kind": "non-private"}]},
    ],
)
def test_private_labels_are_asked_by_one_run_alone(change: dict[str, Any]) -> None:
    mine = {"dataset": None, "data": "mine.csv", "classes": ["0", "1"]}
    given(**mine)
    with pytest.raises(BadInput, match="labels-are-public"):
        given(**mine, **change)
    given(**mine, **change, labels_are_public=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"runs": [{"name": "r", "epsilons": [-1.0], "stages": [{}]}]}, "not negative"),
        ({"runs": [{"name": "r", "epsilons": [float("nan")], "stages": [{}]}]}, "not negative"),
        ({"runs": [{"name": "r", "epsilons": [1.0], "stages": [{"share": 0.5}]}]}, "add up to 1"),
        ({"runs": [{"name": "r", "epsilons": [1.0], "stages": [{"prior": "oracle"}]}]}, "prior"),
        ({"runs": [{"name": "r", "epsilons": [1.0]}]}, "has stages"),
        ({"runs": [{"name": "r", "epsilons": [0.0], "kind": "dp-sgd", "dp_sgd": {}}]}, "above 0"),
        ({"training": {"steps": 0}}, "steps or epochs"),
        ({"data": "a.csv"}, "one of the two"),
        ({"colour": 1}, "unknown key"),
    ],
)
def test_experiments_that_make_no_sense_are_refused_in_a_line(change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says) as refused:
        given(**change)
    assert "\n" not in str(refused.value)


def test_ratings_are_labels_of_users_and_their_expected_value_is_measured(tmp_path: Path) -> None:
    rows = [f"{user}::{film}::{(user + film) % 5 + 1}::{9_000 + film}" for user in range(1, 41) for film in range(1, 6)]
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/ratings.dat", "\n".join(rows))
    table = ratings.decoded({"ml-1m.zip": tmp_path / "ml-1m.zip"})["ratings"]
    data = ratings.of_table(table)
    assert (len(data.features), data.classes, data.users is not None) == (160, 5, True)
    small = replace(data, features=data.features / np.float32(6000), test_features=table[:40, :2] / np.float32(6000))
    learner = SoftmaxRegression(5, 2, 5, 0.1)
    experiment = given(values=[1.0, 2.0, 3.0, 4.0, 5.0], runs=[{"name": "r", "epsilons": [1.0], "stages": [{}]}])
    trainer = Trainer(experiment, small, lambda training: learner, SeededChance(1))
    results = experiments.run(experiment, small, tmp_path / "run", trainer, TrainProgress(1, quiet=True))
    assert results["epsilon_total"] == 1.0
    assert results["statement"]["user_epsilon"] == 5.0  # of the person with most ratings in this part
    assert 0 < results["rmse_mean"] < 4
    assert results["constant_rmse"] == pytest.approx(np.std(table[split(200, [0.8, 0.2], 0)[1], 2]))


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "examples" / "labels").glob("*.toml")), ids=lambda path: path.stem
)
def test_the_examples_are_experiments(path: Path) -> None:
    read = settings.read_experiment(path)
    assert settings.made(tomllib.loads(read.text()), "again") == read
    assert f"fedrho labels train examples/labels/{path.name}" in path.read_text(encoding="utf-8")


def test_a_private_file_that_was_answered_before_pays_again_only_on_demand_and_says_the_sum(tmp_path: Path) -> None:
    names = [f"class {label}" for label in LABELS]
    path = written(tmp_path / "mine.csv", names, FEATURES)
    runs = [{"name": "r", "epsilons": [1.0], "stages": [{}]}]
    mine = given(dataset=None, data=str(path), label="y", classes=[f"class {number}" for number in range(CLASSES)], runs=runs)
    data = own(path, "y", mine.classes, None, public=False)

    def go(name: str, again: bool = False) -> dict[str, Any]:
        trainer = Trainer(mine, data, softmax, SeededChance(1), again=again)
        folder = tmp_path / name
        progress = TrainProgress(1, quiet=True)
        return experiments.run(mine, data, folder, trainer, progress, lambda: experiments.noted(mine, folder, again))

    with alone(path), pytest.raises(BadInput, match="another process"):
        go("while another answers")

    class Asking(SoftmaxRegression):
        """Another process asks while this one trains."""

        def fit(self, *given: Any) -> NDArray[np.float32]:
            with pytest.raises(BadInput, match="another process"), alone(path):
                raise AssertionError
            return super().fit(*given)

    trainer = Trainer(mine, data, lambda training: Asking(CLASSES, 2, 2), SeededChance(1))
    folder = tmp_path / "held"
    experiments.run(mine, data, folder, trainer, TrainProgress(1, quiet=True), lambda: experiments.noted(mine, folder, False))
    note_of(path).unlink()
    first = go("first")
    assert first["epsilon_total"] == 1.0
    with pytest.raises(BadInput, match="answered before, at epsilon 1 in all"):
        go("second")
    second = go("second", again=True)
    assert second["epsilon_total"] == 2.0
    assert any(text.startswith("earlier: training, r") for text in second["statement"]["mechanisms"])
    assert (go("first"), go("second")) == (first, second)  # finished folders ask nobody


def private_experiment(tmp_path: Path, **changes: Any) -> ExperimentFile:
    data = written(tmp_path / "mine.csv", [str(label) for label in LABELS], FEATURES)
    runs = [{"name": "r", "epsilons": [1.0], "stages": [{}]}]
    values = {
        "dataset": None,
        "data": str(data),
        "label": "y",
        "classes": [str(number) for number in range(CLASSES)],
        "runs": runs,
    }
    return given(**{**values, **changes})


def noted(mine: ExperimentFile, path: Path, again: bool = False) -> float:
    """Epsilon of what was answered before this folder."""
    (path / "cells").mkdir(parents=True, exist_ok=True)
    return sum(one.epsilon for one in experiments.noted(mine, path, again))


@pytest.mark.parametrize("lost", ["deleted", "copied"])
def test_a_private_files_folder_that_was_deleted_or_copied_pays_anew(tmp_path: Path, lost: str) -> None:
    mine, folder = private_experiment(tmp_path), tmp_path / "folder"
    assert noted(mine, folder) == 0.0
    assert noted(mine, folder) == 0.0  # it goes on
    if lost == "copied":
        folder = Path(shutil.copytree(folder, tmp_path / "other"))
    else:
        shutil.rmtree(folder)
    with pytest.raises(BadInput, match="answered before, at epsilon 1"):
        noted(mine, folder)
    assert noted(mine, folder, again=True) == 1.0
    assert noted(mine, folder) == 1.0


def test_answers_that_were_lost_and_asked_for_again_are_in_what_the_next_folder_pays(tmp_path: Path) -> None:
    mine, folder = private_experiment(tmp_path), tmp_path / "folder"
    noted(mine, folder)
    (cell,) = cells(mine)
    DiskMemory(folder / "cells" / cell.name).begin("stage-1")
    assert noted(mine, folder, again=True) == 0.0
    assert noted(mine, folder, again=True) == 0.0
    assert noted(mine, tmp_path / "next", again=True) == 2.0


def test_what_others_asked_while_a_folder_was_broken_off_is_in_its_statement(tmp_path: Path) -> None:
    """Its labels are read after theirs, if it noted itself before them; so their sum is what a label has paid."""
    mine, folder = private_experiment(tmp_path), tmp_path / "mine"
    assert noted(mine, folder) == 0.0  # and killed
    fives = [{"name": "others", "epsilons": [5.0], "stages": [{}]}]
    assert noted(private_experiment(tmp_path, runs=fives), tmp_path / "others", again=True) == 1.0
    data = own(Path(mine.data or ""), "y", mine.classes, None, public=False)
    trainer, progress = Trainer(mine, data, softmax, SeededChance(1)), TrainProgress(1, quiet=True)
    results = experiments.run(mine, data, folder, trainer, progress, lambda: experiments.noted(mine, folder, False))
    assert results["epsilon_total"] == 6.0
    assert any("training, others, epsilon 5" in text for text in results["statement"]["mechanisms"])


def test_deltas_of_a_files_earlier_answers_add_up_too(tmp_path: Path) -> None:
    earlier = private_experiment(tmp_path, runs=[{"name": "r", "kind": "dp-sgd", "epsilons": [1.0], "dp_sgd": {"delta": 1e-4}}])
    mine, folder = private_experiment(tmp_path), tmp_path / "mine"
    noted(earlier, tmp_path / "earlier")
    data = own(Path(mine.data or ""), "y", mine.classes, None, public=False)
    trainer = Trainer(mine, data, softmax, SeededChance(1), again=True)
    progress = TrainProgress(1, quiet=True)
    results = experiments.run(mine, data, folder, trainer, progress, lambda: experiments.noted(mine, folder, True))
    assert (results["statement"]["epsilon"], results["statement"]["delta"]) == (2.0, 1e-4)


class CountingDpSgd(baseline.DpSgd):
    """Counts who is trained on, and trains nobody."""

    def trained(
        self, data: LabelData, places: NDArray[np.int64], section: settings.DpSgdSection, epsilon: float, seed: int
    ) -> NDArray[np.float32]:
        self.count = len(places)
        return softmax(TrainingSection(steps=1)).fit(data.features[:1], np.eye(CLASSES)[:1], None, 0)


def test_dp_sgd_sets_no_private_record_aside_because_it_has_no_answers_to_count(tmp_path: Path) -> None:
    mine = private_experiment(tmp_path, runs=[{"name": "r", "kind": "dp-sgd", "epsilons": [1.0], "dp_sgd": {"batch": 30}}])
    data, counting = own(Path(mine.data or ""), "y", mine.classes, None, public=False), CountingDpSgd(None)
    (cell,) = cells(mine)
    _, statement = Trainer(mine, data, softmax, dp_sgd=counting).train(cell, DiskMemory(tmp_path / "cell"), lambda line: None)
    assert counting.count == len(LABELS)
    assert f"Poisson samples of rate {30 / len(LABELS):.4g}" in statement.mechanisms[0]


def test_labels_are_the_same_ones_by_another_name_of_their_file_or_array(tmp_path: Path) -> None:
    mine = private_experiment(tmp_path)
    (tmp_path / "link.csv").symlink_to("mine.csv")
    noted(mine, tmp_path / "one")
    assert note_of(tmp_path / "link.csv") == note_of(tmp_path / "mine.csv")
    arrays = mine.model_copy(update={"data": str(tmp_path / "mine.npz"), "label": ""})
    np.savez(tmp_path / "mine.npz", features=FEATURES, labels=LABELS)
    noted(arrays, tmp_path / "arrays")
    with pytest.raises(BadInput, match="answered before"):
        noted(arrays.model_copy(update={"label": "labels"}), tmp_path / "others")


def test_runs_whose_names_would_share_a_folder_are_refused() -> None:
    with pytest.raises(BadInput, match="folders"):
        given(runs=[{"name": name, "epsilons": [1.0], "stages": [{}]} for name in ("LP 1", "LP-1")])


def test_a_file_whose_rows_stand_by_class_but_for_one_is_refused(tmp_path: Path) -> None:
    rows = np.argsort(LABELS, kind="stable")
    rows = np.concatenate([rows[-1:], rows[:-1]])
    path = written(tmp_path / "mine.csv", [str(label) for label in LABELS[rows]], FEATURES[rows])
    with pytest.raises(BadInput, match="sorted by class"):
        own(path, "y", [str(number) for number in range(CLASSES)], None, public=False)


def test_a_private_training_that_was_refused_before_a_read_has_paid_nothing(tmp_path: Path) -> None:
    stages = [{"share": 0.9999}, {"share": 0.0001}]
    mine = private_experiment(tmp_path, runs=[{"name": "r", "epsilons": [1.0], "stages": stages}])
    path = Path(mine.data or "")
    data, folder = own(path, "y", mine.classes, None, public=False), tmp_path / "run"
    trainer, progress = Trainer(mine, data, softmax, SeededChance(1)), TrainProgress(1, quiet=True)
    with pytest.raises(StageError, match="too few"):
        experiments.run(mine, data, folder, trainer, progress, lambda: experiments.noted(mine, folder, False))
    assert not note_of(path).exists()
