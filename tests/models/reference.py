"""The zoo's models and their gradients in plain float64 numpy, apart from Keras."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

SIZES = {"digits-logistic": (64, 10), "digits-mlp": (64, 32, 10)}


def layers(name: str, weights: NDArray[np.floating]) -> list[tuple[Floats, Floats]]:
    """Kernel and bias of every layer, cut out of the flat vector one after another."""
    sizes, rest, found = SIZES[name], weights.astype(np.float64), []
    for fan_in, fan_out in pairwise(sizes):
        kernel, bias, rest = np.split(rest, [fan_in * fan_out, (fan_in + 1) * fan_out])
        found.append((kernel.reshape(fan_in, fan_out), bias))
    assert rest.size == 0
    return found


def activations(name: str, weights: NDArray[np.floating], features: NDArray[np.number]) -> list[Floats]:
    """The input of every layer, and the logits last."""
    found, parts = [features.astype(np.float64)], layers(name, weights)
    for place, (kernel, bias) in enumerate(parts):
        if place:
            found[-1] = np.maximum(found[-1], 0.0)
        found.append(found[-1] @ kernel + bias)
    return found


def loss(name: str, weights: NDArray[np.floating], features: NDArray[np.number], labels: Ints) -> float:
    """The mean cross-entropy of the softmax of the logits."""
    logits = activations(name, weights, features)[-1]
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]))


def gradient(name: str, weights: NDArray[np.floating], features: NDArray[np.number], labels: Ints) -> Floats:
    """Of the mean cross-entropy, flat, by backpropagation."""
    *inputs, logits = activations(name, weights, features)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    delta = shifted / shifted.sum(axis=1, keepdims=True)
    delta[np.arange(len(labels)), labels] -= 1.0
    delta /= len(labels)
    parts: list[Floats] = []
    for (kernel, _), value in zip(reversed(layers(name, weights)), reversed(inputs), strict=True):
        parts = [(value.T @ delta).reshape(-1), delta.sum(axis=0), *parts]
        delta = (delta @ kernel.T) * (value > 0)
    return np.concatenate(parts)


def accuracy(name: str, weights: NDArray[np.floating], features: NDArray[np.number], labels: Ints) -> float:
    predicted = activations(name, weights, features)[-1].argmax(axis=1)
    return sum(int(a == b) for a, b in zip(predicted, labels, strict=True)) / len(labels)


def made_up(examples: int, seed: int) -> tuple[NDArray[np.float32], Ints]:
    """Features in [0, 1] and labels below 10, as the digits have them."""
    generator = np.random.default_rng(seed)
    return generator.random((examples, 64), dtype=np.float32), generator.integers(0, 10, examples, dtype=np.int32)
