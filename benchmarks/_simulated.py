"""The workloads of simulation.py: their models, data, tasks and engines, and the bare loops beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.client.examples import orders
from fedrho.models.flat import FlatModel
from fedrho.models.saved import add_saved
from fedrho.models.vectorised import vectorises
from fedrho.models.zoo import lookup
from fedrho.protos.messages import CHUNK_BYTES, Encoding, RoundPlan
from fedrho.server.tasks import Task, parse_task
from fedrho.simulations.data.base import DataSource, Examples, FederatedDataset
from fedrho.simulations.engines.base import Engine, Workload, unit_size
from fedrho.simulations.virtual import Plan, Simulation

Floats = NDArray[np.float32]

TASK = """
name = "benchmark"
algorithm = "dp-ftrl"
model = "{model}"
steps = 1000
population = {population}
round = {{ goal = {goal}, overselect = 1.0 }}
privacy = {{ clip_norm = 0.5, rho = 1000.0, delta = 1e-7 }}
participation = {{ max_times = 1000 }}
local = {{ batch_size = {batch}, learning_rate = 0.1 }}
"""


def cnn_in(folder: Path) -> Path:
    """Two convolutions, 32 and 64 of 3x3, max-pool, dense 128, dense 62: 1,206,590 weights; saved, as workers load it."""
    from fedrho.models.backend import keras

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(62),
        ]
    )
    path = folder / "cnn.keras"
    model.save(path)
    return path


def task_of(model: str, population: int, goal: int, batch: int) -> Task:
    return parse_task(TASK.format(model=model, population=population, goal=goal, batch=batch), "benchmark")


def workload(task: Task, data: DataSource, model_file: Path | None = None) -> Workload:
    """As a study would make it."""
    spec = lookup(task.file.model) if model_file is None else add_saved(model_file)
    size, grid, local = FlatModel(spec).size, task.mechanism.grid, task.file.local
    plan = RoundPlan(
        bytes(16), 1, 1, spec.name, bytes(32), size, grid.clip_norm, grid.bits, Encoding.INT32_LE, local.epochs,
        local.batch_size, local.learning_rate, CHUNK_BYTES, 0,
    )  # fmt: skip
    vectorised = vectorises(spec)
    return Workload(data, plan, grid, model_file, vectorised, unit_size(size, vectorised))


def simulation(task: Task, engine: Engine, size: int) -> Simulation:
    return Simulation(Plan(task, seed=0), engine, start_of(size))


def start_of(size: int) -> Floats:
    return np.random.default_rng(0).normal(0.0, 0.02, size).astype(np.float32)


def bare_loop(work: Workload, dataset: FederatedDataset, devices: Sequence[int]) -> Callable[[], None]:
    """One round of bare TensorFlow: a compiled step, called for every batch of every client, and the mean of the updates.

    No clip, no grid, no noise, nobody who comes or goes; examples and batches were made before.
    """
    from fedrho.models.backend import tf

    model = FlatModel(lookup(work.plan.model))
    weights, rate = start_of(model.size), work.plan.learning_rate
    clients = [_batches(dataset.examples(device), work.plan) for device in devices]
    tensors = [[(tf.constant(features), tf.constant(labels)) for features, labels in batches] for batches in clients]

    def one_round() -> None:
        total = np.zeros_like(weights)
        for batches in tensors:
            model.assign(weights)
            for features, labels in batches:
                model.sgd_step(features, labels, rate)
            total += model.weights() - weights
        total /= len(tensors)

    return one_round


def numpy_loop(work: Workload, dataset: FederatedDataset, devices: Sequence[int]) -> Callable[[], None]:
    """One round of logistic regression in plain numpy, client after client; examples, batches and classes were made before."""
    eye, rate, start = np.eye(10, dtype=np.float32), np.float32(work.plan.learning_rate), start_of(650)
    clients = [
        [(features, eye[labels]) for features, labels in _batches(dataset.examples(device), work.plan)] for device in devices
    ]

    def one_round() -> None:
        total = np.zeros(650, dtype=np.float32)
        for batches in clients:
            weights = start.copy()
            kernel, bias = weights[:640].reshape(64, 10), weights[640:]
            for features, wanted in batches:
                logits = features @ kernel + bias
                shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
                slopes = (shifted / shifted.sum(axis=1, keepdims=True) - wanted) * (rate / np.float32(len(wanted)))
                kernel -= features.T @ slopes
                bias -= slopes.sum(axis=0)
            total += weights - start
        total /= len(clients)

    return one_round


def bare_numpy(work: Workload, dataset: FederatedDataset, devices: Sequence[int]) -> Callable[[], None]:
    """One round of logistic regression for all clients at once in plain numpy; examples, batches and masks were made before."""
    clients = [_batches(dataset.examples(device), work.plan) for device in devices]
    steps, batch = max(map(len, clients)), max(len(labels) for batches in clients for _, labels in batches)
    features = np.zeros((steps, len(clients), batch, 64), dtype=np.float32)
    wanted = np.zeros((steps, len(clients), batch, 10), dtype=np.float32)
    shares = np.zeros((steps, len(clients), batch, 1), dtype=np.float32)
    for client, batches in enumerate(clients):
        for step, (found, labels) in enumerate(batches):
            features[step, client, : len(labels)] = found
            wanted[step, client, np.arange(len(labels)), labels] = 1.0
            shares[step, client, : len(labels)] = 1.0 / len(labels)
    start, rate = start_of(650), np.float32(work.plan.learning_rate)

    def one_round() -> None:
        kernels = np.repeat(start[None, :640].reshape(1, 64, 10), len(clients), axis=0)
        biases = np.repeat(start[None, None, 640:], len(clients), axis=0)
        for step in range(steps):
            logits = features[step] @ kernels + biases
            shifted = np.exp(logits - logits.max(axis=2, keepdims=True))
            slopes = (shifted / shifted.sum(axis=2, keepdims=True) - wanted[step]) * shares[step]
            kernels -= rate * (features[step].transpose(0, 2, 1) @ slopes)
            biases -= rate * slopes.sum(axis=1, keepdims=True)
        (kernels - start[:640].reshape(64, 10)).mean(axis=0)
        (biases - start[640:]).mean(axis=0)

    return one_round


def _batches(examples: Examples, plan: RoundPlan) -> list[tuple[Any, Any]]:
    chosen = orders(len(examples), replace(plan, step=1))
    return [(examples.features[places], examples.labels[places]) for places in chosen]
