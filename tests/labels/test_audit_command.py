"""`fedrho labels audit`, as a script and as a person would use it: mutants get their true epsilon and exit code 1."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fedrho.labels import audit as command
from fedrho.privacy.labels.audit import Settings
from fedrho.privacy.labels.audited import MECHANISMS, audited
from fedrho.privacy.labels.chance import SystemChance
from fedrho.privacy.labels.ledger import LabelLedger
from tests.commanding import Run, runner
from tests.privacy.labels.drawn import Seeded

FEW = "--draws 1000 --canaries 1000"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `fedrho labels audit` with these arguments in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    run = runner(monkeypatch, capfd, "labels", "audit")
    return lambda line: run(*line.split())


def mutant(path: Path) -> None:
    """Keeps with e / (1 + e) as if there were two labels: epsilon 1 + ln 9."""
    keep = math.e / (1 + math.e)
    matrix = np.full((10, 10), (1 - keep) / 9) + np.eye(10) * (keep - (1 - keep) / 9)
    path.write_text("# rows: true labels\n" + "\n".join(",".join(map(repr, row)) for row in matrix.tolist()))


def test_a_mutant_s_matrix_is_reported_with_its_true_epsilon_and_fails_its_claim(run: Run, tmp_path: Path) -> None:
    mutant(tmp_path / "mutant.csv")
    code, out, err = run("--matrix mutant.csv --epsilon 1")
    assert (code, "3.197224577" in out, err.count("\n")) == (1, True, 1)
    assert "the claim does not hold" in err
    code, out, _ = run("--matrix mutant.csv --json")
    (audit,) = json.loads(out)["audits"]
    assert (code, audit["claimed_epsilon"], audit["findings"][0]["found"]) == (0, None, pytest.approx(3.197224577))


def test_an_impossible_output_is_an_infinite_epsilon_in_json_too(run: Run, tmp_path: Path) -> None:
    (tmp_path / "told.json").write_text(json.dumps({"matrix": [[1, 0], [0.5, 0.5]], "epsilon": 2}))
    code, out, _ = run("--matrix told.json --prior 0.3,0.7 --json")
    exact, told = json.loads(out)["audits"][0]["findings"]
    assert (code, exact["found"], exact["claimed"], exact["holds"]) == (1, "inf", 2, False)
    assert (told["found"], told["claimed"]) == (pytest.approx(0.65), None)


def test_a_mechanism_of_ours_holds_check_by_check(run: Run) -> None:
    code, out, err = run(f"--prior 0.5,0.25,0.15,0.1 --epsilon 1 {FEW}")
    assert (code, err) == (0, "")
    assert [line.split("  ")[0].strip() for line in out.splitlines()[2:]] == [
        "exact matrix",
        "true label told",
        "sampler, one batch",
        "sampler, one by one",
        "likelihood ratio",
        "one run",
    ]


@pytest.mark.slow
def test_claims_and_findings_are_drawn(run: Run, tmp_path: Path) -> None:
    code, _, err = run(f"--mechanism rr --epsilon 2 {FEW} --plot audit.png")
    assert (code, err) == (0, "")
    assert (tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", MECHANISMS)
def test_every_mechanism_passes_its_audit(kind: str) -> None:
    settings = Settings(200, 400) if kind == "histogram" else Settings(1000, 2000)
    found = audited(kind, 1.5, [0.4, 0.3, 0.2, 0.1], Seeded(1), settings, k=2)
    assert found.failed == ()
    assert found.findings[0].found == pytest.approx(1.5, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MECHANISMS)
def test_attacks_of_full_size_come_close_to_every_claim_and_never_beyond_it(kind: str) -> None:
    found = audited(kind, 2.0, [0.4, 0.3, 0.2, 0.1], SystemChance(), k=2)
    assert found.failed == ()
    assert 1.4 < found.findings[-1].found <= 2.0


def test_the_names_are_those_of_the_package() -> None:
    assert [one.value for one in command.Mechanism] == list(MECHANISMS)


def test_every_mechanism_of_a_ledger_s_statement_is_audited_and_their_sum_compared(run: Run, tmp_path: Path) -> None:
    ledger = LabelLedger(100)
    ledger.charge(np.arange(100), 0.25, "histogram")
    ledger.charge(np.arange(100), 1.0, "randomized response with prior")
    ledger.charge(np.arange(3), 0.25, "answers that were lost")
    stated = ledger.statement().to_json()
    (tmp_path / "statement.json").write_text(json.dumps({"statement": stated, "runs": [{"statement": stated}]}))
    code, out, _ = run(f"--statement statement.json --classes 4 {FEW} --json")
    audits = json.loads(out)["audits"]
    assert (code, [one["claimed_epsilon"] for one in audits]) == (0, [0.25, 1.0, 1.5])
    too_little = {**ledger.statement().to_json(), "epsilon": 0.5}
    (tmp_path / "too_little.json").write_text(json.dumps(too_little))
    code, _, err = run(f"--statement too_little.json --classes 4 {FEW}")
    assert (code, "total of the statement" in err) == (1, True)


def test_a_statement_is_audited_as_far_as_it_can_be(run: Run, tmp_path: Path) -> None:
    """Earlier answers are those of their mechanism; DP-SGD and earlier trainings are named as not audited."""
    told = [
        *("earlier: randomized response, epsilon 1, read 300 labels", "earlier: training, LP-2ST, epsilon 5, read 300 labels"),
        *("earlier: randomized response, epsilon 1", "randomized response with prior, epsilon 1, read 300 labels"),
    ]
    sgd = "DP-SGD, 9 steps of Poisson samples of rate 0.1, clip norm 1, noise multiplier 2; add-or-remove epsilon 1"
    stated = [{"epsilon": 8.0, "mechanisms": told}, {"epsilon": 2.0, "mechanisms": [sgd]}]
    (tmp_path / "s.json").write_text(json.dumps(stated))
    code, out, _ = run(f"--statement s.json --classes 3 {FEW} --json")
    said = json.loads(out)
    assert (code, [one["claimed_epsilon"] for one in said["audits"]]) == (0, [1.0, 1.0, 8.0])
    assert said["not_audited"] == [told[1], sgd]
    code, out, _ = run(f"--statement s.json --classes 3 {FEW}")
    assert (code, out.count("not audited")) == (0, 2)
    (tmp_path / "s.json").write_text(json.dumps([stated[1]]))
    code, _, err = run(f"--statement s.json --classes 3 {FEW}")
    assert (code, err.count("\n"), "DP-SGD" in err) == (2, 1, True)


def test_a_total_is_no_less_than_a_label_paid_on_average_or_for_what_was_lost(run: Run, tmp_path: Path) -> None:
    """Of 100 records two mechanisms cannot have read 100 each and no label twice."""

    def holds(epsilon: float, *counts: int, more: Sequence[str] = ()) -> bool:
        told = [f"randomized response, epsilon 1, read {count} labels" for count in counts]
        value = {"records": 100, "statement": {"epsilon": epsilon, "mechanisms": [*told, *more]}}
        (tmp_path / "s.json").write_text(json.dumps([value]))
        code, out, _ = run(f"--statement s.json --classes 3 {FEW} --json")
        found = json.loads(out)["audits"][-1]["findings"][0]
        assert found["holds"] == (code == 0)
        return code == 0

    assert holds(1.0, 50, 50)
    assert not holds(1.0, 100, 100)
    assert not holds(1.9, 100, 100)
    assert holds(2.0, 100, 100)
    assert not holds(1.0, 100, more=["answers that were lost, epsilon 1.5, read 3 labels"])


def test_no_total_is_below_an_epsilon_that_is_infinite_or_has_an_exponent(run: Run, tmp_path: Path) -> None:
    for price in ("infinite: no privacy", "inf", "5E0", "5e+00"):
        told = ["randomized response, epsilon 1, read 100 labels", f"answers that were lost, epsilon {price}, read 100 labels"]
        (tmp_path / "s.json").write_text(json.dumps({"records": 100, "epsilon": 1.0, "mechanisms": told}))
        code, _, err = run(f"--statement s.json --classes 3 {FEW}")
        assert (code, "total of the statement" in err) == (1, True), price
    stated = {"epsilon": 1.0, "mechanisms": told[:1]}
    (tmp_path / "s.json").write_text(json.dumps({**stated, "user_epsilon": 0.1}))
    code, _, err = run(f"--statement s.json --classes 3 {FEW}")
    assert (code, "total of a person" in err) == (1, True)
    for wrong in ({"delta": -1}, {"delta": "x"}, {"user_epsilon": "x"}):
        (tmp_path / "s.json").write_text(json.dumps({**stated, **wrong}))
        assert run(f"--statement s.json --classes 3 {FEW}")[0] == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--prior 0.5,nan", "--prior"),
        ("--prior 0.5,-1", "--prior"),
        ("--prior 1", "2 to 200"),
        ("--prior 0.5,0.5 --classes 3", "leave --classes out"),
        ("--epsilon -1", "--epsilon"),
        ("--epsilon nan", "--epsilon"),
        ("--mechanism top-k", "needs its k"),
        ("--mechanism top-k --k 11", "k is at most"),
        ("--mechanism rr --k 2", "--k: belongs to"),
        ("--mechanism histogram --epsilon 0", "histogram"),
        ("--mechanism per-bit --classes 11", "10 classes at most"),
        ("--draws 10", "nearest: 1000"),
        ("--confidence 1", "--confidence"),
        ("--matrix no.csv", "no such file"),
        ("--matrix a.csv", "adds up to 0.9"),
        ("--matrix b.csv", "different lengths"),
        ("--matrix c.csv", "numbers alone"),
        ("--matrix d.json", "no JSON"),
        ("--matrix a.csv --mechanism rr", "leave one of them out"),
        ("--matrix a.csv --plot a.png", "--plot"),
        ("--statement e.json", "DP-SGD"),
        ("--statement f.json", "no statement"),
        ("--statement g.json", "epsilon that is no number: 1e"),
        ("--statement h.json", "epsilon of a statement is no number"),
        ("--matrix i.json", "epsilon is no number"),
    ],
)
def test_nonsense_is_refused_in_one_line(run: Run, tmp_path: Path, line: str, said: str) -> None:
    texts = {
        "a.csv": "0.5,0.4\n0.5,0.5\n",
        "b.csv": "0.5,0.5\n1\n",
        "c.csv": "a,b\n0.5,0.5\n",
        "d.json": "{",
        "e.json": json.dumps({"epsilon": 1, "mechanisms": ["DP-SGD, epsilon 1, read 9 labels"]}),
        "f.json": json.dumps({"accuracy": 1}),
        "g.json": json.dumps({"epsilon": 1, "mechanisms": ["histogram, epsilon 1e, read 9 labels"]}),
        "h.json": json.dumps({"epsilon": "1", "mechanisms": ["histogram, epsilon 1, read 9 labels"]}),
        "i.json": json.dumps({"epsilon": "0.1", "matrix": [[0.5, 0.5], [0.1, 0.9]]}),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    code, out, err = run(line)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
