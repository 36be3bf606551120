"""Which records are alike, by their public features alone: k-means on the features, on their principal coordinates, or on what
SimCLR makes of images without labels. Groups get a private histogram each, which is the prior of their records."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.console import BadInput
from fedrho.labels.settings import StageSection
from fedrho.privacy.labels.clusters import kmeans, principal

BATCH = 128
Told = Callable[[int, int, float], None]
"""Steps done, of all, and the loss that may be shown, or NaN."""


def groups(features: NDArray[Any], section: StageSection, seed: int, told: Told | None = None) -> NDArray[np.int64]:
    """Of all records, of shape (n,); the seed is public, as groups are. Raises BadInput."""
    rows = encoded(features, section, seed, told) if section.simclr else features.reshape(len(features), -1)
    try:
        return kmeans(principal(rows, section.coordinates) if section.coordinates else rows, section.clusters, seed)
    except ValueError as error:
        raise BadInput(f"clusters: {error}") from error


def encoded(features: NDArray[Any], section: StageSection, seed: int, told: Told | None) -> NDArray[np.float32]:
    """Of an encoder trained for `simclr` steps on these images; raises BadInput for records that are no images."""
    from fedrho.models.simclr import CLOTHES, COLOURED, GREY, SimclrSettings, train_encoder

    if features.ndim != 4 or features.dtype != np.float32:
        raise BadInput(
            f"simclr: learns from images of shape (height, width, channels), not from features of {features.shape[1:]}"
        )
    if len(features) < 2:
        raise BadInput("simclr: learns from two images at least")
    kinds = {"digits": GREY, "clothes": CLOTHES, "photographs": COLOURED, "any": COLOURED if features.shape[3] == 3 else GREY}
    altered = kinds[section.simclr_images]
    settings = SimclrSettings(steps=section.simclr, batch=min(BATCH, len(features)), seed=seed, alterations=altered)
    progress = None if told is None else lambda steps, loss: told(steps, settings.steps, math.nan)  # a loss of its own kind
    return train_encoder(features, settings, progress).encode(features)
