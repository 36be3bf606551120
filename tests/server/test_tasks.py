"""A wrong task file gets one line that names file, key and what is allowed; a right one becomes objects that agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.tree import BinaryTree
from fedrho.server.tasks import TaskFileError, load_task

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits.toml"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("[local]", "[[local]]", "local: must be a section, [local], not"),
        ("steps = 30", "steps = 0", "steps: input should be greater than or equal to 1, not 0"),
        ("steps = 30", 'steps = "30"', "steps: input should be a valid integer, not '30'"),
        ("steps = 30", "steps = 30.5", "steps: input should be a valid integer, not 30.5"),
        ("steps = 30", "steps = true", "steps: input should be a valid integer, not True"),
        ("steps = 30", "stesp = 30", "stesp: unknown key; did you mean 'steps'? allowed: name, algorithm"),
        ("steps = 30", "", "steps: missing"),
        ("goal = 10 ", "gaol = 10 ", "round.gaol: unknown key; did you mean 'goal'?"),
        ("goal = 10 ", "goal = 41 ", "round.goal: 41 is above population = 40; allowed: 1 to 40"),
        ("min_reports = 5 ", "min_reports = 11 ", "round.min_reports: 11 is above round.goal = 10; allowed: 1 to 10"),
        ("retry_seconds = [0.2, 0.6]", "retry_seconds = [2, 1]", "round.retry_seconds: [2, 1] is not a window"),
        ("retry_seconds = [0.2, 0.6]", "retry_seconds = [1]", "round.retry_seconds: list should have at least 2 items"),
        ("deadline_seconds = 20", "deadline_seconds = inf", "round.deadline_seconds: input should be a finite number"),
        ("rho = 10.0", "rho = -1", "privacy.rho: input should be greater than 0, not -1"),
        ("clip_norm = 0.5", "clip_norm = 1e-50", "privacy.clip_norm: clip_norm must lie between 1e-40 and 1e+40, not 1e-50"),
        ("rho = 10.0", "rho = 1e-300", "privacy.rho: 1e-300 needs more noise than 64-bit sums hold; allowed: 6.367e-11 or more"),
        ("rho = 10.0", "rho = 1e-20", "privacy.rho: 1e-20 needs more noise"),
        ("rho = 10.0", "rho = 1e300", "privacy.rho: input should be less than or equal to 1000000000000000, not 1e+300"),
        ("rho = 10.0", "rho = 1.0\nnoise_multiplier = 1e300", "privacy.noise_multiplier: 1e+300 is too large; allowed: up to"),
        ('name = "digits"', 'name = "digits"\n"a\\nb" = 3', "a\\nb: unknown key"),
        ('name = "digits"', 'name = "digits"\n"a\\u001b[31mb" = 3', "a\\x1b[31mb: unknown key"),
        (
            'name = "digits"',
            f'name = "{"x" * 5000}"',
            f"name: string should match pattern '^[a-z0-9][a-z0-9-]{{0,62}}$', not '{'x' * 79}...",
        ),
        ("steps = 30", "steps = " + "9" * 5000, "not valid TOML: "),
        ("steps = 30", "steps = " + "[" * 50_000, "not valid TOML: "),
        ("steps = 30", "#" * 200_000, "20"),
        ("rho = 10.0", "rho = nan", "privacy.rho: input should be a finite number, not nan"),
        ("rho = 10.0", "rho = 10.0\nnoise_multiplier = 1.0", "privacy.noise_multiplier: 30 steps at 1 cost rho = 70, above"),
        ("delta = 1e-5", "delta = 0.025", "privacy.delta: 0.025 is not below 1/population"),
        ("delta = 1e-5", "delta = 1", "privacy.delta: input should be less than 1"),
        ("max_times = 10", "max_times = 7", "participation.max_times: 40 devices at 7 times each cannot give 30 steps"),
        ("min_separation = 2", "min_separation = 5", "participation.min_separation: 5 steps of 10 different devices"),
        ('model = "digits-logistic"', 'model = "resnet"', "model: unknown model 'resnet'; known models: adult-logistic,"),
        ('algorithm = "dp-ftrl"', 'algorithm = "fedavg"', "algorithm: unknown algorithm 'fedavg'; allowed: dp-fedavg, dp-ftrl"),
        ('name = "digits"', 'name = "My Task"', "name: string should match pattern"),
        ("clip_norm = 0.5", "clip_norm = 0", "privacy.clip_norm: input should be greater than 0"),
        ("momentum = 0.9", "momentum = 1.0", "server.momentum: input should be less than 1"),
        ("[round]", "[round", "not valid TOML"),
        ("[round]", "[server.x]", "server.x: unknown key; allowed: learning_rate, momentum"),
    ],
)
def test_a_wrong_key_is_named_with_what_is_allowed(before: str, after: str, expected: str, tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    assert before in text
    path = tmp_path / "wrong.toml"
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(TaskFileError) as refused:
        load_task(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: {expected}")
    assert "\n" not in message


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"", b"name = 'x'"])
def test_a_file_that_is_missing_binary_empty_or_unfinished_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "task.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TaskFileError, match=r"task\.toml: ") as refused:
        load_task(path)
    assert "\n" not in str(refused.value)


def test_a_folder_is_not_a_task_file(tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match="cannot be read"):
        load_task(tmp_path)


def test_the_two_algorithms_differ_in_the_mechanism_alone(tmp_path: Path) -> None:
    text, path = EXAMPLE.read_text(), tmp_path / "fedavg.toml"
    path.write_text(text.replace('"dp-ftrl"', '"dp-fedavg"', 1))
    ftrl, fedavg = load_task(EXAMPLE), load_task(path)
    assert isinstance(ftrl.mechanism, BinaryTree)
    assert isinstance(fedavg.mechanism, IndependentGaussian)
    assert ftrl.mechanism.grid == fedavg.mechanism.grid
    assert (ftrl.participation, ftrl.optimizer) == (fedavg.participation, fedavg.optimizer)


def test_noise_left_out_is_the_least_that_keeps_the_budget() -> None:
    task = load_task(EXAMPLE)
    spent = task.mechanism.cost(task.file.steps, task.participation)
    assert 0.999999 * task.budget < spent <= task.budget
