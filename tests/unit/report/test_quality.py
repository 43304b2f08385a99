"""Scorer quality on a cache whose every number can be written down by hand."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from strive.cache.frames import read_video_states
from strive.cache.layout import CacheLayout, create_cache, ensure_settings
from strive.cache.questions import write_questions
from strive.cache.scores import QuestionScores, commit_scores, query_digest
from strive.commands.looking import BEGIN, END
from strive.errors import CacheError, MissingInputError, RecordsError, UnknownNameError
from strive.records import Record
from strive.report import quality
from strive.report.format import replace_section
from strive.report.quality import print_quality, quality_markdown, score_quality
from strive.variants import DrawRule

# Helper modules of these tests are imported as `cache.conftest` and so on.
sys.path.insert(0, str(Path(__file__).parents[1]))

from cache.conftest import add_frames

# Pools of five frames at 0, 0.12, 0.24, 0.36 and 0.48 s.
SPANS: dict[str, tuple[tuple[float, float], ...] | None] = {
    "right": ((0.2, 0.4),),  # frames 2 and 3
    "wrong": ((0.0, 0.1),),  # frame 0
    "all": ((0.0, 9.0),),
    "none": ((5.0, 9.0),),
    "unknown": None,
    "unscored": ((0.2, 0.4),),
    "nan": ((0.2, 0.4),),
    "elsewhere": ((0.2, 0.4),),
}
SCORES = [0.1, 0.2, 0.5, 0.4, 0.3]


def record(question_id: str) -> Record:
    return Record(
        question_id,
        {"wrong": "b", "elsewhere": "gone"}.get(question_id, "a"),
        "What?",
        "numerical" if question_id == "wrong" else "OCR",
        (),
        "<answer>1</answer>",
        "even" if len(question_id) % 2 == 0 else "odd",
        SPANS[question_id],
    )


def add(layout: CacheLayout, frames_key: str, name: str, kind: str, scores: list[float]) -> None:
    fields = {"frames_key": frames_key, "model": name}
    transforms = ["none", "zscore"] if kind == "similarity" else ["none"]
    ensure_settings(
        layout.scores(f"{name}-key"),
        {"name": name, "kind": kind, "allowed_transforms": transforms, "fields": fields},
    )
    states = read_video_states(layout, frames_key)
    rows = []
    for question_id in SPANS:
        video_id = record(question_id).video_id
        if question_id != "unscored" and video_id in states:
            values_F = np.array(scores, np.float32)
            if question_id == "nan":
                values_F[1] = np.nan
            made_from = query_digest(record(question_id)), states[video_id].checksum
            rows.append(QuestionScores(question_id, video_id, values_F, None, None, *made_from))
    commit_scores(layout, f"{name}-key", rows, writer="test")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    layout = create_cache(tmp_path / "cache")
    frames_key = add_frames(layout, "jpeg", "a", "b")
    write_questions(layout, [record(question_id) for question_id in SPANS])
    add(layout, frames_key, "good", "similarity", SCORES)
    add(layout, frames_key, "norms", "weight", [1.0, 1.0, 1.0, 1.0, 1.0])
    return layout.root


def test_by_hand(cache: Path) -> None:
    report = score_quality(cache, scorers=["good"], settings=DrawRule(2, 0.1))
    (row,) = report.rows
    assert (row.num_used, row.num_videos) == (2, 2)
    assert row.left_out == {
        quality.COVERS_ALL: 1, quality.COVERS_NOTHING: 1, quality.NO_SPANS: 1,
        quality.NO_SCORES: 1, quality.NOT_FINITE: 1, quality.NO_FRAMES: 1,
    }  # fmt: skip
    assert (report.num_questions, report.num_with_spans) == (8, 7)
    # right: 0.5 and 0.4 beat all three others; wrong: 0.1 beats none.
    assert row.measures["auc"].value == pytest.approx((1 + 0) / 2)
    # Top 2 are frames 2 and 3: all of right's evidence, none of wrong's. As many as there is
    # evidence: 2 and 1 frames, the same answer.
    assert row.measures["recall_at_k"].value == pytest.approx((1 + 0) / 2)
    assert row.measures["recall_at_evidence"].value == pytest.approx((1 + 0) / 2)
    # Segments [0, 2) and [2, 5), tau 0.1: P = (e^0, e^1) / (1 + e) and (e^2, e^1, e^0) / (...).
    e = np.e
    first, second = 1 / (1 + e), (e**2 + e) / (e**2 + e + 1)
    lifts = [second / (2 / 3), first / (1 / 2)]
    assert row.measures["lift"].value == pytest.approx(np.mean(lifts), rel=1e-5)
    assert row.measures["evidence_seen"].value == pytest.approx(np.mean([second, first]), rel=1e-5)
    assert row.measures["evidence_seen_uniform"].value == pytest.approx(np.mean([2 / 3, 1 / 2]))
    # Over the whole pool: e^0, e^1, e^4, e^3, e^2.
    total = 1 + e + e**4 + e**3 + e**2
    pool = [(e**4 + e**3) / total / (2 / 5), 1 / total / (1 / 5)]
    assert row.measures["lift_pool"].value == pytest.approx(np.mean(pool), rel=1e-5)
    # exp(entropy) of 2 and of 3 frames; a segment's share is of its own length.
    by_segment = [np.array([1, e]) / (1 + e), np.array([e**2, e, 1]) / (e**2 + e + 1)]
    effective = [np.exp(-(p * np.log(p)).sum()) for p in by_segment]
    assert row.measures["effective_frames"].value == pytest.approx(np.mean(effective), rel=1e-5)
    shares = [effective[0] / 2, effective[1] / 3]
    assert row.measures["effective_share"].value == pytest.approx(np.mean(shares), rel=1e-5)
    # Two videos: the standard error is half the difference.
    assert row.measures["auc"].standard_error == pytest.approx(0.5)


def test_standard_errors_are_clustered_by_video(cache: Path, tmp_path: Path) -> None:
    # "right" and "unknown" are about video a, "wrong" is about b: AUC 1, 1 and 0, mean 2/3.
    # Residuals add up to 2/3 in a, -2/3 in b: sqrt(2 * (4/9 + 4/9)) / 3 = 4/9; apart it were 1/3.
    file = tmp_path / "spans.json"
    file.write_text('{"right": [[0.2, 0.4]], "unknown": [[0.2, 0.4]], "wrong": [[0.0, 0.1]]}')
    (row,) = score_quality(cache, scorers=["good"], spans_file=file).rows
    assert (row.num_used, row.num_videos) == (3, 2)
    assert row.measures["auc"].value == pytest.approx(2 / 3)
    assert row.measures["auc"].standard_error == pytest.approx(4 / 9)


def test_flat_weights_are_chance_whatever_the_transform(cache: Path) -> None:
    settings = DrawRule(2, 0.4, "zscore")
    report = score_quality(cache, settings=settings)
    rows = {row.scorer: row for row in report.rows}
    assert rows["norms"].score_transform == "none" and rows["good"].score_transform == "zscore"
    for name, wanted in (("auc", 0.5), ("lift", 1.0), ("lift_pool", 1.0)):
        assert rows["norms"].measures[name].value == pytest.approx(wanted)
    assert rows["norms"].measures["effective_share"].value == pytest.approx(1.0)


def test_groups_add_up(cache: Path) -> None:
    report = score_quality(cache, scorers=["good"], by="problem_type")
    rows = {row.group: row for row in report.rows}
    assert list(rows) == ["all", "OCR", "numerical"]
    assert rows["OCR"].num_used == rows["numerical"].num_used == 1
    assert rows["OCR"].measures["auc"].value == 1 and rows["numerical"].measures["auc"].value == 0
    assert rows["numerical"].left_out == {}


def test_spans_of_a_file(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "spans.json"
    file.write_text(json.dumps({"unknown": [[0.2, 0.3]], "right": [[0, 0.2]], "other": [[1, 2]]}))
    report = score_quality(cache, scorers=["good"], spans_file=file)
    (row,) = report.rows
    assert (row.num_used, report.num_with_spans, report.num_unknown_ids) == (2, 2, 1)
    # unknown: frame 2, the best of all; right: now frames 0 and 1, the worst.
    assert row.measures["auc"].value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "holds a list"),
        ('{"right": [[2, 1]]}', "question 'right' has the span \\[2, 1\\]"),
        ('{"right": [1, 2]}', "has the span 1"),
        ('{"right": [["a", 2]]}', 'has the span \\["a", 2\\]'),
        ('{"nobody": [[1, 2]]}', "names 1 questions and none of them"),
    ],
)
def test_bad_spans_are_named(cache: Path, tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "spans.json"
    file.write_text(text)
    with pytest.raises(RecordsError, match=said):
        score_quality(cache, spans_file=file)


def test_what_cannot_be_measured_says_what_to_do(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no file at --spans"):
        score_quality(cache, spans_file=tmp_path / "no.json")
    with pytest.raises(UnknownNameError, match="--by"):
        score_quality(cache, by="colour")
    with pytest.raises(CacheError, match=r"has no scorer 'gud'.*did you mean 'good'"):
        score_quality(cache, scorers=["gud"])
    bare = create_cache(tmp_path / "bare")
    write_questions(bare, [record("unknown")])
    with pytest.raises(CacheError, match=r"give them with --spans FILE\.json"):
        score_quality(bare.root)


def test_the_page_keeps_what_is_around_the_table(cache: Path) -> None:
    report = score_quality(cache, by="problem_type", settings=DrawRule(2, 0.4, "zscore"))
    text = quality_markdown(report, "strive-cli score-quality")
    assert "| all | good | 2 | 0.500 ± 0.500 |" in text and "| norms* |" in text
    page = "# Scorers\n\nbefore\n\n" + replace_section("", BEGIN, END, "old") + "\nafter\n"
    once = replace_section(page, BEGIN, END, text)
    got = replace_section(once, BEGIN, END, text)
    assert got == once
    assert got.startswith("# Scorers\n\nbefore\n\n<!-- quality -->\n| group |")
    assert got.endswith("`strive-cli score-quality`.\n<!-- /quality -->\n\nafter\n")
    assert "old" not in got and got.count(text) == 1
    assert replace_section("a\n", BEGIN, END, "") == f"a\n\n{BEGIN}\n{END}\n"


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_fits_the_terminal(cache: Path, width: int) -> None:
    report = score_quality(cache, by="data_source")
    console = Console(width=width, record=True, file=io.StringIO())
    print_quality(report, console)
    text = console.export_text()
    assert "…" not in text and "0.500 ± 0.500" in text and "ROC-AUC" in text
    assert max(map(len, text.splitlines())) <= width


def test_no_model_is_loaded(cache: Path) -> None:
    code = (
        "import sys; sys.argv = ['strive-cli', 'score-quality', '--json', '--cache', sys.argv[1]]\n"
        "from strive.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules and 'open_clip' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(cache)], capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    assert [row["scorer"] for row in report["rows"]] == ["good", "norms"]
    assert report["rows"][0]["measures"]["auc"]["value"] == 0.5
    settings = {"frame_temperature": 0.4, "score_transform": "none", "num_segments": 16}
    assert report["settings"] == settings


@pytest.mark.parametrize(("auc", "is_below"), [(0.31, True), (0.45, False), (0.7, False)])
def test_scores_below_chance_have_a_remark(cache: Path, auc: float, is_below: bool) -> None:
    report = score_quality(cache)
    row = report.rows[0]
    measure = replace(row.measures["auc"], value=auc, standard_error=0.05)
    rows = (replace(row, measures={**row.measures, "auc": measure}), *report.rows[1:])
    console = Console(width=160, record=True, file=io.StringIO())
    print_quality(replace(report, rows=rows), console)
    assert (f"below chance: {row.scorer} " in console.export_text()) == is_below
