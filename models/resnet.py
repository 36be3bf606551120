"""ResNet-18 for 32x32 photographs, its blocks with norm and rectifier before each convolution (He et al. 2016, 1603.05027).

A first convolution of 3x3 and stride 1 and no maximum after it, as is usual at this size (Ghazi et al. 2021, appendix E). Group
normalization (Wu & He 2018) of 32 groups where theirs is batch normalization, whose running statistics would be neither clipped
nor averaged.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fedrho.models.activations import activation as activated
from fedrho.models.base import ModelSpec, register
from fedrho.models.images import COLOUR

if TYPE_CHECKING:
    import keras

WIDTHS = (64, 128, 256, 512)
"""Of the four stages, two blocks each; all but the first halve height and width."""
GROUPS = 32


def build_resnet18(classes: int, activation: str = "relu") -> keras.Model:
    """11,172,170 parameters for 10 classes."""
    from fedrho.models.backend import keras

    image = keras.Input(COLOUR)
    seen = _convolved(image, WIDTHS[0], 3, 1, "stem")
    for stage, width in enumerate(WIDTHS):
        for block in (0, 1):
            seen = _block(seen, width, 2 if stage and not block else 1, f"stage{stage}_block{block}", activation)
    seen = keras.layers.GlobalAveragePooling2D(name="mean")(_activated(seen, "last", activation))
    return keras.Model(image, keras.layers.Dense(classes, name="logits")(seen))


def _block(seen: keras.KerasTensor, width: int, stride: int, name: str, activation: str) -> keras.KerasTensor:
    """Two convolutions beside the identity, or beside a 1x1 convolution where the shape changes."""
    from fedrho.models.backend import keras

    active = _activated(seen, f"{name}_first", activation)
    same = stride == 1 and seen.shape[-1] == width
    beside = seen if same else _convolved(active, width, 1, stride, f"{name}_beside")
    inner = _convolved(active, width, 3, stride, f"{name}_conv0")
    inner = _convolved(_activated(inner, f"{name}_second", activation), width, 3, 1, f"{name}_conv1")
    return keras.layers.Add(name=f"{name}_sum")([beside, inner])


def _activated(seen: keras.KerasTensor, name: str, activation: str) -> keras.KerasTensor:
    from fedrho.models.backend import keras

    normed = keras.layers.GroupNormalization(GROUPS, name=f"{name}_norm")(seen)
    return keras.layers.Activation(activated(activation), name=f"{name}_{activation}")(normed)


def _convolved(seen: keras.KerasTensor, width: int, side: int, stride: int, name: str) -> keras.KerasTensor:
    from fedrho.models.backend import keras

    layer = keras.layers.Conv2D(width, side, stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=name)
    return layer(seen)


CIFAR_RESNET18 = register(
    ModelSpec(
        "cifar-resnet18",
        "ResNet-18 with group normalization on 32x32 photographs",
        COLOUR,
        10,
        partial(build_resnet18, 10),
        paper="He et al. 2016, arXiv 1603.05027; Wu & He 2018, arXiv 1803.08494",
        parameters=11_172_170,
    )
)
