"""SimCLR: an encoder of images that is trained without a single label (Chen et al. 2020, arXiv 2002.05709).

Two altered copies of each image of a batch should lie close to one another and far from those of every other image: the
normalised temperature-scaled cross-entropy (NT-Xent) of their projections. What an encoder sees as alike is often of one class,
so its clusters make good priors for label privacy (Ghazi et al. 2021, section 5.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fedrho.models.backend import keras, tf

Images = NDArray[np.float32]
Progress = Callable[[int, float], None]
"""Is told the steps done and the mean loss since it was told last."""

WARM = 0.1
"""Share of the steps over which the learning rate rises; then it falls along a cosine."""
CHUNK = 25
"""Steps between two calls of progress, all in TensorFlow."""
ENCODED = 512
"""Images encoded at once."""


@dataclass(frozen=True)
class Alterations:
    """How far a copy of an image may be from it; every amount is drawn anew for each copy.

    `crop`: least side of the part that is kept, as a share. `turn`: most degrees. `slant`: most
    sideways shift of a row, per row above the middle. `flip`: whether left and right may be swapped.
    `light`: most change of brightness and contrast, as a share. `blur`: probability. `cutout`: side of the square that is
    blanked, as a share. `colour`: most change of each channel, as a share, and `grey` the probability that colour is left out;
    both for images of three channels.
    """

    crop: float = 0.7
    turn: float = 15.0
    slant: float = 0.3
    flip: bool = False
    light: float = 0.2
    blur: float = 0.0
    cutout: float = 0.3
    colour: float = 0.0
    grey: float = 0.0


GREY = Alterations()
CLOTHES = Alterations(crop=0.85, turn=5.0, slant=0.0, flip=True, light=0.4, cutout=0.0)
"""Little: what is cropped or blanked is what tells a shirt from a coat."""
COLOURED = Alterations(crop=0.45, turn=0.0, slant=0.0, flip=True, light=0.4, cutout=0.0, colour=0.3, grey=0.2)


@dataclass(frozen=True)
class SimclrSettings:
    """`width` of the first convolution, the later ones have two and four times as many; `projection` of the head's output."""

    steps: int = 1000
    batch: int = 256
    width: int = 32
    projection: int = 64
    temperature: float = 0.2
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    seed: int = 0
    alterations: Alterations = field(default_factory=Alterations)

    def __post_init__(self) -> None:
        if min(self.steps, self.batch - 1, self.width, self.projection) < 1:
            raise ValueError("steps, width and projection are at least 1, and a batch has at least 2 images")
        if not (self.temperature > 0 and self.learning_rate > 0 and self.weight_decay >= 0):
            raise ValueError("temperature and learning rate are above 0, and weight decay is not negative")


class Encoder:
    """Images of one shape to vectors; the same weights give the same vectors."""

    def __init__(self, shape: tuple[int, int, int], settings: SimclrSettings) -> None:
        from fedrho.models.backend import keras, tf

        keras.utils.set_random_seed(settings.seed)
        self.shape, self.settings = shape, settings
        self._body = _body(shape, settings.width)
        self._head = _head(4 * settings.width, settings.projection)
        self._encode = tf.function(self._body, input_signature=[tf.TensorSpec((None, *shape), tf.float32)], autograph=False)

    @property
    def variables(self) -> list[tf.Variable]:
        return [*self._body.trainable_variables, *self._head.trainable_variables]

    def project(self, images: tf.Tensor) -> tf.Tensor:
        """What the loss compares; the head is of no use afterwards."""
        return self._head(self._body(images, training=True), training=True)

    def encode(self, images: Images) -> Images:
        """Vectors of length 1, float32 of shape (n, 4 * width). Images are float32, scaled to [0, 1]."""
        from fedrho.models.backend import tf

        _check(images, self.shape)
        parts = [self._encode(tf.constant(images[begin : begin + ENCODED])).numpy() for begin in range(0, len(images), ENCODED)]
        rows: Images = np.concatenate([np.empty((0, 4 * self.settings.width), np.float32), *parts])
        lengths: Images = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
        return rows / lengths

    def weights(self) -> NDArray[np.float32]:
        """Flat; with `assign` an encoder outlives the process."""
        return np.concatenate([np.asarray(variable).reshape(-1) for variable in self.variables]).astype(np.float32)

    def assign(self, weights: NDArray[np.float32]) -> None:
        """Raises ValueError for a vector of another length."""
        shapes = [tuple(variable.shape) for variable in self.variables]
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        if weights.shape != (ends[-1],):
            raise ValueError(f"this encoder has {ends[-1]} weights, not {weights.shape}")
        for variable, part, shape in zip(self.variables, np.split(weights, ends[:-1]), shapes, strict=True):
            variable.assign(part.reshape(shape))


def train_encoder(images: Images, settings: SimclrSettings, progress: Progress | None = None) -> Encoder:
    """Of float32 images (n, height, width, channels) in [0, 1]; no labels. The seed decides weights, order and alterations.

    Raises ValueError for other images, and for fewer than a batch.
    """
    _check(images, images.shape[1:])
    if len(images) < settings.batch:
        raise ValueError(f"{len(images)} images are fewer than a batch of {settings.batch}; take a smaller batch")
    encoder = Encoder(images.shape[1:], settings)
    _Training(encoder, images).run(progress or (lambda steps, loss: None))
    return encoder


def nt_xent(projections: tf.Tensor, temperature: float) -> tf.Tensor:
    """Of 2 b projections, row i and row b + i of one image: mean cross-entropy of finding the other copy among all but itself."""
    from fedrho.models.backend import tf

    rows = tf.math.l2_normalize(projections, axis=1)
    count = tf.shape(rows)[0]
    likeness = tf.matmul(rows, rows, transpose_b=True) / temperature
    others = tf.linalg.set_diag(likeness, tf.fill([count], tf.constant(-1e9, tf.float32)))
    partners = tf.math.floormod(tf.range(count) + count // 2, count)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(partners, others))


def altered(images: tf.Tensor, seed: tf.Tensor, by: Alterations) -> tf.Tensor:
    """A copy of each image, changed at random; `seed` of two integers decides how."""
    from fedrho.models.backend import tf

    shape, channels = tf.shape(images), images.shape[3]
    seeds = tf.random.experimental.stateless_split(seed, 6)
    copies = _moved(images, seeds[0], by)
    light = tf.random.stateless_uniform([shape[0], 2, 1, 1], seeds[1], -by.light, by.light)
    copies = copies * (1.0 + light[:, :1]) + 0.5 * light[:, 1:] * copies * (1.0 - copies)
    if channels == 3 and (by.colour or by.grey):
        copies = _recoloured(copies, seeds[2], by)
    if by.blur:
        blurred = tf.nn.depthwise_conv2d(copies, _binomial(channels), [1, 1, 1, 1], "SAME")
        copies = tf.where(tf.random.stateless_uniform([shape[0], 1, 1, 1], seeds[3]) < by.blur, blurred, copies)
    if by.cutout:
        copies = copies * _holes(shape, seeds[4], by.cutout)
    return tf.clip_by_value(copies, 0.0, 1.0)


class _Training:
    """Adam (Kingma & Ba 2015) with decoupled weight decay, many steps in one TensorFlow call."""

    def __init__(self, encoder: Encoder, images: Images) -> None:
        from fedrho.models.backend import tf

        self._encoder, self._images = encoder, tf.constant(images)
        self._moments = [[tf.Variable(tf.zeros_like(one)) for one in encoder.variables] for _ in range(2)]
        steps = tf.TensorSpec((None, encoder.settings.batch), tf.int32)
        self._chunk = tf.function(self._steps, input_signature=[steps, tf.TensorSpec((), tf.int32)], autograph=False)

    def run(self, progress: Progress) -> None:
        from fedrho.models.backend import tf

        settings = self._encoder.settings
        order = _order(self._images.shape[0], settings)
        for begin in range(0, settings.steps, CHUNK):
            part = order[begin : begin + CHUNK]
            loss = self._chunk(tf.constant(part), tf.constant(begin, tf.int32))
            progress(begin + len(part), float(loss))

    def _steps(self, order: tf.Tensor, begun: tf.Tensor) -> tf.Tensor:
        from fedrho.models.backend import tf

        count = tf.shape(order)[0]

        def step(place: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return place + 1, total + self._step(tf.gather(self._images, order[place]), begun + place)

        _, total = tf.while_loop(lambda place, _: place < count, step, (tf.constant(0), tf.constant(0.0)), parallel_iterations=1)
        return total / tf.cast(count, tf.float32)

    def _step(self, images: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        from fedrho.models.backend import tf

        settings, variables = self._encoder.settings, self._encoder.variables
        seeds = [tf.stack([settings.seed, 2 * place + copy]) for copy in (0, 1)]
        both = tf.concat([altered(images, seed, settings.alterations) for seed in seeds], 0)
        with tf.GradientTape() as tape:
            loss = nt_xent(self._encoder.project(both), settings.temperature)
        self._apply(tape.gradient(loss, [getattr(one, "value", one) for one in variables]), place)
        return loss

    def _apply(self, gradients: list[tf.Tensor], place: tf.Tensor) -> None:
        from fedrho.models.backend import tf

        settings = self._encoder.settings
        done = tf.cast(place + 1, tf.float32)
        rate = settings.learning_rate * _schedule(done / settings.steps)
        for one, gradient, mean, square in zip(self._encoder.variables, gradients, *self._moments, strict=True):
            mean.assign(0.9 * mean + 0.1 * gradient)
            square.assign(0.999 * square + 0.001 * gradient**2)
            move = (mean / (1 - 0.9**done)) / (tf.sqrt(square / (1 - 0.999**done)) + 1e-8)
            decay = settings.weight_decay if len(one.shape) > 1 else 0.0
            one.assign_sub(rate * (move + decay * tf.convert_to_tensor(one)))


def _schedule(done: tf.Tensor) -> tf.Tensor:
    from fedrho.models.backend import tf

    return tf.minimum(done / WARM, 0.5 * (1 + tf.cos(math.pi * tf.maximum(done - WARM, 0.0) / (1 - WARM))))


def _order(count: int, settings: SimclrSettings) -> NDArray[np.int32]:
    """Of shape (steps, batch): every image once before any comes again, but for those that fill no batch."""
    generator = np.random.default_rng(settings.seed)
    batches = count // settings.batch
    rounds = [generator.permutation(count)[: batches * settings.batch] for _ in range(-(-settings.steps // batches))]
    return np.concatenate(rounds).reshape(-1, settings.batch)[: settings.steps].astype(np.int32)


def _body(shape: tuple[int, int, int], width: int) -> keras.Model:
    """Three convolutions of stride 2 with group normalization, and a dense layer that knows what lies where."""
    from fedrho.models.backend import keras

    layers = [keras.Input(shape)]
    for place, (filters, stride) in enumerate(((width, 2), (2 * width, 2), (4 * width, 2))):
        layers.append(keras.layers.Conv2D(filters, 3, stride, padding="same", use_bias=False, name=f"conv{place}"))
        layers.append(keras.layers.GroupNormalization(groups=math.gcd(filters, 8), name=f"norm{place}"))
        layers.append(keras.layers.ReLU(name=f"relu{place}"))
    return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(4 * width, name="encoding")])


def _head(width: int, projection: int) -> keras.Model:
    from fedrho.models.backend import keras

    hidden = keras.layers.Dense(width, activation="relu", name="hidden")
    return keras.Sequential(
        [keras.Input((width,)), keras.layers.ReLU(), hidden, keras.layers.Dense(projection, use_bias=False, name="projection")]
    )


def _moved(images: tf.Tensor, seed: tf.Tensor, by: Alterations) -> tf.Tensor:
    """A part of each image, turned and flipped, at the full size again: one affine map, by bilinear interpolation."""
    from fedrho.models.backend import tf

    count, height, width = images.shape[0] or tf.shape(images)[0], images.shape[1], images.shape[2]
    drawn = tf.random.stateless_uniform([7, count], seed)
    across, down = (by.crop + (1.0 - by.crop) * drawn[place] for place in (0, 1))
    angle = math.radians(by.turn) * (2.0 * drawn[2] - 1.0)
    sign = tf.where(drawn[3] < 0.5, -1.0, 1.0) if by.flip else tf.ones_like(angle)
    lean = by.slant * (2.0 * drawn[6] - 1.0)
    a, b = sign * across * tf.cos(angle), down * (lean - tf.sin(angle))
    c, d = sign * across * tf.sin(angle), down * tf.cos(angle)
    x, y = (width - 1) / 2.0, (height - 1) / 2.0
    shift_x = x + (1.0 - across) * x * (2.0 * drawn[4] - 1.0) - a * x - b * y
    shift_y = y + (1.0 - down) * y * (2.0 * drawn[5] - 1.0) - c * x - d * y
    none = tf.zeros_like(a)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([a, b, shift_x, c, d, shift_y, none, none], 1),
        output_shape=tf.constant([height, width], tf.int32),
        fill_value=tf.constant(0.0),
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )


def _recoloured(images: tf.Tensor, seed: tf.Tensor, by: Alterations) -> tf.Tensor:
    from fedrho.models.backend import tf

    count = tf.shape(images)[0]
    drawn = tf.random.stateless_uniform([count, 1, 1, 5], seed)
    gains = 1.0 + by.colour * (2.0 * drawn[..., :3] - 1.0)
    plain = tf.reduce_mean(images, axis=3, keepdims=True)
    faded = tf.where(drawn[..., 3:4] < by.grey, 1.0, by.colour * drawn[..., 4:5])
    return (plain * faded + images * (1.0 - faded)) * gains


def _binomial(channels: int) -> tf.Tensor:
    from fedrho.models.backend import tf

    line = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    return tf.constant(np.tile(np.outer(line, line)[:, :, None, None], (1, 1, channels, 1)), tf.float32)


def _holes(shape: tf.Tensor, seed: tf.Tensor, share: float) -> tf.Tensor:
    """0 in a square somewhere in each image and 1 elsewhere."""
    from fedrho.models.backend import tf

    middles = tf.random.stateless_uniform([2, shape[0]], seed)

    def inside(side: tf.Tensor, middle: tf.Tensor) -> tf.Tensor:
        places = (tf.cast(tf.range(side), tf.float32) + 0.5) / tf.cast(side, tf.float32)
        return tf.abs(places[None, :] - middle[:, None]) < share / 2

    hole = inside(shape[1], middles[0])[:, :, None] & inside(shape[2], middles[1])[:, None, :]
    return 1.0 - tf.cast(hole, tf.float32)[..., None]


def _check(images: Images, shape: tuple[int, ...]) -> None:
    if images.ndim != 4 or images.shape[1:] != shape or images.dtype != np.float32:
        raise ValueError(f"images are float32 of shape (n, height, width, channels), here (n, {shape}), not {images.shape}")
