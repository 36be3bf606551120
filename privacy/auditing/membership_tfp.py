"""The membership attacks by TensorFlow Privacy's own code, for `membership_report(..., attacks=tensorflow_privacy_attacks)`.

It comes with the tff extra: tensorflow-privacy 0.8.12 is the last wheel that carries the attacks (0.9.0, for which TensorFlow
Federated asks, left them out), and it needs a scikit-learn below 1.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fedrho.privacy.auditing.membership import FEWEST_EXAMPLES, Outcome, Predictions

NAMES = {"THRESHOLD_ATTACK": "threshold", "LOGISTIC_REGRESSION": "logistic regression"}
MISSING = (
    "the membership attacks of TensorFlow Privacy are not installed; the tff extra brings them, on Python 3.11: "
    "`UV_PROJECT_ENVIRONMENT=.venv-tff uv run --python 3.11 --extra tff fedrho account membership ...`"
)


class AttacksMissing(RuntimeError):
    """TensorFlow Privacy is absent, or a release of it without the attacks."""


def tensorflow_privacy_attacks(trained: Predictions, others: Predictions, by_class: bool, seed: int) -> list[Outcome]:
    """Raises AttacksMissing; the losses are ours, so that they are not cut off at 1e-8."""
    try:
        from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import data_structures as structures
        from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import membership_inference_attack as attacks
    except ImportError as error:
        raise AttacksMissing(f"{MISSING}: {error}") from error
    field = {"logits": "logits", "probabilities": "probs"}[trained.kind]
    data = structures.AttackInputData(
        labels_train=trained.labels,
        labels_test=others.labels,
        loss_train=trained.losses,
        loss_test=others.losses,
        **{f"{field}_train": trained.scores, f"{field}_test": others.scores},
    )
    with _numpy_seeded(seed), np.errstate(divide="ignore", invalid="ignore"):  # its own bounds divide by zero
        done = attacks.run_attacks(
            data,
            structures.SlicingSpec(entire_dataset=True, by_class=by_class),
            [structures.AttackType[name] for name in NAMES],
            min_num_samples=FEWEST_EXAMPLES,
        )
    return [
        Outcome(
            attack=NAMES[str(one.attack_type)],
            examples="all" if one.slice_spec.entire_dataset else f"class {one.slice_spec.value}",
            trained=int(one.data_size.ntrain),
            others=int(one.data_size.ntest),
            auc=float(one.get_auc()),
            advantage=float(one.get_attacker_advantage()),
        )
        for one in done.single_attack_results
    ]


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """TensorFlow Privacy shuffles with numpy's global generator; it is put back as it was."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
