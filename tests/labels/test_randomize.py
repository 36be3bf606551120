"""`fedrho labels randomize` and `matrix`: bytes kept, labels told nowhere, a second answer never unasked."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrho.labels import answering
from fedrho.labels.answered import alone, hold
from fedrho.labels.csv_file import CsvFile, Record
from fedrho.labels.order import by_class, tells_labels
from fedrho.privacy.labels.chance import SystemChance
from tests.commanding import Run, runner


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `fedrho labels` with these arguments in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    run = runner(monkeypatch, capfd, "labels")
    return lambda line, *more: run(*line.split(), *more)


def told(path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path(path).read_bytes().decode("utf-8-sig"), newline="")))


def mixed(count: int = 60) -> bytes:
    rows = [f"{i},{'abc'[i * 7 % 3]},{i % 5}" for i in range(count)]
    return ("\n".join(["id,y,who", *rows]) + "\n").encode()


def write(content: bytes, name: str = "d.csv") -> None:
    Path(name).write_bytes(content)


ASK = "randomize d.csv --label y --classes a,b,c --epsilon 1 --out n.csv"


# -- randomize ----------------------------------------------------------------------------------------------------------------


def test_everything_but_the_labels_stays_byte_by_byte(labels: Run) -> None:
    """Byte order mark, quotes, line ends, blank lines, quoted line ends, bytes that are no UTF-8, a last line without end."""
    head, generator = b'\xef\xbb\xbf"id","y, then",note\r\n', random.Random(4)
    notes = [b'"x, ""q""\r\nz"', b"\xff\xfe", b'5" pipe', b'""', b" ", "é".encode()]
    rows = [b'"%d","%s",%s\r\n' % (i, generator.choice([b"a", b"b", b"c,d"]), notes[i % len(notes)]) for i in range(200)]
    rows[50] += b"\r\n"
    content = head + b"".join(rows).removesuffix(b"\r\n")
    write(content)
    Path("classes.txt").write_text("a\nb\nc,d\n")
    ask = ["--label", "y, then", "--classes", "classes.txt", "--epsilon", "1", "--out", "n.csv"]
    code, _, err = labels("randomize d.csv", *ask)
    assert (code, err) == (0, "")
    label = re.compile(rb'(?<=",)"(?:a|b|c,d)"(?=,)')
    noisy = Path("n.csv").read_bytes()
    assert label.sub(b"@", noisy) == label.sub(b"@", content)
    assert len(label.findall(noisy)) == 200
    assert noisy != content


def test_labels_are_answered_as_the_mechanism_says_and_the_statement_lies_beside(labels: Run) -> None:
    """3000 labels at epsilon 2, K = 3: told with 0.787; five standard errors."""
    write(mixed(3000))
    code, out, _ = labels(ASK.replace("--epsilon 1", "--epsilon 2") + " --user who --json")
    values = json.loads(out)
    assert code == 0
    assert json.loads(Path("n.csv.statement.json").read_text()) == values
    assert (values["epsilon"], values["epsilon_total"], values["mean_k"], values["records"]) == (2.0, 2.0, 3.0, 3000)
    assert values["statement"]["user_epsilon"] == 600 * 2.0
    true, noisy = told("d.csv"), told("n.csv")
    keep = 1 / (1 + 2 * math.exp(-2))
    same = np.mean([one["y"] == other["y"] for one, other in zip(true, noisy, strict=True)])
    assert same == pytest.approx(keep, abs=5 * math.sqrt(keep * (1 - keep) / 3000))


def test_each_row_is_answered_with_its_own_prior_in_chunks_and_shuffled(labels: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "CHUNK", 7)
    rows = [(i, i * 7 % 3) for i in range(60)]
    write(
        b"y,i,p0,p1,p2\n"
        + b"".join(b"%s,%d,%d,%d,%d\n" % (b"abc"[i % 3 : i % 3 + 1], i, c == 0, c == 1, c == 2) for i, c in rows)
    )
    ask = "randomize d.csv --label y --classes a,b,c --epsilon 1 --prior-columns p0,p1,p2 --again --out"
    for out in ("n.csv", "m.csv --shuffle"):
        assert labels(f"{ask} {out}")[0] == 0
        answers = {int(row["i"]): row["y"] for row in told(out.split()[0])}
        assert answers == {i: "abc"[c] for i, c in rows}


def test_priors_of_all_rows_and_of_each(labels: Run) -> None:
    """A sure prior gives its class whatever the label; k = 1 of each row's own prior gives that row's."""
    write(
        b"y,pa,pb\n"
        + b"".join(b"%s,%s\n" % (b"ab"[i % 2 : i % 2 + 1], b"0.999,0.001" if i % 3 else b"1e-9,5") for i in range(50))
    )
    ask = "randomize d.csv --label y --classes a,b --epsilon 1 --out n.csv"
    assert labels(ask + " --prior-columns pa,pb")[0] == 0
    assert [row["y"] for row in told("n.csv")] == ["a" if i % 3 else "b" for i in range(50)]
    code, out, _ = labels(ask.replace("n.csv", "m.csv") + " --prior 0.99,0.01 --again --json")
    assert (code, json.loads(out)["mean_k"], json.loads(out)["epsilon_total"]) == (0, 1.0, 2.0)
    assert {row["y"] for row in told("m.csv")} == {"a"}
    assert labels(ask.replace("n.csv", "k.csv") + " --prior 0.99,0.01 --mechanism top-k --k 2 --again")[0] == 0
    assert {row["y"] for row in told("k.csv")} == {"a", "b"}


def test_bits_take_a_column_for_each_class(labels: Run) -> None:
    write(mixed())
    assert labels(ASK + " --mechanism per-bit")[0] == 0
    rows = told("n.csv")
    assert list(rows[0]) == ["id", "y=a", "y=b", "y=c", "who"]
    assert {row["y=a"] for row in rows} == {"0", "1"}


def test_a_second_answer_is_refused_until_it_is_paid_for(labels: Run) -> None:
    """In another file, too; another column is another label."""
    write(mixed())
    assert labels(ASK)[0] == 0
    first = Path("n.csv").read_bytes()
    code, _, err = labels(ASK)
    assert (code, err.count("\n")) == (2, 1)
    assert "a second answer of these labels costs epsilon again" in err
    code, _, err = labels(ASK.replace("n.csv", "m.csv"))
    assert (code, Path("m.csv").exists()) == (2, False)
    assert "n.csv (epsilon 1)" in err
    assert "2 in all" in err
    assert "--again" in err
    code, out, _ = labels(ASK.replace("n.csv", "m.csv") + " --again --json")
    assert (code, json.loads(out)["epsilon_total"]) == (0, 2.0)
    assert labels("randomize d.csv --label who --classes 0,1,2,3,4 --epsilon 1 --out w.csv")[0] == 0
    assert Path("n.csv").read_bytes() == first


def test_a_link_to_the_data_has_the_same_account(labels: Run, tmp_path: Path) -> None:
    write(mixed())
    assert labels(ASK)[0] == 0
    (tmp_path / "elsewhere").mkdir()
    for link in ("link.csv", "elsewhere/link.csv"):
        Path(link).symlink_to(tmp_path / "d.csv")
        code, _, err = labels(ASK.replace("d.csv", link).replace("n.csv", "m.csv"))
        assert (code, "answered before" in err, Path("m.csv").exists()) == (2, True, False)


def test_answers_are_not_written_where_they_are_noted(labels: Run) -> None:
    write(mixed())
    code, _, err = labels(ASK.replace("n.csv", "d.csv.answers.json"))
    assert (code, "noted" in err, os.listdir()) == (2, True, ["d.csv"])


def test_a_run_that_ends_in_between_leaves_the_note_and_no_answers(labels: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is stopped in order takes the note back, since nobody saw an answer; whoever is killed cannot."""
    write(mixed())
    seen: list[dict[str, Any]] = []

    def stopped(*_: object) -> float:
        seen.append(json.loads(Path("d.csv.answers.json").read_text()))
        raise KeyboardInterrupt

    monkeypatch.setattr(answering.Writer, "write", stopped)
    assert labels(ASK)[0] == 130
    assert [one["epsilon"] for one in seen[0]["answers"]] == [1.0]  # it stood before the first answer
    assert os.listdir() == ["d.csv"]


KILLED = """
import os, sys
from fedrho import cli
from fedrho.labels import answering
whole = answering.Writer.write
def killed(writer):
    whole(writer)
    os.kill(os.getpid(), 9)
answering.Writer.write = killed
sys.argv = ["fedrho", "labels", *sys.argv[1:]]
cli.main()
"""


def test_whoever_is_killed_has_paid(labels: Run) -> None:
    """Nobody knows who saw the answers: the next run refuses, or adds them up."""
    write(mixed())
    done = subprocess.run([sys.executable, "-c", KILLED, *ASK.split()], capture_output=True, timeout=60)
    assert done.returncode == -9
    assert not Path("n.csv").exists()
    code, _, err = labels(ASK)
    assert (code, "were answered before: n.csv (epsilon 1)" in err) == (2, True)
    assert "use " not in err
    assert "add --again if you want it (n.csv is not here: it was broken off before its file was written" in err
    assert sorted(os.listdir()) == ["d.csv", "d.csv.answers.json"]  # and nothing half-written
    code, out, _ = labels(ASK + " --again --json")
    assert (code, json.loads(out)["epsilon_total"]) == (0, 2.0)
    assert "use n.csv, or add --again" in labels(ASK.replace("n.csv", "m.csv"))[2]


def test_a_statement_without_its_answers_is_no_first_answer_to_keep(labels: Run) -> None:
    """Killed between the two names: neither the name nor the labels are free."""
    write(mixed())
    assert labels(ASK)[0] == 0
    Path("n.csv").unlink()
    code, _, err = labels(ASK + " --again")
    assert (code, "n.csv.statement.json is there and tells of answers that are not" in err, "keep the first" in err) == (
        2,
        True,
        False,
    )
    Path("n.csv.statement.json").unlink()
    assert labels(ASK)[0] == 2
    code, out, _ = labels(ASK + " --again --json")
    assert (code, json.loads(out)["epsilon_total"]) == (0, 2.0)


def test_only_scratch_of_ended_processes_is_swept(labels: Run) -> None:
    write(mixed())
    for name in (
        ".n.csv.0123abcd",
        ".n.csv.statement.json.0123abcd",
        ".d.csv.answers.json.0123abcd",
        ".n.csv.mine",
        ".n.csv.89abcdef",
    ):
        Path(name).write_bytes(b"x")
    with Path(".n.csv.89abcdef").open("rb") as file:
        hold(file)
        assert labels(ASK)[0] == 0
    assert sorted(os.listdir()) == [
        *(".n.csv.89abcdef", ".n.csv.mine", "d.csv", "d.csv.answers.json", "n.csv", "n.csv.statement.json")
    ]


def test_a_folder_in_place_of_the_data_is_called_one(labels: Run) -> None:
    Path("d.csv").mkdir()
    assert "d.csv: is a folder; name a CSV file in it" in labels(ASK)[2]


def test_two_processes_do_not_answer_the_same_labels_at_once(labels: Run) -> None:
    write(mixed())
    with alone(Path("d.csv")):
        code, _, err = labels(ASK)
    assert (code, err.count("\n"), "another process" in err) == (2, 1, True)
    assert labels(ASK)[0] == 0


def test_an_account_that_cannot_be_read_or_written_stops_everything(labels: Run) -> None:
    write(mixed())
    for damaged in (
        "{",
        "[]",
        '{"answers": [{"label": "y"}]}',
        '{"answers": [{"label": "y", "mechanism": "", "epsilon": -1, "out": ""}]}',
    ):
        Path("d.csv.answers.json").write_text(damaged)
        code, out, err = labels(ASK)
        assert (code, out, err.count("\n"), "mend it from a copy" in err) == (2, "", 1, True)
        assert not Path("n.csv").exists()


def test_data_that_change_while_they_are_read_are_not_written(labels: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write(mixed())
    first_pass = answering.read_data
    for other in (mixed(61), mixed(59), mixed().replace(b"5,c,0", b"5,a,0")):

        def meanwhile(*arguments: Any, other: bytes = other) -> Any:
            read = first_pass(*arguments)
            write(other)
            return read

        monkeypatch.setattr(answering, "read_data", meanwhile)
        for one in ("", " --shuffle"):
            write(mixed())
            code, _, err = labels(ASK + one)
            assert (code, "was changed while it was read" in err) == (2, True)
            assert os.listdir() == ["d.csv"]


GOOD = mixed()
REFUSED: dict[str, tuple[bytes, str, str]] = {
    "label outside": (GOOD.replace(b",c,", b",C,"), "", "none of the 3 of --classes"),
    "label empty": (GOOD + b"77,,1\n", "", "none of the 3 of --classes"),
    "label no UTF-8": (GOOD + b"77,\xff,1\n", "", "none of the 3 of --classes"),
    "grouped": (b"id,y,who\n" + b"".join(b"%d,%s,0\n" % (i, b"bac"[i // 20 : i // 20 + 1]) for i in range(60)), "", "--shuffle"),
    "no rows": (b"id,y,who\n", "", "no records"),
    "empty": (b"", "", "is empty"),
    "twice": (GOOD.replace(b"id,y", b"y,y"), "", "'y' twice"),
    "ragged": (GOOD + b"77,a\n", "", "row 62 has 2 fields, the header 3"),
    "open quote": (GOOD + b'"77,a,1\n', "", "row 62 is no CSV"),
    "old line ends": (GOOD.replace(b"\n", b"\r"), "", "is no CSV"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "", "UTF-16"),
    "no column": (GOOD, "--label z", "the header has: id, y, who"),
    "one class": (GOOD, "--classes a", "public"),
    "class twice": (GOOD, "--classes a,b,a", "named twice"),
    "class unnamed": (GOOD, "--classes a,b,,c", "no name"),
    "classes of the data": (GOOD, "--classes d.csv", "known without the labels"),
    "epsilon": (GOOD, "--epsilon -1", "0 or more"),
    "epsilon nan": (GOOD, "--epsilon nan", "0 or more"),
    "epsilon inf": (GOOD, "--epsilon inf", "true labels"),
    "prior nan": (GOOD, "--prior 0.5,nan,0.5", "not negative, and finite"),
    "prior negative": (GOOD, "--prior 0.5,-0.1,0.6", "not negative, and finite"),
    "prior words": (GOOD, "--prior 0.5,x,0.6", "numbers with commas"),
    "prior short": (GOOD, "--prior 0.5,0.5", "2 probabilities for 3 classes"),
    "prior unused": (GOOD, "--prior 0.5,0.3,0.2 --mechanism rr", "uses no prior"),
    "two priors": (GOOD, "--prior 0.5,0.3,0.2 --prior-columns id,id,who", "give one of them"),
    "prior of labels": (GOOD, "--prior-columns id,y,who", "private column"),
    "prior columns": (GOOD, "--prior-columns id,who", "2 columns for 3 classes"),
    "prior cell": (GOOD.replace(b"17,c,2", b"17,c,nan"), "--prior-columns id,id,who", "row 19 has no probability"),
    "user is label": (GOOD, "--user y", "private column"),
    "name too long": (GOOD, f"--classes {'x' * 5000}", "File name too long"),
    "out too long": (GOOD, f"--out {'x' * 300}", "File name too long"),
    "k": (GOOD, "--mechanism top-k", "--k: missing"),
    "k alone": (GOOD, "--k 2", "--k: belongs to"),
    "k large": (GOOD, "--mechanism top-k --k 4", "allowed: 1 to 3"),
    "out is data": (GOOD, "--out d.csv", "is there already"),
    "out nowhere": (GOOD, "--out none/n.csv", "no folder"),
    "delimiter": (GOOD, "--delimiter ab", "one character"),
    "bits": (GOOD.replace(b"id,y", b"y=a,y"), "--mechanism per-bit", "'y=a' already"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_before_anything_is_drawn_or_written(
    case: str, labels: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, more, why = REFUSED[case]
    write(content)
    monkeypatch.setattr(SystemChance, "words", None)
    code, out, err = labels(f"{ASK} {more}")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert why in err
    assert os.listdir() == ["d.csv"]


def test_messages_are_the_same_whichever_label_is_wrong(labels: Run) -> None:
    """Neither the label, nor its row, nor how many."""
    texts = set()
    for wrong in (GOOD.replace(b"5,c,0", b"5,secret,0", 1), GOOD.replace(b",b,", b",x,"), GOOD + b"99,q,1\n"):
        write(wrong)
        texts.add(labels(ASK)[2])
    assert len(texts) == 1


def test_nothing_that_is_printed_or_noted_depends_on_labels(labels: Run) -> None:
    """Two files that differ in their labels: the same output, note and statement."""
    seen = set()
    for content in (GOOD, GOOD.replace(b",a,", b",@,").replace(b",b,", b",a,").replace(b",@,", b",b,")):
        for name in os.listdir():
            Path(name).unlink()
        write(content)
        code, out, err = labels(ASK)
        assert code == 0
        seen.add((out, err, Path("d.csv.answers.json").read_text(), Path("n.csv.statement.json").read_text()))
    assert len(seen) == 1


def test_shuffled_rows_are_all_there_in_another_order(labels: Run) -> None:
    write(REFUSED["grouped"][0])
    code, out, _ = labels(ASK + " --shuffle --json")
    ids = [int(row["id"]) for row in told("n.csv")]
    assert (code, sorted(ids)) == (0, list(range(60)))
    assert ids != sorted(ids)
    assert any("random order" in text for text in json.loads(out)["statement"]["assumptions"])
    write(REFUSED["grouped"][0], "e.csv")
    assert labels(ASK.replace("d.csv", "e.csv").replace("n.csv", "m.csv") + " --public-order")[0] == 0


def test_a_sorted_file_is_found_however_small_its_classes_and_a_shuffled_one_is_not() -> None:
    letters = [chr(ord("a") + number) for number in range(26)]
    shuffled = [letters[place] for place in np.random.default_rng(2).permutation(26)]

    def codes(text: str, classes: Sequence[str]) -> NDArray[np.int64]:
        return np.array([classes.index(letter) for letter in text])

    for text in ("aaaabbbb", "bbbbaaaa", "aaaabbbbb", "aaaaabbbb", "aabbcc", "ccbbaa", "aaabbb", "".join(letters)):
        assert tells_labels(codes(text, letters), letters), text
    assert tells_labels(codes("".join(letters), shuffled), shuffled)  # in the order of names
    assert tells_labels(np.sort(np.random.default_rng(3).choice(2000, 300, replace=False)), [f"{n:04}" for n in range(2000)])
    for text in ("a", "ab", "abc", "aabb", "aaaa", "abab", "aabcbc", "aaabab", "".join(shuffled)):
        assert not tells_labels(codes(text, letters), letters), text
    nearly = np.repeat(np.arange(10), 100)
    nearly[np.random.default_rng(5).choice(1000, 50, replace=False)] = np.random.default_rng(6).integers(0, 10, 50)
    assert tells_labels(nearly, letters)
    assert not tells_labels(np.arange(60) % 3, letters)  # dealt out in turns, as made-up files are
    random = np.random.default_rng(4)
    assert not any(tells_labels(random.integers(0, 3, 40), letters) for _ in range(300))


def test_bits_of_no_epsilon_are_tossed_coins(labels: Run) -> None:
    """Told classes are told from others by what was drawn, also where no likelihood differs in float64."""
    write("\n".join(["id,y", *(f"{number},{'ab'[number * 7 % 3 % 2]}" for number in range(2000)), ""]).encode(), "coins.csv")
    for number, epsilon in enumerate(("0", "1e-17")):
        code, _, err = labels(
            f"randomize coins.csv --label y --classes a,b --mechanism per-bit --epsilon {epsilon} --out c{number}.csv --again"
        )
        assert code == 0, err
        rows = [line.split(",")[1:] for line in Path(f"c{number}.csv").read_text().splitlines()[1:]]
        assert all(abs(sum(row[column] == "1" for row in rows) - 1000) < 5 * 22.4 for column in (0, 1))


def test_order_by_class_is_found_with_some_rows_out_of_place_and_not_in_random_orders() -> None:
    generator = np.random.default_rng(1)
    grouped = np.repeat([3, 1, 2], 100)
    assert by_class(grouped)
    assert by_class(np.concatenate([grouped, [3]]))
    assert by_class(np.concatenate([grouped, grouped[::-1], grouped, np.repeat([2, 3, 1], 30)]))  # one folder after another
    assert not by_class(np.repeat(1, 100))
    assert not by_class(np.array([0, 1]))
    assert not any(by_class(generator.permutation(grouped)) for _ in range(200))


def test_records_are_those_of_the_csv_module(tmp_path: Path) -> None:
    """On files that it wrote itself, with anything in their fields."""
    generator = random.Random(3)
    rows = [["h1", "h2", "h3"], *([self_made(generator) for _ in range(3)] for _ in range(300))]
    path = tmp_path / "any.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    found = [one for one in CsvFile(path, ";").read() if isinstance(one, Record)]
    plain = [[field.decode().strip('"') if '""' not in field.decode() else None for field in one.fields] for one in found]
    assert len(found) == 300
    assert all(
        a is None or a == b.strip('"') for one, row in zip(plain, rows[1:], strict=True) for a, b in zip(one, row, strict=True)
    )


def self_made(generator: random.Random) -> str:
    return "".join(generator.choices('ab ;,"\n\r', k=generator.randint(1, 6)))


# -- matrix -------------------------------------------------------------------------------------------------------------------


def test_the_contract_for_scripts(labels: Run) -> None:
    code, out, err = labels("matrix --prior 0.5,0.25,0.15,0.1 --epsilon 1 --json")
    values = json.loads(out)
    assert (code, err, values["k"]) == (0, "", 2)
    assert values["probability_correct"] == pytest.approx(0.75 * math.e / (math.e + 1), abs=1e-15)
    assert np.array(values["matrix"])[:, :2] == pytest.approx(
        np.array([[0.7310586, 0.2689414], [0.2689414, 0.7310586], *[[0.5] * 2] * 2])
    )


def test_a_matrix_for_people(labels: Run) -> None:
    code, out, err = labels("matrix --prior 9,1 --epsilon 1")
    assert (code, err) == (0, "")
    assert "with probability 0.9000 where the prior is true" in out
    assert "k = 1: every label has the same answer" in out
    assert labels("matrix --classes 10 --epsilon inf --mechanism rr")[1].count("infinite") == 1
    code, out, err = labels("matrix --classes 1 --epsilon 1 --json")
    assert (code, json.loads(out)["matrix"]) == (0, [[1.0]])
    assert "one class alone" in err
    assert "the first 12 of 20" in labels("matrix --classes 20 --epsilon 1")[1]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("--epsilon 1", "--prior or --classes"),
        ("--epsilon 1 --classes 3 --prior 1,1,1", "--prior or --classes"),
        ("--epsilon -1 --classes 3", "0 or more"),
        ("--epsilon nan --classes 3", "0 or more"),
        ("--epsilon 1 --prior 0.5,-0.1", "not negative"),
        ("--epsilon 1 --prior 0.5,inf", "finite"),
        ("--epsilon 1 --classes 3 --mechanism per-bit", "per-bit"),
        ("--epsilon 1 --classes 3 --mechanism top-k", "--k: missing"),
        ("--epsilon 1 --classes 3000", "up to 2000"),
    ],
)
def test_nonsense_about_a_matrix_is_one_line(line: str, why: str, labels: Run) -> None:
    code, out, err = labels(f"matrix {line}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert why in err
