"""`privacy.clipping.clip` as TensorFlow operations on a row for each client: the same integers for the same updates."""

from __future__ import annotations

from fedrho.models.backend import tf
from fedrho.privacy.clipping import SHRINK, units
from fedrho.privacy.vectors import Grid


def clipped_rows(updates: tf.Tensor, grid: Grid) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Of float32 updates (clients, size): int32 rows on the grid, norms before the clip, and which rows were not finite.

    Guarantees: every row is what `clip` gives for the update, and so fulfils `Clipped`; a row that is not finite becomes zeros.
    Norms have a defined order of additions (`kernels.squared_length`), so not even a last bit differs. TensorFlow takes numbers
    below 2**-126 for zero, and numpy does not.
    """
    wide = tf.cast(updates, tf.float64)
    squared = folded(tf.square(wide))
    failed = tf.logical_not(tf.math.is_finite(squared))
    norms = tf.sqrt(tf.where(failed, tf.zeros_like(squared), squared))
    wide = tf.cond(tf.reduce_any(failed), lambda: tf.where(failed[:, None], tf.zeros_like(wide), wide), lambda: wide)
    one = tf.constant(1.0, tf.float64)
    factors = tf.where(norms > 0, tf.minimum(one, grid.clip_norm / norms) * units(grid), tf.zeros_like(norms))

    def shrunk(factors: tf.Tensor, rows: tf.Tensor, over: tf.Tensor) -> tuple[tf.Tensor, ...]:
        factors = tf.where(over, factors * SHRINK, factors)
        return factors, *_on_grid(wide, factors, grid)

    begin = (factors, *_on_grid(wide, factors, grid))
    _, rows, _ = tf.while_loop(lambda _factors, _rows, over: tf.reduce_any(over), shrunk, begin, parallel_iterations=1)
    return rows, norms, failed


def _on_grid(wide: tf.Tensor, factors: tf.Tensor, grid: Grid) -> tuple[tf.Tensor, tf.Tensor]:
    """Scaled and truncated rows, and which of them do not fit: the squares are integers below 2**53, so sums are exact."""
    rows = tf.cast(wide * factors[:, None], tf.int32)
    squared = tf.reduce_sum(tf.square(tf.cast(rows, tf.float64)), axis=1)
    return rows, squared > float(grid.radius) ** 2


def folded(squares: tf.Tensor) -> tf.Tensor:
    """The sum of each row, in the order of `kernels.squared_length`."""
    count = int(squares.shape[1])
    while count > 1:
        half = (count + 1) // 2
        sums = squares[:, : count - half] + squares[:, half:count]
        squares = tf.concat([sums, squares[:, count - half : half]], axis=1) if count % 2 else sums
        count = half
    return squares[:, 0]
