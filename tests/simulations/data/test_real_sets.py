"""The real data sets are what their authors say: counts, labels, writers and speakers, from copies on the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrho.models import tables, tokens
from fedrho.simulations.data import adult, images, speakers
from fedrho.simulations.data.base import DataError, FederatedDataset
from fedrho.simulations.data.catalogue import entry
from fedrho.simulations.data.download import check, sha256_of
from fedrho.simulations.data.pools import Divided
from fedrho.simulations.data.vocabularies import made_of
from fedrho.simulations.data.windows import Windows
from tests.simulations.data.opening import digest, opened

pytestmark = pytest.mark.usefixtures("copies")

MNIST_LABELS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST_LABELS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def labels(data: FederatedDataset) -> list[int]:
    """How often each class is held by the devices together."""
    counts: list[int] = np.bincount(np.concatenate([data.examples(device).labels for device in range(data.size)])).tolist()
    return counts


def assert_divided(data: FederatedDataset, examples: int) -> None:
    """Every example belongs to exactly one device, every device has one at least, and counts are true."""
    assert isinstance(data, Divided)
    members = [data.members(device) for device in range(data.size)]
    assert np.array_equal(np.sort(np.concatenate(members)), np.arange(examples))
    assert min(map(len, members)) >= 1
    assert [data.count(device) for device in range(data.size)] == [len(part) for part in members]
    assert all(len(data.examples(device)) == data.count(device) for device in (0, data.size - 1))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "shakespeare", "adult"])
def test_the_copies_have_the_checksums_and_sizes_of_the_catalogue(name: str, copies: Path) -> None:
    for file in entry(name).files:
        check(file, copies / file.name)
        assert (copies / file.name).stat().st_size == file.size
        assert sha256_of(copies / file.name) == file.sha256


@pytest.mark.parametrize("name", ["mnist", "qmnist"])
def test_mnist_has_539_writers_of_19_to_131_digits(name: str) -> None:
    data = opened(name)
    counts = [data.count(device) for device in range(data.size)]
    assert (data.size, sum(counts), min(counts), max(counts), int(np.median(counts))) == (539, 60_000, 19, 131, 116)
    assert labels(data) == MNIST_LABELS
    assert np.bincount(data.held_out.labels).tolist() == MNIST_TEST_LABELS
    assert_divided(data, 60_000)


def test_no_writer_of_a_held_out_digit_is_a_device(copies: Path) -> None:
    train, test = (images.read_idx(copies / "mnist" / f"qmnist-{part}-labels-idx2-int.gz") for part in ("train", "test"))
    writers, test_writers = train[:, 2], test[:10_000, 2]
    assert (len(set(writers)), len(set(test_writers)), set(writers) & set(test_writers)) == (539, 297, set())
    data = opened("mnist")
    assert isinstance(data, Divided)
    assert all(len(set(writers[data.members(device)])) == 1 for device in range(data.size))


@pytest.mark.parametrize("name", ["mnist", "qmnist", "fashion-mnist"])
@pytest.mark.parametrize("options", [{"split": "dirichlet", "devices": 1000, "alpha": 0.3}, {"split": "shards"}])
def test_images_can_be_shared_out(name: str, options: dict[str, Any]) -> None:
    data = opened(name, **options)
    assert_divided(data, 60_000)
    assert labels(data) == ([6000] * 10 if name == "fashion-mnist" else MNIST_LABELS)
    if options["split"] == "shards":
        assert [data.count(device) for device in range(data.size)] == [600] * 100
        assert max(len(set(data.examples(device).labels.tolist())) for device in range(100)) <= 4


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_images_are_grey_between_0_and_1_as_models_take_them(name: str) -> None:
    data = opened(name, split="drawn", devices=10**6, examples=10)
    examples = data.examples(999_999)
    assert (examples.features.shape, str(examples.features.dtype)) == ((10, 28, 28, 1), "float32")
    assert (data.held_out.features.min(), data.held_out.features.max(), len(data.held_out)) == (0.0, 1.0, 10_000)


def test_images_are_bytes_on_the_disk_that_processes_share(copies: Path) -> None:
    data = opened("mnist")
    assert isinstance(data, Divided)
    kept = data._train.features
    assert isinstance(kept, np.memmap)
    assert (kept.dtype, kept.shape) == (np.uint8, (60_000, 28, 28))


def test_adult_is_42_countries_and_the_labels_of_the_census() -> None:
    data = opened("adult")
    assert data.size == 42
    assert max(data.count(device) for device in range(42)) == 29_170
    assert labels(data) == [24_720, 7_841]
    assert np.bincount(data.held_out.labels).tolist() == [12_435, 3_846]
    assert_divided(data, 32_561)


@pytest.mark.parametrize(("split", "devices"), [("occupation", 15), ("sex", 2), ("education", 16), ("dirichlet", 1000)])
def test_adult_by_other_attributes(split: str, devices: int) -> None:
    data = opened("adult", split=split, **({"devices": devices} if split == "dirichlet" else {}))
    assert data.size == devices
    assert_divided(data, 32_561)


def test_adult_features_are_public_scalings_and_categories(copies: Path) -> None:
    listed = (copies / "adult" / "adult.names").read_text()
    for name, (_, categories) in adult.CATEGORIES.items():
        assert f"{name}: {categories}." in listed
    features = np.concatenate([opened("adult", split="sex").examples(device).features for device in range(2)])
    assert features.shape == (32_561, adult.SIZE) == (32_561, 104)
    assert features.min() == 0
    assert features.max() == 1
    one_hot = features[:, 5:]
    assert set(np.unique(one_hot).tolist()) == {0.0, 1.0}
    assert one_hot.sum(axis=1).max() == len(adult.CATEGORIES)


def test_adults_first_row_by_hand(copies: Path) -> None:
    """39, State-gov, 77516, Bachelors, 13, ..., 2174, 0, 40, United-States: among the United States, whose first row it is."""
    row = opened("adult").examples(0).features[0]
    expected = [0.39, 13 / 16, 0.4, np.log1p(2174) / np.log1p(100_000), 0.0]
    assert row[:5].tolist() == pytest.approx(expected, abs=1e-6)
    assert (row[5:13].tolist().index(1.0), row[13:29].tolist().index(1.0)) == (5, 0)
    raw = opened("adult", columns="raw")
    assert raw.examples(0).features[0].tolist() == [39, 13, 40, 2174, 0, 5, 0, 2, 8, 3, 0, 1, 0]


def test_adults_raw_columns_are_the_encoded_ones_before_their_encoding(copies: Path) -> None:
    encoded, raw = (opened("adult", split="sex", columns=columns).held_out.features for columns in ("encoded", "raw"))
    assert raw.shape == (16_281, tables.RAW_COLUMNS)
    assert np.abs(np.minimum(raw[:, :3] / [100, 16, 100], 1) - encoded[:, :3]).max() < 1e-6
    sizes = list(tables.CATEGORIES.values())
    assert list(tables.CATEGORIES) == list(adult.CATEGORIES)
    one_hot = [np.eye(size + 1)[raw[:, 5 + place].astype(int)][:, :size] for place, size in enumerate(sizes)]
    assert np.array_equal(np.concatenate(one_hot, axis=1), encoded[:, 5:])


def test_shakespeare_has_299_speakers_of_whom_30_are_held_out_and_each_character_is_guessed_once(copies: Path) -> None:
    data = opened("shakespeare")
    assert isinstance(data, Windows)
    assert (data.size, len(data.test_names), len(set(data.names) | set(data.test_names))) == (269, 30, 299)
    assert "ROMEO" in {*data.names, *data.test_names}
    assert sum(data.count(device) for device in range(data.size)) == 975_850
    everyone = opened("shakespeare", test_examples=2**20)
    texts = speakers.shakespeare(copies / "text-en" / "tinyshakespeare.txt")
    assert 975_850 + len(everyone.held_out) == sum(len("\n".join(said)) for said in texts.values())


def test_a_window_is_what_comes_before_the_next_character(copies: Path) -> None:
    texts = speakers.shakespeare(copies / "text-en" / "tinyshakespeare.txt")
    data = opened("shakespeare")
    assert isinstance(data, Windows)
    for device in (0, 7, data.size - 1):
        text = "\n".join(texts[data.names[device]])
        examples = data.examples(device)
        assert len(examples) == data.count(device) == len(text)
        for place in {0, 1, 19, 20, 21, len(text) - 1} & set(range(len(text))):
            before, after = examples.features[place], examples.labels[place]
            window = text[max(0, place - 20) : place]
            assert tokens.lookup("characters").decode(before[-len(window) :] if window else before[:0]) == window
            assert not before[: 20 - len(window)].any()
            assert tokens.lookup("characters").decode(np.array([after])) == text[place]


@pytest.mark.parametrize("stride", [1, 7])
def test_strides_thin_out_and_small_devices_can_be_left_out(stride: int) -> None:
    data = opened("shakespeare", stride=stride, least=1000 // stride)
    assert min(data.count(device) for device in range(data.size)) >= 1000 // stride
    assert all(len(data.examples(device)) == data.count(device) for device in range(0, data.size, 20))
    assert len(data.held_out) == (10_000 if stride == 1 else 7387)
    with pytest.raises(DataError, match=r"data\.least: no device has 1000000 examples"):
        opened("shakespeare", least=1_000_000)


def test_parliament_words_are_over_the_words_of_the_theatre(copies: Path) -> None:
    data = opened("parlamint-es")
    assert isinstance(data, Windows)
    assert (data.size, len(data.test_names)) == (256, 28)
    assert not set(data.names) & set(data.test_names)
    examples = data.examples(0)
    assert (examples.features.shape[1:], str(examples.features.dtype)) == ((8,), "int32")
    assert 0 <= examples.features.min() <= examples.features.max() < tokens.lookup("spanish-theatre").size
    assert examples.labels.min() >= 2
    assert sum(data.count(device) for device in range(data.size)) == 813_184


@pytest.mark.slow
def test_the_list_of_words_for_the_theatre_was_counted_in_the_parliament(copies: Path) -> None:
    texts = speakers.spanish(copies / "text-es" / "parlamint_es_2022h1.jsonl.gz")
    assert (len(texts), sum(map(len, texts.values()))) == (284, 3192)
    assert tokens.listed("spanish-parliament-10k") == tuple(made_of(texts, 9998))
    assert tokens.listed("spanish-parliament") == tokens.listed("spanish-parliament-10k")[:2046]


@pytest.mark.slow
def test_caldracor_has_3309_speakers_and_gives_the_parliament_its_words(copies: Path) -> None:
    texts = speakers.spanish(copies / "text-es" / "caldracor_es.jsonl.gz")
    assert (len(texts), sum(map(len, texts.values()))) == (3309, 108_385)
    assert tokens.listed("spanish-theatre") == tuple(made_of(texts, 2046))
    data = opened("caldracor", units="characters")
    assert isinstance(data, Windows)
    assert (data.size, len(data.test_names)) == (2978, 331)
    words = opened("caldracor")
    assert sum(words.count(device) for device in range(words.size)) == 1_418_097


@pytest.mark.slow
@pytest.mark.parametrize("name", ["caldracor", "parlamint-es"])
def test_records_packed_otherwise_are_the_same_speeches(name: str, copies: Path) -> None:
    (file,) = entry(name).files
    assert file.content is not None
    assert file.content(copies / file.name) == file.content_sha256


@pytest.mark.slow
def test_another_process_has_the_same_bytes() -> None:
    names = ("mnist", "adult", "shakespeare")
    program = (
        "import sys; from tests.simulations.data.opening import digest, opened\n"
        "for name in sys.argv[1:]:\n"
        "    print(digest(opened(name).examples(3)), digest(opened(name).held_out))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *names], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert ran.stdout.splitlines() == [f"{digest(opened(name).examples(3))} {digest(opened(name).held_out)}" for name in names]


def test_a_folder_laid_out_like_the_copies_serves_though_it_is_read_only(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is mounted: nothing is written to it."""
    folder = (copies / "text-en" / "tinyshakespeare.txt").resolve().parents[1]
    if folder.stat().st_mode & 0o222:
        pytest.skip(f"{folder} may be written to here")
    before = sorted(str(path) for path in folder.rglob("*"))
    monkeypatch.setenv("FEDRHO_DATA", str(folder))
    assert opened("shakespeare").size == 269
    assert sorted(str(path) for path in folder.rglob("*")) == before


def test_a_damaged_copy_is_one_line(copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "damaged"
    (folder / "text-en").mkdir(parents=True)
    raw = (copies / "text-en" / "tinyshakespeare.txt").read_bytes()
    (folder / "text-en" / "tinyshakespeare.txt").write_bytes(raw[:-1])
    monkeypatch.setenv("FEDRHO_DATA", str(folder))
    with pytest.raises(DataError, match=r"tinyshakespeare\.txt: sha256 [0-9a-f]{64}, expected 86c4e6aa") as refused:
        opened("shakespeare")
    assert "\n" not in str(refused.value)
