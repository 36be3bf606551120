"""`fedrho predict` and `fedrho models`: what comes out is what the model gives, and one line says what cannot be."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedrho.export import write_model
from fedrho.models.flat import FlatModel
from fedrho.models.saved import is_saved
from fedrho.models.tokens import lookup as tokens_of
from fedrho.models.zoo import lookup, names
from fedrho.predict_command import claim
from fedrho.predicting import Exported, Reader, read_export
from fedrho.simulations.claim import NO_GUARANTEE
from tests.commanding import Run, refused, runner
from tests.models import reference

STATEMENT = {
    "model": "digits-mlp",
    "rho": 0.5,
    "epsilon": 6.0,
    "delta": 1e-6,
    "unit": "device",
    "neighbours": "zero-out",
    "assumptions": ["one", "two"],
}
CLAIM = "rho 0.5, epsilon 6 at delta 1e-06, unit: one device, neighbours: zero-out, under the 2 assumptions in the file"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(monkeypatch, capfd)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of digits-mlp, from a fixed seed."""
    path = tmp_path_factory.mktemp("export") / "digits.npz"
    write_model(path, FlatModel(lookup("digits-mlp"), seed=2), STATEMENT)
    return path


def test_probabilities_are_the_softmax_of_what_the_network_gives(run: Run, exported: Path, tmp_path: Path) -> None:
    features, _ = reference.made_up(3, seed=4)
    logits = reference.activations("digits-mlp", FlatModel(lookup("digits-mlp"), seed=2).weights(), features)[-1]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.savez(tmp_path / "some.npz", features=features)
    heading = ",".join([*(f"x{place}" for place in range(64)), "label"])
    rows = [",".join([*map(repr, map(float, row)), "9"]) for row in features]
    (tmp_path / "some.csv").write_text(
        "\n".join(["label," + heading[:-6], *("9," + row[:-2] for row in rows)]), encoding="utf-8-sig"
    )
    for data in ("some.npz", "some.csv"):
        code, out, err = run("predict", exported, "--data", tmp_path / data, "--top", 10, "--json")
        values = json.loads(out)
        assert (code, err, values["model"], values["claim"], values["statement"]["rho"]) == (0, "", "digits-mlp", CLAIM, 0.5)
        found = np.array(
            [[one["probability"] for one in sorted(row, key=lambda one: one["class"])] for row in values["predictions"]]
        )
        assert np.abs(found - expected).max() < 1e-6
        assert [row[0]["class"] for row in values["predictions"]] == expected.argmax(axis=1).tolist()
    code, out, _ = run("predict", exported, "--features", ",".join(map(str, features[0])))
    assert out.splitlines()[-1] == f"privacy statement: {CLAIM}"


def test_what_is_no_input_of_the_model_is_one_line(run: Run, exported: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", examples=np.zeros((1, 64)))
    (tmp_path / "torn.npz").write_bytes((exported.read_bytes())[:900])
    refused(run("predict", exported), "give one of --text, --image, --features and --data")
    refused(run("predict", exported, "--features", "1,2", "--text", "a"), "give one of")
    refused(run("predict", exported, "--features", "1,2,3"), "--features: features must be numbers of shape ('examples', 64)")
    refused(run("predict", exported, "--features", ",".join(["nan"] * 64)), "--features", "finite")
    refused(run("predict", exported, "--features", "1,two"), "not numbers with commas between them")
    refused(run("predict", exported, "--features", "1", "--continue", "3"), "--continue: goes with --text")
    refused(run("predict", exported, "--data", tmp_path / "other.npz"), "no .npz file with an array `features`")
    np.savez(tmp_path / "scalar.npz", features=np.array(5.0))
    refused(run("predict", exported, "--data", tmp_path / "scalar.npz"), "no examples; allowed: 1 to")
    refused(run("predict", tmp_path, "--features", "1"), "is a folder; `fedrho export")
    refused(run("predict", exported, "--data", tmp_path / "torn.npz"), "no .npz file with an array `features`")
    refused(run("predict", exported, "--data", tmp_path / "none.csv"), "cannot be read")
    refused(run("predict", exported, "--text", "hello"), "model 'digits-mlp' does not guess the next of a text")
    refused(run("predict", tmp_path / "torn.npz", "--features", "1"), "torn.npz: is not a whole .npz file of weights")
    refused(run("predict", exported, "--features", "1", "--model", "digits-logistic"), "the weights in", "are of 'digits-mlp'")


def test_an_image_is_resized_to_what_the_model_takes_and_says_so(run: Run, tmp_path: Path) -> None:
    write_model(tmp_path / "m.safetensors", FlatModel(lookup("mnist-logistic")), {"model": "mnist-logistic", "initial": True})
    Image.new("L", (28, 28), 7).save(tmp_path / "right.png")
    Image.new("RGB", (40, 30), "white").save(tmp_path / "large.png")
    (tmp_path / "none.png").write_bytes(b"\x89PNG")
    code, out, _ = run("predict", tmp_path / "m.safetensors", "--image", tmp_path / "large.png", "--top", "1")
    assert (code, out.splitlines()[0]) == (0, "the image is 40 x 30, resized to 28 x 28")
    assert out.splitlines()[1:] == ["0 0.1000", "privacy statement: none: weights as they begin, that nothing was trained into"]
    assert (
        json.loads(run("predict", tmp_path / "m.safetensors", "--image", tmp_path / "right.png", "--json")[1])["resized"] is None
    )
    refused(run("predict", tmp_path / "m.safetensors", "--image", tmp_path / "none.png"), "none.png: not an image")


@pytest.fixture(scope="module")
def reader() -> Reader:
    """A sequence model whose last place is reached, with larger weights than it begins with, so that guesses differ."""
    model = FlatModel(lookup("characters-small-lstm"), seed=3)
    model.assign(20 * model.weights())
    return Reader.of(Exported(model, None), None)


def test_what_follows_a_text_is_guessed_at_its_last_place(reader: Reader) -> None:
    text = "Érase una vez " * 8
    ids = reader.ids(text)
    assert len(ids) > 80
    whole = reader.exported.probabilities(np.array([ids[-80:]], np.int32))[0]
    assert np.array_equal(reader.following(ids), whole[-1])
    first = reader.following(ids[:5])
    assert np.abs(first - reader.exported.probabilities(np.array([ids[:80]], np.int32))[0, 4]).max() < 1e-6
    assert first.sum() == pytest.approx(1)


def test_a_text_goes_on_by_its_seed_and_without_temperature_by_the_likeliest(reader: Reader) -> None:
    ids = reader.ids("Érase")
    greedy = reader.continued(ids, 6, 0.0, 1)
    for place, one in enumerate(greedy):
        assert one == 2 + int(np.argmax(reader.following(ids + greedy[:place])[2:]))
    assert reader.continued(ids, 12, 1.0, 1) == reader.continued(ids, 12, 1.0, 1) != reader.continued(ids, 12, 1.0, 2)


def test_a_draw_follows_the_probabilities_of_what_is_listed(reader: Reader) -> None:
    """4,000 draws: an expected count of n p lies within five standard deviations, sqrt(n p (1 - p)), of the count."""
    probabilities = np.array([0.5, 0.2, 0.2, 0.1])
    random = np.random.default_rng(0)
    for temperature, shares in ((1.0, [2 / 3, 1 / 3]), (0.5, [0.8, 0.2])):
        drawn = [reader._drawn(probabilities, temperature, random) for _ in range(4000)]
        assert set(drawn) == {2, 3}
        assert abs(drawn.count(2) - 4000 * shares[0]) < 5 * np.sqrt(4000 * shares[0] * shares[1])


def test_words_follow_words_and_a_window_reads_the_last_of_them(run: Run, tmp_path: Path) -> None:
    model = FlatModel(lookup("words"), seed=1)
    write_model(tmp_path / "w.npz", model, {"model": "words"})
    arguments = ("predict", tmp_path / "w.npz", "--tokens", "spanish-parliament", "--top", "2", "--json", "--text")
    code, out, _ = run(*arguments, "muchas gracias señor presidente", "--continue", "3")
    values = json.loads(out)
    ids = tokens_of("spanish-parliament").encode("muchas gracias señor presidente")
    window = np.array([[0] * 4 + [int(one) for one in ids]], np.int32)
    logits = model.keras_model(window).numpy()[0]
    assert code == 0
    assert values["predictions"][0][0]["class"] == 2 + int(np.argmax(logits[2:]))
    assert values["claim"] == "none in the file"
    assert len(values["continuation"].split()) == 3
    refused(run(*arguments, "qwxz qzwx"), "has nothing that spanish-parliament lists")
    refused(run(*arguments, ""), "is empty")
    refused(run(*arguments[:3], "characters", *arguments[4:], "a"), "--tokens characters: has 126 ids, and model 'words' 2048")
    refused(run("predict", tmp_path / "w.npz", "--text", "a"), "does not say what its ids stand for; --tokens NAME")


def test_an_export_of_a_saved_model_is_its_own_model(run: Run, tmp_path: Path) -> None:
    import keras

    keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]).save(tmp_path / "mine.keras")
    code, _, err = run("models", "export", tmp_path / "mine.keras", "--out", tmp_path / "out.keras")
    assert (code, err) == (0, "")
    assert read_export(tmp_path / "out.keras", None).model.size == 9
    assert run("predict", tmp_path / "out.keras", "--features", "1,2")[0] == 0
    run("models", "export", tmp_path / "mine.keras", "--out", tmp_path / "out.npz")
    assert run("predict", tmp_path / "out.npz", "--features", "1,2", "--model", tmp_path / "mine.keras")[0] == 0
    np.savez(tmp_path / "plain.npz", a=np.zeros(3, np.float32))
    refused(run("predict", tmp_path / "plain.npz", "--features", "1,2"), "does not say which model", "--model NAME")


FALSE = (
    {"epsilon": None},
    {"rho": -1.0},
    {"epsilon": "nan"},
    {"unit": "device\nepsilon 0"},
    {"neighbours": "\x1b[2J"},
    {"assumptions": 3},
)


@pytest.mark.parametrize("statement", [{}, {"rho": "x"}, {"rho": 1.0}, *({**STATEMENT, **one} for one in FALSE)])
def test_nothing_is_claimed_of_a_statement_that_is_none(statement: dict[str, Any]) -> None:
    assert claim(statement) == claim(None) == "none in the file"


def test_weights_of_a_simulation_never_pass_for_private_ones() -> None:
    said = {**STATEMENT, "simulation": "this was a simulation"}
    assert claim(said) == "none: weights of a simulation, which protects nobody"
    assert claim({**said, "guarantee": NO_GUARANTEE}) == "none: weights of a simulation, which protects nobody; no guarantee"


def test_the_claim_about_labels_is_said_as_one_about_labels() -> None:
    labels = {"unit": "label", "neighbours": "replace-one", "epsilon": 2.0, "delta": 0.0, "assumptions": ["one"]}
    told = "epsilon 2 (pure), unit: one label, neighbours: replace-one, under the 1 assumptions in the file"
    assert claim(labels) == told


def test_a_statement_with_a_number_that_is_none_is_refused(run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "n.npz", privacy_statement=np.array('{"model": "digits-mlp", "epsilon": NaN}'))
    refused(run("predict", tmp_path / "n.npz", "--features", "1", "--json"), "statement has NaN, which is no number")


def test_words_that_a_study_chose_are_read_from_its_list(run: Run, tmp_path: Path) -> None:
    write_model(tmp_path / "w.npz", FlatModel(lookup("words"), seed=1), {"model": "words", "tokens": "private-0123456789abcdef"})
    refused(run("predict", tmp_path / "w.npz", "--text", "sol"), "--tokens FOLDER/vocabulary.txt")
    listed = [f"w{number}" for number in range(2045)]
    (tmp_path / "vocabulary.txt").write_text("\n".join(["sol", *listed]))
    arguments = ("predict", tmp_path / "w.npz", "--json", "--text", "Sol", "--tokens", tmp_path / "vocabulary.txt")
    code, out, _ = run(*arguments)
    best = json.loads(out)["predictions"][0][0]
    assert code == 0
    assert best["token"] == ["sol", *listed][best["class"] - 2]
    (tmp_path / "vocabulary.txt").write_text("sol\nsol\n")
    refused(run(*arguments), "vocabulary.txt: is no list of words in UTF-8")
    write_model(tmp_path / "p.npz", FlatModel(lookup("words"), seed=1), {"model": "words", "tokens": "spanish-parliament"})
    assert run("predict", tmp_path / "p.npz", "--text", "gracias")[0] == 0


# -- the zoo ------------------------------------------------------------------------------------------------------------------


def test_all_models_are_listed_and_one_is_shown_to_the_last_weight(run: Run) -> None:
    code, out, err = run("models", "list", "--json")
    listed = {one["name"]: one for one in json.loads(out)["models"]}
    assert (code, err) == (0, "")
    assert list(listed) == [name for name in names() if name in listed]
    assert {"spanish-cifg", "mnist-cnn"} <= listed.keys()
    assert all(one["parameters"] for name, one in listed.items() if not name.startswith("keras:") and not is_saved(name))
    values = json.loads(run("models", "show", "digits-mlp", "--json")[1])
    assert {key: values[key] for key in listed["digits-mlp"]} == listed["digits-mlp"]
    assert values["weights"][2] == {"name": "logits/kernel", "shape": [32, 10], "offset": 2080, "size": 320}
    assert (values["parameters"], values["bytes"], values["frozen"], values["vectorised"]) == (2410, 9640, 0, True)
    assert values["builder"] == "fedrho.models.digits.build_mlp()"
    refused(run("models", "show", "digit-mlp"), "unknown model 'digit-mlp'", "did you mean 'digits-mlp'?")
    refused(run("models", "show", "none.keras"), "none.keras: cannot be read")


def interpreted(path: Path, inputs: np.ndarray) -> np.ndarray:
    """What LiteRT's interpreter gives for one example at a time."""
    from fedrho.models.backend import tf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it moves to a package of its own
        interpreter = tf.lite.Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    place, found = interpreter.get_input_details()[0]["index"], []
    for one in inputs:
        interpreter.set_tensor(place, one[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    return np.array(found)


@pytest.mark.parametrize(
    "name",
    [
        "digits-mlp",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mnist-cnn", "characters-small-lstm", "words-cifg")),
    ],
)
def test_litert_gives_what_keras_gives_and_has_the_statement_behind_it(name: str, tmp_path: Path) -> None:
    model = FlatModel(lookup(name), seed=1)
    write_model(tmp_path / "m.tflite", model, STATEMENT)
    random, shape = np.random.default_rng(0), (2, *model.spec.input_shape)
    inputs = random.integers(0, 100, shape).astype(np.int32) if model.spec.vocabulary else random.random(shape, np.float32)
    expected = model.keras_model(inputs).numpy()
    assert np.abs(interpreted(tmp_path / "m.tflite", inputs) - expected).max() < 1e-5 * max(1, np.abs(expected).max())
    with zipfile.ZipFile(tmp_path / "m.tflite") as archive:
        assert json.loads(archive.read("privacy_statement.json")) == STATEMENT
