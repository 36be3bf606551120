"""Networks of `keras.applications` by name, as models: `applications:MobileNetV2:32x32x3:10:stateless`.

    applications : NETWORK : HEIGHTxWIDTHxCHANNELS : CLASSES [: stateless]

The network without its top and without weights, the mean over all places, and one linear layer to the classes. One name is one
network, on server and devices alike. Features are values in [0, 1], as in the other models of images: a network's own scaling of
its input is left out.

Most of these networks have batch normalization, whose running statistics are made of the examples and would be neither clipped
nor averaged. They are models under a name of their own, with `stateless` at its end, in which every layer with a state is
replaced (`stateless` below says by what); without it they are refused.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

from fedrho.models.base import ModelSpec, UnknownModel

if TYPE_CHECKING:
    import keras

Config = dict[str, Any]

PREFIX: Final = "applications:"
SUFFIX: Final = "stateless"
FORM: Final = f"{PREFIX}NETWORK:HEIGHTxWIDTHxCHANNELS:CLASSES, and `:{SUFFIX}` where a network has batch statistics"
NUMBER: Final = "([1-9][0-9]{0,4})"
NAME: Final = re.compile(rf"{PREFIX}([A-Za-z0-9]+):{NUMBER}x{NUMBER}x{NUMBER}:{NUMBER}(:{SUFFIX})?")

SMALLEST_SIDE: Final[Mapping[str, int]] = {"InceptionResNetV2": 75, "InceptionV3": 75, "Xception": 71}
"""Pixels; 32 for all others."""
LARGEST_SIDE: Final = 1024
MOST_CHANNELS: Final = 64
"""Beyond, one example has hundreds of megabytes of activations: a slip of the pen."""
PAPERS: Final[Mapping[str, str]] = {
    "ConvNeXt": "Liu et al. 2022, arXiv 2201.03545",
    "DenseNet": "Huang et al. 2017, arXiv 1608.06993",
    "EfficientNetB": "Tan & Le 2019, arXiv 1905.11946",
    "EfficientNetV2": "Tan & Le 2021, arXiv 2104.00298",
    "InceptionResNetV2": "Szegedy et al. 2017, arXiv 1602.07261",
    "InceptionV3": "Szegedy et al. 2016, arXiv 1512.00567",
    "MobileNet": "Howard et al. 2017, arXiv 1704.04861",
    "MobileNetV2": "Sandler et al. 2018, arXiv 1801.04381",
    "MobileNetV3": "Howard et al. 2019, arXiv 1905.02244",
    "NASNet": "Zoph et al. 2018, arXiv 1707.07012",
    "ResNet": "He et al. 2016, arXiv 1512.03385",
    "VGG": "Simonyan & Zisserman 2015, arXiv 1409.1556",
    "Xception": "Chollet 2017, arXiv 1610.02357",
}
"""By the longest beginning of a network's name."""
V2_PAPER: Final = "He et al. 2016, arXiv 1603.05027"
GROUPS_PAPER: Final = "group normalization: Wu & He 2018, arXiv 1803.08494"

NETWORKS: Final = (
    *(f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge")),
    *(f"DenseNet{depth}" for depth in (121, 169, 201)),
    *(f"EfficientNetB{size}" for size in range(8)),
    *(f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L")),
    *("InceptionResNetV2", "InceptionV3", "MobileNet", "MobileNetV2", "MobileNetV3Large", "MobileNetV3Small"),
    *("NASNetLarge", "NASNetMobile"),
    *(f"ResNet{depth}{version}" for version in ("", "V2") for depth in (50, 101, 152)),
    *("VGG16", "VGG19", "Xception"),
)
WITHOUT_STATE: Final = ("ConvNeXt", "VGG")
"""How the names of those begin that have no layer with a state, without a top."""

BATCH_NORM: Final = "BatchNormalization"
REMOVED: Final = frozenset({"Dropout", "SpatialDropout2D", "StochasticDepth", "Rescaling", "Normalization"})
MOST_GROUPS, LEAST_CHANNELS = 32, 16
"""Of group normalization: the two settings that Wu & He found about as good (section 4.1), met at once where both can be."""


@lru_cache(maxsize=32)
def application(name: str) -> ModelSpec | None:
    """The model of this name; None for a name of another kind.

    Raises UnknownModel for a network, a shape or a number of classes that there is not.
    """
    return _described(name) if name.startswith(PREFIX) else None


def has_state(network: str) -> bool:
    """Whether Keras's own has layers with batch statistics, or with states of another kind."""
    return not network.startswith(WITHOUT_STATE)


def _described(name: str) -> ModelSpec:
    match = NAME.fullmatch(name)
    if not match:
        raise UnknownModel(f"unknown model {name!r}; allowed: {FORM}, for example {_example()}")
    network, *numbers, suffix = match.groups()
    height, width, channels, classes = map(int, numbers)
    _check(name, network, (height, width), channels, classes, bool(suffix))
    shape = (height, width, channels)
    build = partial(build_application, network, shape, classes, bool(suffix))
    changed = ", every layer with a state replaced" if suffix else ""
    return ModelSpec(name, f"{network} of Keras{changed}", shape, classes, build, paper=_paper(network, bool(suffix)))


def _check(name: str, network: str, sides: tuple[int, int], channels: int, classes: int, suffix: bool) -> None:
    if network not in NETWORKS:
        close = difflib.get_close_matches(network, NETWORKS, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UnknownModel(f"unknown model {name!r}: no such network; known: {', '.join(NETWORKS)}{hint}")
    smallest = SMALLEST_SIDE.get(network, 32)
    if min(sides) < smallest:
        raise UnknownModel(f"model {name!r}: {network} takes images of at least {smallest} x {smallest}")
    if max(sides) > LARGEST_SIDE or channels > MOST_CHANNELS:
        raise UnknownModel(f"model {name!r}: allowed: images of at most {LARGEST_SIDE} x {LARGEST_SIDE} x {MOST_CHANNELS}")
    if classes < 2:
        raise UnknownModel(f"model {name!r}: one class; allowed: 2 or more")
    if has_state(network) and not suffix:
        why = "statistics of the examples, which would be neither clipped nor averaged"
        raise UnknownModel(f"model {name!r}: {network} has batch normalization, that is {why}; take {name}:{SUFFIX} instead")
    if suffix and not has_state(network):
        raise UnknownModel(f"model {name!r}: {network} has no layer with a state; leave `:{SUFFIX}` out")


def _example() -> str:
    return f"{PREFIX}MobileNetV3Small:32x32x3:10:{SUFFIX}"


def _paper(network: str, suffix: bool) -> str:
    found = PAPERS[max((begin for begin in PAPERS if network.startswith(begin)), key=len)]
    found = V2_PAPER if network.startswith("ResNet") and network.endswith("V2") else found
    return f"{found}; {GROUPS_PAPER}" if suffix else found


def build_application(network: str, shape: tuple[int, int, int], classes: int, without_state: bool) -> keras.Model:
    from fedrho.models.backend import keras

    made = getattr(keras.applications, network)
    own_scaling = {"include_preprocessing": False} if "include_preprocessing" in inspect.signature(made).parameters else {}
    backbone = made(weights=None, include_top=False, input_shape=shape, pooling="avg", **own_scaling)
    if without_state:
        backbone = stateless(backbone)
    logits = keras.layers.Dense(classes, name="logits")(backbone.output)
    return keras.Model(backbone.input, logits, name=network)


def stateless(model: keras.Model) -> keras.Model:
    """A copy of a Sequential or Functional model without state beside the trainable weights, which begin as they are in `model`.

    BatchNormalization becomes GroupNormalization with the same scale and offset: of 32 groups, or of fewer, so that each has
    16 channels or more. That is another function, though: a pretrained network has to be trained on. Dropout,
    StochasticDepth, Rescaling and Normalization pass on what comes. Layers get names that are the same in every process.
    """
    from fedrho.models.flat import innermost

    layers = innermost(model)
    channels = {layer.name: int(layer.weights[0].shape[0]) for layer in layers if _kind(layer) == BATCH_NORM}
    copy = type(model).from_config(_without_state(model.get_config(), channels))
    for old, new in zip(layers, innermost(copy), strict=True):
        if new.trainable_variables:
            new.set_weights([variable.numpy() for variable in old.trainable_variables])
    return copy


def _kind(layer: keras.Layer) -> str:
    return type(layer).__name__


def _without_state(config: Config, channels: Mapping[str, int]) -> Config:
    """The same of a model's configuration, which lists its layers and, for each, those that it takes its inputs from."""
    renamed: dict[str, str] = {}
    numbers: dict[str, int] = {}
    layers = [_replaced(layer, channels) for layer in config["layers"]]
    for old, new in zip(config["layers"], layers, strict=True):
        renamed[old["config"]["name"]] = _name(new, old["class_name"], numbers)
    edited: Config = _with_names({key: value for key, value in config.items() if key != "layers"}, renamed)
    return {**edited, "layers": [_renamed(layer, renamed) for layer in layers]}


def _renamed(layer: Config, renamed: Mapping[str, str]) -> Config:
    name = renamed[layer["config"]["name"]]
    around: Config = _with_names({key: value for key, value in layer.items() if key != "config"}, renamed)
    return {**around, "config": {**layer["config"], "name": name}, **({"name": name} if "name" in layer else {})}


def _replaced(layer: Config, channels: Mapping[str, int]) -> Config:
    kind, config = layer["class_name"], layer["config"]
    if "layers" in config:
        return {**layer, "config": _without_state(config, channels)}
    if kind in REMOVED:
        return _another(layer, "Activation", {"activation": "linear"})
    if kind != BATCH_NORM:
        return layer
    kept = {key: config[key] for key in ("center", "scale", "epsilon", "beta_initializer", "gamma_initializer")}
    return _another(layer, "GroupNormalization", {"groups": groups(channels[config["name"]]), "axis": -1, **kept})


def _another(layer: Config, kind: str, config: Config) -> Config:
    """A layer of another kind in its place; what it is called with are tensors alone."""
    nodes = [{**node, "kwargs": {}} if isinstance(node, dict) else node for node in layer.get("inbound_nodes", [])]
    place = {key: value for key, value in layer.items() if key in ("name", "module", "registered_name")}
    return {**place, "class_name": kind, "config": {"name": layer["config"]["name"], **config}, "inbound_nodes": nodes}


def _with_names(value: Any, renamed: Mapping[str, str]) -> Any:
    """References to a layer's output, lists that begin with its name and two numbers, with its new name."""
    if isinstance(value, dict):
        return {key: _with_names(part, renamed) for key, part in value.items()}
    if not isinstance(value, list | tuple):
        return value
    if len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int) and isinstance(value[2], int):
        return [renamed.get(value[0], value[0]), *value[1:]]
    return [_with_names(part, renamed) for part in value]


def _name(layer: Config, kind: str, numbers: dict[str, int]) -> str:
    """Its own; counted anew where Keras has counted, for all models of the process, in place of a name."""
    own = str(layer["config"]["name"])
    plain = re.sub(r"_\d+$", "", own).replace("_", "")
    if plain != kind.lower():
        return own
    numbers[kind] = numbers.get(kind, 0) + 1
    return f"{kind.lower()}_{numbers[kind]}"


def groups(channels: int) -> int:
    """The most equal groups, up to 32, that have 16 channels or more each; else one."""
    fitting = (count for count in range(1, MOST_GROUPS + 1) if channels % count == 0 and channels // count >= LEAST_CHANNELS)
    return max(fitting, default=1)
