"""Our direct grades against lmms-eval's own functions, on the same answers.

For each of the six benchmarks 500 answers are drawn from a seed (`grading_answers.py`), graded by
`strive/evaluate/grading.py` and, in the Python of another environment, by the functions of
lmms-eval's tasks (`grading_peer.py`). Every difference belongs to a named class, told from the
answer and from what either side read; one that belongs to none ends the program. No judge is
asked: where lmms-eval's rules give up and would ask one, the answer counts as such.

The environment needs lmms-eval 0.7.3 without its dependencies, and what the six files import:

    python -m venv PEER && PEER/bin/pip install --no-deps lmms-eval==0.7.3
    PEER/bin/pip install numpy pandas datasets pyyaml loguru requests opencv-python-headless
    python -m bench.grading --peer-python PEER/bin/python [--count 500] [--seed 0]

The figures go to `bench/results/grading.json`, their tables into docs/grading.md.
"""

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.grading_answers import BENCHMARKS, Case, generate
from bench.harness import RESULTS, write_result
from strive.evaluate.grading import (
    grade_choice,
    grade_tempcompass,
    grade_videommmu,
    grade_vsibench,
)
from strive.evaluate.items import Grade
from strive.report.format import replace_section

PEER = Path(__file__).parent / "grading_peer.py"
PAGE = Path(__file__).parents[1] / "docs" / "grading.md"
MARK, END_MARK = "<!-- {}: made by `python -m bench.grading` -->", "<!-- made until here -->"
Verdict = Mapping[str, Any]

CLASSES: dict[str, str] = {
    "gold anywhere": "MMVU: theirs is right wherever the gold letter or its option's text occurs",
    "tags and thoughts": "theirs leaves answer tags and unfinished thoughts in the text",
    "two at once": "two options, both words or a range: theirs takes one, ours none",
    "denied or taken back": "theirs reads a letter that the answer denies or takes back",
    "option's text": "an option in words: theirs looks for a letter in them",
    "article or pronoun": "theirs reads the article A or the pronoun I as an option",
    "letter of a word": "theirs reads a capital of a word or a name as an option",
    "other scripts": "full-width letters, and letters beside Chinese, Japanese or Korean ones",
    "small letter": "theirs reads capitals alone",
    "first word alone": "VSI-Bench: theirs compares the first word with the letter",
    "other than the announced": "theirs takes another letter or number than the announced one",
    "word with yes or no in it": "theirs takes a word that begins with yes or no as that",
    "one that counts nothing": 'theirs reads "one can see" and "the one on the left" as 1',
    "number otherwise written": "separators, fractions, signs in words, full-width points",
    "digits of no number": "theirs reads the digits of a name, a time or an overflow",
    "solution otherwise written": "a letter or a list as the solution of an open question",
    "solution inside a word": "an open question: theirs finds the solution's letters in a word",
    "empty answer left out": "an open question: theirs leaves empty answers out of the mean",
}
"""The classes of difference, in the order in which they are tried."""
UNEXPLAINED = "unexplained"
LEFT_OUT = "left out"
"""What `grading_peer.py` says was read where lmms-eval leaves an answer out of its mean."""

_TAGS = re.compile(r"</?(?:answer|think)>")
_DENIAL = re.compile(r"\b(?:not|cannot|wrong|wait)\b|n't\b|不是|不对", re.IGNORECASE)
_NON_ASCII_LETTER = re.compile(r"[^\W\d_\x00-\x7f]")


def grade_ours(case: Case) -> Grade:
    """Grade a case by our direct rule of its benchmark."""
    if case.benchmark == "tempcompass":
        return grade_tempcompass(case.output, case.options, case.solution, case.task)
    rules = {"vsibench": grade_vsibench, "videommmu": grade_videommmu}
    return rules.get(case.benchmark, grade_choice)(case.output, case.options, case.solution)


def grade_theirs(peer_python: str, cases: Sequence[Case]) -> tuple[str, list[Verdict]]:
    """Have lmms-eval's functions grade the cases; returns its version and a verdict a case."""
    text = json.dumps([case.as_json() for case in cases])
    command = [peer_python, str(PEER)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["version"], answer["verdicts"]


def differs(grade: Grade, verdict: Verdict) -> bool:
    """Whether the two scores differ, or theirs does not count."""
    return abs(grade.score - verdict["score"]) > 1e-9 or verdict["read"] == LEFT_OUT


def class_of(case: Case, grade: Grade, verdict: Verdict) -> str:
    """Name the class of a difference; see `CLASSES`."""
    output, read = case.output, verdict["read"]
    if read == LEFT_OUT:
        return "empty answer left out"
    is_number = case.benchmark == "vsibench" and not case.options
    if case.benchmark == "mmvu" and verdict["score"] > grade.score:
        return "gold anywhere"
    if _TAGS.search(output):
        return "tags and thoughts"
    if grade.rule in (
        "several options",
        "several answers",
        "several numbers",
        "all options listed",
    ):
        return "two at once"
    if case.task == "yes_no" and grade.rule == "unread":
        return "word with yes or no in it"
    if is_number:
        return number_class(output, grade)
    if case.benchmark == "videommmu" and not case.options:
        return open_class(case, grade)
    return letter_class(case, grade, read)


def number_class(output: str, grade: Grade) -> str:
    """The class of a difference between two numbers."""
    if grade.rule == "number announced":
        return "other than the announced"
    if re.search(r"\bone\b", output, re.IGNORECASE):
        counts = re.search(r"\b(?:the|no) one\b|\bone can\b", output, re.IGNORECASE)
        return "one that counts nothing" if counts else "number otherwise written"
    if not grade.parsed:
        return "digits of no number"
    is_plain = re.fullmatch(r"[^\d.]*\d+(?:\.\d+)?(?![\d,/])\D*", output) and output.isascii()
    return UNEXPLAINED if is_plain and "minus" not in output else "number otherwise written"


def open_class(case: Case, grade: Grade) -> str:
    """The class of a difference between two grades of an open question."""
    if re.fullmatch("[A-Za-z]", case.solution) or case.solution.startswith("["):
        return "solution otherwise written"
    if grade.rule == "only number":
        return "number otherwise written"
    is_inside = case.solution.lower() in case.output.lower() and not grade.score
    return "solution inside a word" if is_inside and case.solution.isalpha() else UNEXPLAINED


def letter_class(case: Case, grade: Grade, read: str) -> str:
    """The class of a difference between two letters."""
    output = case.output
    capitals = re.findall(r"(?<![\w'-])[A-Z](?![\w'-])", output)
    if grade.rule == "denied" or _DENIAL.search(output):
        return "denied or taken back"
    if grade.rule in ("option's text", "letter and its text") and read != grade.answer:
        is_first_word = case.benchmark == "vsibench" and re.match(r"\W*[A-Z]\b\W", output)
        return "first word alone" if is_first_word and not read.isalpha() else "option's text"
    if _NON_ASCII_LETTER.search(output):
        return "other scripts"
    if grade.parsed and grade.answer not in capitals:
        return "small letter"
    # The pronoun is an option's letter where there are nine options.
    if re.match(r"[AI] [a-z]", output) and read in ("AI" if len(case.options) > 8 else "A"):
        return "article or pronoun"
    if re.match(r"[A-Z]\W*\Z", read) is None and case.benchmark == "vsibench" and grade.parsed:
        return "first word alone"
    if re.fullmatch("[A-Z]", read) and read not in capitals:
        return "letter of a word"
    if case.benchmark == "vsibench" and grade.parsed:
        return "first word alone"
    return "other than the announced" if grade.parsed and read else UNEXPLAINED


def compare(peer_python: str, count: int, seed: int) -> dict[str, Any]:
    """Grade all cases on both sides; returns the figures."""
    cases = [case for name in BENCHMARKS for case in generate(name, count, seed)]
    version, verdicts = grade_theirs(peer_python, cases)
    figures: dict[str, Any] = {"lmms_eval": version, "count": count, "seed": seed}
    by_benchmark = {name: Counter[str]() for name in BENCHMARKS}
    examples: dict[str, dict[str, Any]] = {}
    unexplained = []
    for case, verdict in zip(cases, verdicts, strict=True):
        grade = grade_ours(case)
        counts = by_benchmark[case.benchmark]
        if verdict["judge"]:
            counts["needs a judge, read by ours" if grade.parsed else "needs a judge, unread"] += 1
            continue
        if not differs(grade, verdict):
            counts["agree"] += 1
            continue
        name = class_of(case, grade, verdict)
        counts[name] += 1
        row = {
            "benchmark": case.benchmark, "output": case.output, "solution": case.solution,
            "theirs": verdict["score"], "theirs_read": verdict["read"],
            "ours": grade.score, "ours_read": grade.answer, "rule": grade.rule,
        }  # fmt: skip
        # The shortest says most.
        if name not in examples or len(row["output"]) < len(examples[name]["output"]):
            examples[name] = row
        if name == UNEXPLAINED:
            unexplained.append(row)
    figures["benchmarks"] = {name: dict(sorted(c.items())) for name, c in by_benchmark.items()}
    figures["examples"] = {name: examples[name] for name in CLASSES if name in examples}
    figures["unexplained"] = unexplained
    return figures


# --- tables --------------------------------------------------------------------------------------


def agreement_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """The table of agreement, one benchmark a row."""
    yield "| benchmark | answers | same grade | judge wanted: read by ours | unread | other grade |"
    yield "|---|---|---|---|---|---|"
    for name, counts in figures["benchmarks"].items():
        other = sum(counts.get(key, 0) for key in (*CLASSES, UNEXPLAINED))
        yield (
            f"| {name} | {sum(counts.values())} | {counts.get('agree', 0)} "
            f"| {counts.get('needs a judge, read by ours', 0)} "
            f"| {counts.get('needs a judge, unread', 0)} | {other} |"
        )


def class_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """The classes of difference with their counts, in the benchmarks' order."""
    yield "| class | " + " | ".join(figures["benchmarks"]) + " |"
    yield "|---|" + "---|" * len(figures["benchmarks"])
    for name in CLASSES:
        counts = [row.get(name, 0) for row in figures["benchmarks"].values()]
        if any(counts):
            yield f"| {name} | " + " | ".join(str(count or "") for count in counts) + " |"


def example_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """One example of each class: the answer, the gold, both grades."""
    yield "| class | benchmark | answer | gold | theirs | ours |"
    yield "|---|---|---|---|---|---|"
    for name, row in figures["examples"].items():
        theirs = f"{row['theirs']:g} ({shown(row['theirs_read'])})"
        ours = f"{row['ours']:g} ({shown(row['ours_read'])}, {row['rule']})"
        answer, gold = shown(row["output"]), shown(row["solution"])
        yield f"| {name} | {row['benchmark']} | {answer} | {gold} | {theirs} | {ours} |"


def shown(text: str) -> str:
    """A text as one cell of a Markdown table."""
    line = " ".join(text.split()).replace("|", "\\|").replace("`", "'")
    return f"`{line}`" if line else "nothing"


TABLES = {"agreement": agreement_lines, "classes": class_lines, "examples": example_lines}


def with_tables(page: str, figures: Mapping[str, Any]) -> str:
    """Put the three tables between their marks."""
    for name, lines in TABLES.items():
        page = replace_section(page, MARK.format(name), END_MARK, "\n".join(lines(figures)))
    return page


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", required=True, help="a Python that has lmms-eval 0.7.3")
    parser.add_argument("--count", type=int, default=500, help="answers a benchmark")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-write", action="store_true", help="print only")
    asked = parser.parse_args()
    figures = compare(asked.peer_python, asked.count, asked.seed)
    for lines in TABLES.values():
        print("\n".join(lines(figures)), end="\n\n")
    for row in figures["unexplained"]:
        print(f"unexplained: {row}")
    if figures["unexplained"]:
        sys.exit(f"{len(figures['unexplained'])} differences belong to no class")
    if not asked.no_write:
        # The path of the other environment is nobody else's business.
        sys.argv[1:] = ["--peer-python", "PEER/bin/python", *sys.argv[3:]]
        print(f"wrote {write_result('grading', figures, path=RESULTS / 'grading.json')}")
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), figures), encoding="utf-8")


if __name__ == "__main__":
    main()
