from collections import Counter

import numpy as np
import pytest

from strive.lab.questions import KINDS, draw_questions, to_record
from strive.lab.scene import COLOURS, SHAPES, Difficulty, draw_scene
from strive.records import PROBLEM_TYPES, parse_record, record_to_row
from strive.seeding import derive_rng


@pytest.fixture(scope="module")
def records():
    result = []
    for clip in range(600):
        scene = draw_scene(0, clip, Difficulty())
        for number, question in enumerate(draw_questions(scene, derive_rng("test", clip))):
            result.append(
                to_record(scene, question, problem_id=clip * 100 + number, video_id="a.mp4")
            )
    return result


def test_video_r1s_five_problem_types_appear_multiple_choice_most(records):
    counts = Counter(record.problem_type for record in records)
    five = set(PROBLEM_TYPES) - {"grounding", "grounded multiple choice"}
    assert set(counts) == five and len(five) == 5
    assert 0.72 < counts["multiple choice"] / len(records) < 0.88
    assert {kind.problem_type for kind in KINDS.values()} == five


def test_records_survive_a_round_trip(records):
    for record in records[:200]:
        assert parse_record(record_to_row(record), where="row") == record


def test_correct_letters_are_balanced(records):
    letters = Counter(
        record.solution[len("<answer>")] for record in records if len(record.options) == 6
    )
    total = sum(letters.values())
    assert all(abs(letters[letter] / total - 1 / 6) < 0.03 for letter in "ABCDEF")


def test_solution_is_among_the_options_once(records):
    for record in records:
        if record.options:
            words = [option.split(". ", 1)[1] for option in record.options]
            assert len(set(words)) == len(words)
            assert record.solution[len("<answer>")] in [option[0] for option in record.options]


def test_answers_agree_with_the_scene():
    for clip in range(100):
        scene = draw_scene(5, clip, Difficulty())
        for question in draw_questions(scene, np.random.default_rng(clip)):
            target = scene.sprites[question.targets[0]]
            if question.kind == "colour":
                assert question.answer == COLOURS[target.colour]
                assert SHAPES[target.shape] in question.problem
                assert question.prior_answer in question.options
            if question.kind == "count":
                assert int(question.answer) == sum(not s.is_glyph for s in scene.sprites)


def test_questions_of_a_clip_differ(records):
    by_clip = Counter((int(r.question_id) // 100, r.problem.lower()) for r in records)
    assert max(by_clip.values()) <= 1


def test_shuffled_options_are_four_with_balanced_letters():
    letters = Counter()
    for clip in range(400):
        scene = draw_scene(0, clip, Difficulty(shuffled_options=True))
        for question in draw_questions(scene, derive_rng("test", clip)):
            if question.kind in ("colour", "shape", "quadrant"):
                assert len(question.options) == 4
                assert question.prior_answer in (*question.options, "")
                letters[question.solution_of(question.answer)] += 1
    assert all(abs(letters[letter] / letters.total() - 0.25) < 0.04 for letter in "ABCD")
