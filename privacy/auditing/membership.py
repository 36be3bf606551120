"""Membership inference on the predictions of a trained model, beside what a claim allows.

The attacks guess from a model's predictions whether an example was trained on. A claim of rho for one *device* limits them for
each of its examples: AUC <= Phi(sqrt(rho)), advantage <= 2 Phi(sqrt(2 rho) / 2) - 1. An attack far below these limits proves
nothing, one above them that the claim is wrong, or that train and test examples differ in more than membership.

Two attacks, as TensorFlow Privacy defines them: the threshold attack calls trained what has a low loss (Yeom et al. 2018, arXiv
1709.01604); the logistic regression learns, on one half of the examples after the other, to tell scores and loss of the trained
from those of others. `membership_tfp` runs TensorFlow Privacy's own code instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from fedrho.privacy.auditing.intervals import Interval, Scores, auc_ends, auc_of
from fedrho.privacy.auditing.limits import largest_advantage, largest_auc
from fedrho.privacy.progress import Progress, unwatched, watched
from fedrho.privacy.zcdp import Rho

Arrays = Mapping[str, NDArray[Any]]
FEWEST_EXAMPLES = 20
"""Of either kind, in the whole or in one class: the attack that learns cuts them into folds."""
SMALLEST_PROBABILITY = 1e-30
SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Predictions:
    """Of one model on the examples it was trained on, or on others: scores (n, classes), labels (n,), cross-entropies (n,).

    `kind` of the scores: "logits" or "probabilities".
    """

    kind: str
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    losses: NDArray[np.float64]

    def of_class(self, label: int) -> Predictions:
        chosen = self.labels == label
        return Predictions(self.kind, self.scores[chosen], self.labels[chosen], self.losses[chosen])


@dataclass(frozen=True)
class Outcome:
    """One attack on all examples or on one class. `advantage` is the best over all thresholds, and so above 0 by chance too."""

    attack: str
    examples: str
    trained: int
    others: int
    auc: float
    advantage: float


Attacks = Callable[[Predictions, Predictions, bool, int], list[Outcome]]
"""Trained, others, by class, seed."""


@dataclass(frozen=True)
class AttackResult:
    """An outcome with the interval of its AUC."""

    outcome: Outcome
    auc: Interval
    exceeds_claim: bool


@dataclass(frozen=True)
class MembershipReport:
    """Attacks beside the largest AUC and advantage that `rho` allows; None where no rho was given."""

    rho: float | None
    largest_auc: float | None
    largest_advantage: float | None
    results: tuple[AttackResult, ...]

    @property
    def contradicts_claim(self) -> bool:
        return any(result.exceeds_claim for result in self.results)

    def as_json(self) -> dict[str, object]:
        """Plain numbers, strings, lists and dicts."""
        plain = asdict(self)
        plain["results"] = [
            asdict(one.outcome) | {"auc_low": one.auc.low, "auc_high": one.auc.high, "exceeds_claim": one.exceeds_claim}
            for one in self.results
        ]
        return plain | {"contradicts_claim": self.contradicts_claim}


def own_attacks(
    trained: Predictions, others: Predictions, by_class: bool, seed: int, progress: Progress = unwatched
) -> list[Outcome]:
    """The threshold and the logistic-regression attack; `seed` is of the halves that the second learns on."""
    outcomes = []
    slices = list(_slices(trained, others, by_class))
    for examples, one, other in watched(slices, "attack", progress, "learning who was trained on"):
        outcomes.append(_outcome("threshold", examples, -one.losses, -other.losses))
        outcomes.append(_outcome("logistic regression", examples, *_learned(one, other, seed)))
    return outcomes


def membership_report(
    arrays: Arrays,
    rho: Rho | None = None,
    *,
    by_class: bool = False,
    attacks: Attacks = own_attacks,
    seed: int = 0,
    confidence: float = 0.95,
    false_alarm: float = 1e-4,
) -> MembershipReport:
    """Runs the attacks on saved predictions.

    `arrays`: train_logits or train_probabilities (n, classes), train_labels (n,), and the same for test. With `by_class` also on
    each class with enough examples. An attack counts as above the claim when all of them together would do so by chance with
    probability `false_alarm` at most. Raises ValueError, naming the array.
    """
    for name, share in (("confidence", confidence), ("false_alarm", false_alarm)):
        if not 0 < share < 1:
            raise ValueError(f"{name} must lie strictly between 0 and 1, not {share}")
    outcomes = attacks(*read_predictions(arrays), by_class, seed)
    limit = None if rho is None else largest_auc(rho)
    results = [_result(one, limit, (1.0 - confidence) / 2.0, false_alarm / len(outcomes)) for one in outcomes]
    return MembershipReport(rho, limit, None if rho is None else largest_advantage(rho), tuple(results))


def read_predictions(arrays: Arrays) -> tuple[Predictions, Predictions]:
    """On the trained examples, and on others."""
    kinds = [kind for kind in ("logits", "probabilities") if f"train_{kind}" in arrays]
    if len(kinds) != 1:
        raise ValueError("either train_logits or train_probabilities is needed, and not both")
    kind = kinds[0]
    for name in (f"test_{kind}", "train_labels", "test_labels"):
        if name not in arrays:
            raise ValueError(f"the array {name} is missing")
    trained, others = _predictions(arrays, "train", kind), _predictions(arrays, "test", kind)
    if trained.scores.shape[1] != others.scores.shape[1]:
        counts = f"{trained.scores.shape[1]} and {others.scores.shape[1]}"
        raise ValueError(f"train_{kind} and test_{kind} must have the same number of classes, not {counts}")
    return trained, others


def _predictions(arrays: Arrays, part: str, kind: str) -> Predictions:
    scores = _scores(f"{part}_{kind}", np.asarray(arrays[f"{part}_{kind}"]), kind)
    labels = _labels(f"{part}_labels", np.asarray(arrays[f"{part}_labels"]), scores.shape)
    return Predictions(kind, scores, labels, _losses(kind, scores, labels))


def _scores(name: str, scores: NDArray[Any], kind: str) -> NDArray[np.float64]:
    if scores.dtype.kind not in "fiu" or scores.ndim != 2:
        raise ValueError(f"{name} must be numbers of shape (n, classes), not {scores.dtype} {scores.shape}")
    if len(scores) < FEWEST_EXAMPLES or scores.shape[1] < 2:
        raise ValueError(f"{name} must have at least {FEWEST_EXAMPLES} rows and 2 classes, not {scores.shape}")
    wide = scores.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ValueError(f"{name} has NaN or infinite entries")
    sums_to_one = np.all(np.abs(wide.sum(axis=1) - 1.0) <= SUM_TOLERANCE)
    if kind == "probabilities" and not (sums_to_one and wide.min() >= 0):
        raise ValueError(f"the rows of {name} must be probabilities that sum to 1")
    return wide


def _labels(name: str, labels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or labels.shape != shape[:1]:
        raise ValueError(f"{name} must be integers of shape ({shape[0]},), not {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= shape[1]:
        raise ValueError(f"{name} must lie between 0 and {shape[1] - 1}, not {labels.min()} to {labels.max()}")
    return labels.astype(np.int64)


def _losses(kind: str, scores: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cross-entropy of each example, computed here so that very confident predictions are not cut off as equal."""
    own = scores[np.arange(len(labels)), labels]
    if kind == "logits":
        return np.asarray(scipy.special.logsumexp(scores, axis=1) - own)
    return -np.log(np.maximum(own, SMALLEST_PROBABILITY))


def _slices(trained: Predictions, others: Predictions, by_class: bool) -> Iterator[tuple[str, Predictions, Predictions]]:
    """All examples, then each class that has enough of either kind."""
    yield "all", trained, others
    for label in range(trained.scores.shape[1]) if by_class else ():
        one, other = trained.of_class(label), others.of_class(label)
        if min(len(one.labels), len(other.labels)) >= FEWEST_EXAMPLES:
            yield f"class {label}", one, other


def _outcome(attack: str, examples: str, trained: Scores, others: Scores) -> Outcome:
    """From scores that are high where an example seems trained on."""
    values = np.sort(np.concatenate([trained, others]))
    below = [np.searchsorted(np.sort(scores), values, side="right") / scores.size for scores in (trained, others)]
    advantage = float(np.max(np.abs(below[0] - below[1])))
    return Outcome(attack, examples, trained.size, others.size, auc_of(trained, others), advantage)


def _learned(trained: Predictions, others: Predictions, seed: int) -> tuple[Scores, Scores]:
    """Each half is scored by the regression that learned on the other half."""
    from sklearn.linear_model import LogisticRegression  # slow to import, and needed nowhere else here
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = np.vstack([np.column_stack([part.scores, part.losses]) for part in (trained, others)])
    member = np.repeat([1, 0], [len(trained.labels), len(others.labels)])
    attacker = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    halves = StratifiedKFold(2, shuffle=True, random_state=seed)
    scores = cross_val_predict(attacker, features, member, cv=halves, method="decision_function")
    return scores[member == 1], scores[member == 0]


def _result(outcome: Outcome, limit: float | None, miss: float, strict: float) -> AttackResult:
    def ends(one_side: float) -> Interval:
        return auc_ends(outcome.auc, outcome.trained, outcome.others, one_side)

    return AttackResult(outcome, ends(miss), limit is not None and ends(strict).low > limit)
