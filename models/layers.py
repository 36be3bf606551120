"""Layers that Keras lacks, registered as Keras's own kind under `fedrho`; importing this imports TensorFlow.

A saved model that has them loads in safe mode once this module is imported: it runs no code out of the file.
"""

from __future__ import annotations

from typing import Any

from fedrho.models.backend import keras, tf

PACKAGE = "fedrho"
registered = keras.saving.register_keras_serializable(PACKAGE)


@registered
class TiedEmbedding(keras.layers.Layer):  # type: ignore[misc]
    """One matrix that reads ids and scores them: `Press & Wolf 2017`, arXiv 1608.05859.

    `layer(ids)` gives vectors, float32 (..., width); `layer(vectors, scores=True)` gives a score for every id, (..., vocabulary):
    the product with each id's vector, and a bias.
    """

    def __init__(self, vocabulary: int, width: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.vocabulary, self.width = vocabulary, width

    def build(self, input_shape: Any) -> None:
        """The vectors begin in Keras's uniform interval for embeddings, biases at zero."""
        self.vectors = self.add_weight(name="vectors", shape=(self.vocabulary, self.width), initializer="uniform")
        self.bias = self.add_weight(name="bias", shape=(self.vocabulary,), initializer="zeros")
        self.built = True

    def call(self, inputs: tf.Tensor, scores: bool = False) -> tf.Tensor:
        vectors = tf.convert_to_tensor(self.vectors)
        if not scores:
            return tf.gather(vectors, inputs)
        # One product of two matrices: over three axes TensorFlow would multiply the batch's parts one by one.
        rows = tf.reshape(inputs, (-1, self.width))
        flat = tf.matmul(rows, vectors, transpose_b=True) + tf.convert_to_tensor(self.bias)
        return tf.reshape(flat, (-1, *inputs.shape[1:-1], self.vocabulary))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "vocabulary": self.vocabulary, "width": self.width}


@registered
class CifgCell(keras.layers.Layer):  # type: ignore[misc]
    """One step of an LSTM whose input gate is what its forget gate leaves, 1 - f, with a recurrent projection.

    Greff et al. 2017, arXiv 1503.04069 (CIFG), and Sak et al. 2014, arXiv 1402.1128 (projection), without peepholes:

        f, g, o = sigmoid(x_f + r U_f), tanh(x_g + r U_g), sigmoid(x_o + r U_o)
        c' = f c + (1 - f) g;  r' = (o tanh(c')) P

    The inputs are x = (x_f, x_g, x_o), float32 (batch, 3 * units): what a Dense layer made of a whole sequence at once. Forget
    gates begin half open to both sides: with 1 - f for the input gate, a bias of one would shut out what is read.
    """

    def __init__(self, units: int, projection: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.units, self.projection = units, projection
        self.state_size, self.output_size = [projection, units], projection

    def build(self, input_shape: Any) -> None:
        shape = (self.projection, 3 * self.units)
        self.recurrent = self.add_weight(name="recurrent", shape=shape, initializer="glorot_uniform")
        self.projecting = self.add_weight(name="projection", shape=(self.units, self.projection), initializer="glorot_uniform")
        self.built = True

    def call(self, inputs: tf.Tensor, states: list[tf.Tensor], **_: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
        read, cell = states
        gates = inputs + tf.matmul(read, tf.convert_to_tensor(self.recurrent))
        forget, new, output = tf.split(gates, 3, axis=-1)
        new = tf.tanh(new)
        cell = new + tf.sigmoid(forget) * (cell - new)
        read = tf.matmul(tf.sigmoid(output) * tf.tanh(cell), tf.convert_to_tensor(self.projecting))
        return read, [read, cell]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units, "projection": self.projection}


@registered
class LstmCell(keras.layers.Layer):  # type: ignore[misc]
    """One step of the LSTM of Gers et al. 2000, on what a Dense layer made of a whole sequence, as with `CifgCell`.

        i, f, g, o = sigmoid(x_i + h U_i), sigmoid(x_f + h U_f), tanh(x_g + h U_g), sigmoid(x_o + h U_o)
        c' = f c + i g;  h' = o tanh(c')

    with one added to x_f, so that the cell begins by remembering, as in Keras. Keras's own LSTM keeps the state of random
    numbers even without dropout, which would be neither trained nor averaged.
    """

    def __init__(self, units: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.units, self.state_size, self.output_size = units, [units, units], units

    def build(self, input_shape: Any) -> None:
        self.recurrent = self.add_weight(name="recurrent", shape=(self.units, 4 * self.units), initializer="orthogonal")
        self.built = True

    def call(self, inputs: tf.Tensor, states: list[tf.Tensor], **_: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
        hidden, cell = states
        into, forget, new, output = tf.split(inputs + tf.matmul(hidden, tf.convert_to_tensor(self.recurrent)), 4, axis=-1)
        cell = tf.sigmoid(forget + 1.0) * cell + tf.sigmoid(into) * tf.tanh(new)
        hidden = tf.sigmoid(output) * tf.tanh(cell)
        return hidden, [hidden, cell]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


@registered
class Positions(keras.layers.Layer):  # type: ignore[misc]
    """Adds to every place of a sequence, float32 (batch, length, width), a vector of its own that is learned."""

    def build(self, input_shape: Any) -> None:
        self.vectors = self.add_weight(name="vectors", shape=tuple(input_shape[1:]), initializer="uniform")
        self.built = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs + tf.convert_to_tensor(self.vectors)


@registered
class Columns(keras.layers.Layer):  # type: ignore[misc]
    """Some columns of rows: of float32 (batch, columns), those from `first` up to `last`, which is left out."""

    def __init__(self, first: int, last: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.first, self.last = first, last

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs[:, self.first : self.last]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "first": self.first, "last": self.last}


@registered
class SmeLU:
    """Smooth ReLU (Shamir, Lin & Coviello 2020, arXiv 2010.09931): 0 up to -beta, x from beta on.

    Between them it is (x + beta)**2 / (4 beta). Value and slope have no jump; the smaller beta, the closer to ReLU.
    """

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = beta
        self.__name__ = f"smelu-{beta:g}"

    def __call__(self, inputs: tf.Tensor) -> tf.Tensor:
        bent = tf.square(inputs + self.beta) / (4.0 * self.beta)
        return tf.where(inputs >= self.beta, inputs, tf.where(inputs <= -self.beta, tf.zeros_like(inputs), bent))

    def get_config(self) -> dict[str, float]:
        return {"beta": self.beta}

    @classmethod
    def from_config(cls, config: dict[str, float]) -> SmeLU:
        return cls(**config)
