"""The notes that are taken of a program from outside, and what is made of them."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from bench import calls
from bench.evaluate import Run, figures_of
from bench.harness import Timing

PROGRAM = """
import colorsys, fractions
colorsys.rgb_to_hsv(1, 0, 0)
fractions.Fraction(1, 3).limit_denominator(2)
fractions.Fraction(1, 3).limit_denominator(2)
"""


def test_calls_of_another_program_are_noted(tmp_path):
    shutil.copyfile(calls.__file__, tmp_path / "sitecustomize.py")
    targets = {"hsv": "colorsys:rgb_to_hsv", "limit": "fractions:Fraction.limit_denominator"}
    environment = {
        "PYTHONPATH": str(tmp_path),
        "BENCH_CALLS": json.dumps(targets),
        "BENCH_CALLS_TO": str(tmp_path / "notes.jsonl"),
    }
    command = [sys.executable, "-c", PROGRAM]
    subprocess.run(command, env={**os.environ, **environment}, check=True)
    notes = [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]
    assert [note["name"] for note in notes] == ["hsv", "limit", "limit"]
    assert all(note["started"] <= note["ended"] for note in notes)


def note(name, started, ended, shape=None):
    return {"name": name, "started": started, "ended": ended, "shape": shape}


class Side:
    """What `figures_of` reads of a contender."""

    calls = ("load", "decode", "prepare", "tower", "answer")

    def __init__(self, *runs):
        self.runs = list(runs)


def test_starting_is_what_goes_before_the_first_decode():
    notes = [
        note("load", 101, 103),
        note("decode", 104, 106),
        note("decode", 105, 106),
        note("tower", 106, 107, [512, 128]),
        note("answer", 106, 109),
        note("tower", 109, 110, [512, 128]),
        note("answer", 109, 112),
    ]
    run = Run(100.0, 115.0, notes)
    assert run.startup_seconds == 4  # 104 - 100
    assert run.work_seconds == 8  # 104 to 112
    figures = figures_of(Side(run, run), Timing([15.0, 15.0], [20.0, 20.0]), 6)
    assert figures["questions_per_second"] == pytest.approx(6 / 15)
    assert figures["questions_per_second_of_work"] == pytest.approx(6 / 8)
    assert (figures["decodes"], figures["patches_through_tower"]) == (2, 1024)
    assert figures["seconds_of"] == {
        "load": 2, "decode": 3, "prepare": 0, "tower": 2, "answer": 6
    }  # fmt: skip
