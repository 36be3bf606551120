"""Language models that read a sequence from its beginning and guess the next id at every place: CIFG-LSTM and LSTM.

Every place sees itself and what is before it, so what fills up the end of a sequence changes no guess before it.

What is read is multiplied for a whole sequence at once, by a Dense layer; the cell of Keras's RNN then has the recurrent part
alone. On one thread, 16 sequences, forth and back: 64 microseconds a token for two layers of 256 and 80 places when unrolled, 72
in a loop, 104 with `keras.layers.LSTM`. Unrolling costs tracing: 5 seconds more at 80 places, one at 20. So the loop for
characters, and unrolled for words, 107 instead of 124 for 10,000 of them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fedrho.models.base import ModelSpec, register

if TYPE_CHECKING:
    import keras

CIFG = "Hard et al. 2018, Federated learning for mobile keyboard prediction, arXiv 1811.03604"
LSTM = "McMahan et al. 2017, arXiv 1602.05629; Reddi et al. 2021, Adaptive federated optimization, arXiv 2003.00295"
IGNORED = 2
"""Ids below it are never to be guessed: nothing, and unknown."""


def build_cifg(length: int, vocabulary: int, embedding: int, units: int) -> keras.Model:
    """Ids (batch, length) to logits (batch, length, vocabulary): one CIFG layer, projected to the embedding, which also scores.

    vocabulary * (embedding + 1) + 7 * units * embedding + 3 * units parameters.
    """
    from fedrho.models.backend import keras
    from fedrho.models.layers import CifgCell, TiedEmbedding

    ids = keras.Input((length,), dtype="int32")
    words = TiedEmbedding(vocabulary, embedding, name="words")
    gates = keras.layers.Dense(3 * units, name="gates")(words(ids))
    read = keras.layers.RNN(CifgCell(units, embedding, name="cell"), return_sequences=True, unroll=True, name="cifg")(gates)
    return keras.Model(ids, words(read, scores=True))


def build_lstm(length: int, vocabulary: int, embedding: int, units: int, layers: int) -> keras.Model:
    """Ids (batch, length) to logits (batch, length, vocabulary): LSTM layers above an embedding, a Dense layer above them."""
    from fedrho.models.backend import keras
    from fedrho.models.layers import LstmCell

    ids = keras.Input((length,), dtype="int32")
    seen = keras.layers.Embedding(vocabulary, embedding, name="embedding")(ids)
    for place in range(layers):
        gates = keras.layers.Dense(4 * units, name=f"gates{place}")(seen)
        seen = keras.layers.RNN(LstmCell(units, name="cell"), return_sequences=True, name=f"lstm{place}")(gates)
    return keras.Model(ids, keras.layers.Dense(vocabulary, name="logits")(seen))


def _register(name: str, summary: str, build: partial[keras.Model], tokens: str, paper: str, parameters: int) -> ModelSpec:
    """`build` is partial to the length and the vocabulary first."""
    length, vocabulary = build.args[:2]
    return register(
        ModelSpec(
            name, summary, (length,), vocabulary, build, "int32", vocabulary,
            label_shape=(length,), ignored=IGNORED, tokens=tokens, paper=paper, parameters=parameters,
        )
    )  # fmt: skip


SPANISH_CIFG = _register(
    "spanish-cifg",
    "next-word prediction for a Spanish keyboard: CIFG-LSTM of 512 units, tied embeddings of 96, 10,000 words",
    partial(build_cifg, 20, 10_000, 96, 512),
    "spanish-parliament-10k",
    CIFG,
    1_315_600,
)
WORDS_CIFG = _register(
    "words-cifg",
    "next-word prediction for two cores: CIFG-LSTM of 128 units, tied embeddings of 64, 2,048 words",
    partial(build_cifg, 20, 2048, 64, 128),
    "spanish-parliament",
    CIFG,
    190_848,
)
CHARACTERS_LSTM = _register(
    "characters-lstm",
    "the next character: two LSTM layers of 256 units above embeddings of 8",
    partial(build_lstm, 80, 126, 8, 256, 2),
    "characters",
    LSTM,
    830_062,
)
CHARACTERS_SMALL_LSTM = _register(
    "characters-small-lstm",
    "the next character, for two cores: one LSTM layer of 128 units above embeddings of 8",
    partial(build_lstm, 80, 126, 8, 128, 1),
    "characters",
    "after " + LSTM,
    87_406,
)
