"""When training has to end: a loss that says so, the same for every way to train."""

from __future__ import annotations

import math

from fedrho.client.participant import TrainingFailed


def check_loss(batch: int, loss: float) -> None:
    """Raises TrainingFailed at a loss from which nothing can be learnt any more, before another batch is touched."""
    if not math.isfinite(loss):
        found = "not a number" if math.isnan(loss) else "infinite"
        raise TrainingFailed(f"the loss of batch {batch} is {found}: training diverged, or the model cannot bear an example")
