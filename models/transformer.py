"""Small causal Transformers that guess the next id at every place of a sequence (Vaswani et al. 2017, arXiv 1706.03762).

Norm before each part (Xiong et al. 2020, arXiv 2002.04745), learned positions, tied embeddings, no dropout. A place attends to
itself and to what is before it, so what fills up the end of a sequence changes no guess before it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fedrho.models.activations import activation as activated
from fedrho.models.base import ModelSpec, register
from fedrho.models.recurrent import IGNORED

if TYPE_CHECKING:
    import keras

PAPER = "Vaswani et al. 2017, arXiv 1706.03762; norm before each part as in Xiong et al. 2020, arXiv 2002.04745"


def build_transformer(length: int, vocabulary: int, width: int, heads: int, blocks: int, activation: str = "gelu") -> keras.Model:
    """Ids (batch, length) to logits (batch, length, vocabulary); hidden layers of the blocks have 4 * width units."""
    from fedrho.models.backend import keras
    from fedrho.models.layers import Positions, TiedEmbedding

    ids = keras.Input((length,), dtype="int32")
    symbols = TiedEmbedding(vocabulary, width, name="symbols")
    seen = Positions(name="positions")(symbols(ids))
    for place in range(blocks):
        seen = _block(seen, width, heads, activation, f"block{place}")
    return keras.Model(ids, symbols(keras.layers.LayerNormalization(name="last_norm")(seen), scores=True))


def _block(seen: keras.KerasTensor, width: int, heads: int, activation: str, name: str) -> keras.KerasTensor:
    from fedrho.models.backend import keras

    normed = keras.layers.LayerNormalization(name=f"{name}_norm0")(seen)
    attention = keras.layers.MultiHeadAttention(heads, width // heads, name=f"{name}_attention")
    seen = keras.layers.Add(name=f"{name}_sum0")([seen, attention(normed, normed, use_causal_mask=True)])
    normed = keras.layers.LayerNormalization(name=f"{name}_norm1")(seen)
    hidden = keras.layers.Dense(4 * width, activation=activated(activation), name=f"{name}_hidden")(normed)
    return keras.layers.Add(name=f"{name}_sum1")([seen, keras.layers.Dense(width, name=f"{name}_down")(hidden)])


def _register(name: str, summary: str, length: int, vocabulary: int, tokens: str, parameters: int) -> ModelSpec:
    build = partial(build_transformer, length, vocabulary, 64, 4, 2)
    return register(
        ModelSpec(
            name, summary, (length,), vocabulary, build, "int32", vocabulary,
            label_shape=(length,), ignored=IGNORED, tokens=tokens, paper=PAPER, parameters=parameters,
        )
    )  # fmt: skip


CHARACTERS_TRANSFORMER = _register(
    "characters-transformer", "the next character: a Transformer of two blocks, width 64, 4 heads", 80, 126, "characters", 113_406
)
WORDS_TRANSFORMER = _register(
    "words-transformer", "the next word: a Transformer of two blocks, width 64, 4 heads", 20, 2048, "spanish-parliament", 234_496
)
