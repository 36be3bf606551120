"""Images of a batch changed at random, as TensorFlow operations: padded and cropped, mirrored, and with a square blanked."""

from __future__ import annotations

from fedrho.models.backend import tf
from fedrho.models.fit_settings import FitSettings


def stream(seed: tf.Tensor, number: int) -> tf.Tensor:
    """The seed of one of a step's draws; numbers lie below 8, by which the seeds of two steps differ."""
    return seed + tf.constant([number, 0])


def augmented(images: tf.Tensor, settings: FitSettings, seed: tf.Tensor) -> tf.Tensor:
    """Of shape (batch, height, width, channels), as they came; `seed` is int32 of shape (2,), another for every batch."""
    if settings.crop:
        images = _cropped(images, settings.crop, seed)
    if settings.flip:
        chosen = tf.random.stateless_uniform((tf.shape(images)[0],), stream(seed, 1)) < 0.5
        images = tf.where(chosen[:, None, None, None], images[:, :, ::-1], images)
    if settings.cutout:
        images = _cut_out(images, settings.cutout, seed)
    return images


def _cropped(images: tf.Tensor, pixels: int, seed: tf.Tensor) -> tf.Tensor:
    _, height, width, _ = images.shape
    padded = tf.pad(images, [[0, 0], [pixels, pixels], [pixels, pixels], [0, 0]])
    count = tf.shape(images)[0]
    starts = tf.random.stateless_uniform((2, count, 1), stream(seed, 2), 0, 2 * pixels + 1, tf.int32)
    taken = tf.gather(padded, starts[0] + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(taken, starts[1] + tf.range(width), axis=2, batch_dims=1)


def _cut_out(images: tf.Tensor, side: int, seed: tf.Tensor) -> tf.Tensor:
    """The square's middle lies anywhere in the image, so that a part of it may lie outside (DeVries & Taylor 2017)."""
    _, height, width, _ = images.shape
    middles = tf.random.stateless_uniform((2, tf.shape(images)[0], 1), stream(seed, 3))
    tops = tf.cast(middles[0] * height, tf.int32) - side // 2
    lefts = tf.cast(middles[1] * width, tf.int32) - side // 2
    rows, columns = tf.range(height), tf.range(width)
    blank = ((rows >= tops) & (rows < tops + side))[:, :, None] & ((columns >= lefts) & (columns < lefts + side))[:, None, :]
    return tf.where(blank[:, :, :, None], 0.0, images)
