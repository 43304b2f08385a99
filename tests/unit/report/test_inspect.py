import dataclasses
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from strive.cache.layout import create_cache, ensure_settings, open_cache
from strive.cache.questions import write_questions
from strive.cache.scores import QuestionScores, commit_scores, query_digest
from strive.errors import CacheError, ConfigError, UnknownNameError
from strive.files import plain_json
from strive.report import inspect, inspect_html, terminal
from strive.report.inspect import InspectSettings
from strive.variants import DrawRule, draw_variants

from .conftest import FRAMES_KEY, HOSTILE, RECORDS, scores_of, write_cache


def test_summary_counts(cache: Path) -> None:
    got = inspect.summarise(cache)
    assert (got.num_questions, got.num_videos_named, got.num_videos_ok) == (5, 4, 2)
    assert got.num_videos_pending == 1
    assert got.failures_by_error == {"decode: not_a_video": 1}
    assert got.frames_per_video == {9: 1, 64: 1}
    assert got.num_videos_short == 1
    assert got.num_questions_without_frames == 2
    assert got.num_questions_with_evidence == 2
    assert got.problems == ()


def test_an_overview_of_several_sets_of_frames(cache: Path) -> None:
    layout = open_cache(cache)
    ensure_settings(layout.frames("other"), {"fields": {"codec": {"name": "raw"}}})
    got = inspect.summarise(cache)
    assert (got.frames_key, got.num_frames_keys, got.num_videos_ok) == (FRAMES_KEY, 2, 2)


def test_summary_scores_against_all_values(cache: Path) -> None:
    (row,) = inspect.summarise(cache).scorers
    everything = np.concatenate([scores_of(q).astype(np.float32) for q in "123"])
    assert row.num_scored == 3 and row.num_missing == 0
    assert row.score_mean == pytest.approx(everything.mean(), rel=1e-5)
    assert row.score_std == pytest.approx(everything.std(), rel=1e-4)
    assert (row.score_min, row.score_max) == pytest.approx((everything.min(), everything.max()))
    # Question 2 has equal scores; of 9 frames in 16 segments question 3 has none to choose from.
    assert row.flat_share == pytest.approx(2 / 3)
    assert row.constant_share == row.truncated_share == pytest.approx(1 / 3)
    # Both questions with spans have the evidence on top.
    assert row.evidence_auc == 1.0 and row.num_with_evidence == 2


def test_flat_scores_give_uniform_draws(cache: Path) -> None:
    source = inspect.open_source(cache)
    stats = inspect.view_question(source, "2").stats
    # 64 frames in 16 segments of 4, all equal: 4 effective frames, two variants share 1 in 4.
    assert stats.effective_frames == pytest.approx(4)
    assert stats.effective_share == pytest.approx(1)
    assert stats.expected_overlap == pytest.approx(1 / 4)
    assert stats.is_flat and stats.is_constant and math.isnan(stats.evidence_auc)
    assert (stats.peak_probability, stats.peak_uniform) == (0.25, 0.25)


def test_picks_are_those_of_training(cache: Path) -> None:
    source = inspect.open_source(cache)
    settings = InspectSettings(frame_temperature=0.05, num_variants=3, seed=7, step=12)
    view = inspect.view_question(source, "1", settings=settings)
    wanted = draw_variants(
        "importance", DrawRule(16, 0.05), num_frames=64, num_variants=3,
        scores_F=scores_of("1").astype(np.float32), seed=7, step=12, question_id="1",
    )  # fmt: skip
    assert np.array_equal(view.picks_MK, wanted.frame_index_MK)
    assert np.array_equal(view.probabilities_F, wanted.probabilities_F)
    assert view.evidence_F is not None and np.flatnonzero(view.evidence_F).tolist() == [21, 22]
    assert view.evidence_seen_M is not None and view.evidence_seen_M.all()
    for start, end in view.bounds_K2:
        assert view.probabilities_F[start:end].sum() == pytest.approx(1)


def test_points_redraw_the_picks_at_any_temperature(cache: Path) -> None:
    """The page's script repeats this draw; it must stay the one of `strive.variants`."""
    source = inspect.open_source(cache)
    for tau in (0.02, 0.4, 3.0):
        for step in (0, 5):
            settings = InspectSettings(frame_temperature=tau, step=step)
            view = inspect.view_question(source, "1", settings=settings)
            points_MK = inspect.importance_points(view, step)
            for m, points_K in enumerate(points_MK):
                for k, (start, end) in enumerate(view.bounds_K2):
                    running = np.cumsum(view.probabilities_F)
                    before = running[start - 1] if start else 0.0
                    point = before + points_K[k] * (running[end - 1] - before)
                    index = start
                    while index < end - 1 and running[index] <= point:
                        index += 1
                    assert index == view.picks_MK[m, k]


def test_worst_and_samples(cache: Path) -> None:
    source = inspect.open_source(cache)

    def ids(**options: object) -> list[str]:
        return [r.question_id for r in inspect.select_questions(source, count=9, **options)]  # type: ignore[arg-type]

    assert ids(worst="flat")[0] == "2"
    assert ids(worst="peaky")[0] == "1"
    assert ids(worst="truncated") == ["2"]
    assert ids() == ["1", "2", "3"]
    with pytest.raises(UnknownNameError, match="--worst 'flatt'"):
        ids(worst="flatt")
    with pytest.raises(ConfigError, match="--sample is 0"):
        inspect.select_questions(source, count=0)


def test_half_finished_caches(tmp_path: Path) -> None:
    empty = create_cache(tmp_path / "empty")
    summary = inspect.summarise(empty.root)
    assert summary.frames_key is None and summary.scorers == ()
    no_scores = write_cache(tmp_path / "frames", scored=())
    assert inspect.summarise(no_scores).num_videos_ok == 2
    with pytest.raises(CacheError, match="precompute"):
        inspect.open_source(no_scores)
    partly = write_cache(tmp_path / "partly", scored=("1",))
    (row,) = inspect.summarise(partly).scorers
    assert (row.num_scored, row.num_missing) == (1, 2)
    with pytest.raises(CacheError, match="question '3' has no current 'siglip2' scores"):
        inspect.view_question(inspect.open_source(partly), "3")
    with pytest.raises(CacheError, match="no cache at"):
        inspect.summarise(tmp_path / "absent")


def add_scorer(cache: Path, name: str, scores_F: np.ndarray, kind: str = "similarity") -> None:
    layout = open_cache(cache)
    transforms = ["none"] if kind == "weight" else ["none", "zscore"]
    settings = {
        "name": name, "kind": kind, "allowed_transforms": transforms,
        "fields": {"frames_key": FRAMES_KEY},
    }  # fmt: skip
    ensure_settings(layout.scores(f"{name}-x"), settings)
    checksum = inspect.open_source(cache, "siglip2").frames.row("clips/a.mp4")["checksum"]
    digest = query_digest(RECORDS[0])
    row = QuestionScores("1", "clips/a.mp4", scores_F, None, None, digest, checksum)
    commit_scores(layout, f"{name}-x", [row], writer="s0of1")


def test_broken_scores_are_problems_and_not_crashes(cache: Path) -> None:
    add_scorer(cache, "nan", np.full(64, np.nan, np.float32))
    add_scorer(cache, "short", np.zeros(60, np.float32))
    summary = inspect.summarise(cache)
    assert len(summary.scorers) == 3
    assert any("nan: 1 questions have scores that are not finite" in p for p in summary.problems)
    assert any("short: 1 questions have not one score per frame" in p for p in summary.problems)
    console = Console(width=80, record=True, file=io.StringIO())
    terminal.print_summary(summary, console)
    assert "not finite" in console.export_text()


def test_weights_are_normalised_and_refuse_transforms(cache: Path) -> None:
    weights_F = np.arange(64, dtype=np.float32)
    add_scorer(cache, "gradient", weights_F, kind="weight")
    view = inspect.view_question(inspect.open_source(cache, "gradient"), "1")
    assert view.probabilities_F[4:8] == pytest.approx(weights_F[4:8] / weights_F[4:8].sum())
    settings = InspectSettings(score_transform="zscore")
    overview = {row.name: row for row in inspect.summarise(cache, settings=settings).scorers}
    assert overview["gradient"].score_transform == "none"
    assert overview["siglip2"].score_transform == "zscore"
    with pytest.raises(ConfigError, match="score_transform"):
        inspect.summarise(cache, "gradient", settings=settings)
    with pytest.raises(CacheError, match="several scorers"):
        inspect.open_source(cache)


def test_unknown_question(cache: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown question '99'"):
        inspect.view_question(inspect.open_source(cache), "99")


def test_machine_form_is_json(cache: Path) -> None:
    view = inspect.view_question(inspect.open_source(cache), "2")
    for value in (plain_json(inspect.summarise(cache)), inspect.view_json(view)):
        text = json.dumps(value, allow_nan=False)
        assert json.loads(text)
    row = inspect.view_json(view)
    assert (row["video"]["video_id"], row["video"]["num_frames"]) == ("clips/a.mp4", 64)
    assert row["stats"]["evidence_auc"] is None
    assert len(row["picks_MK"]) == 2 and len(row["picks_MK"][0]) == 16


@pytest.mark.parametrize("width", [80, 160])
def test_terminal_views_fit_the_width(cache: Path, width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    source = inspect.open_source(cache)
    terminal.print_summary(inspect.summarise(cache), console)
    rows = inspect.select_questions(source, count=3, worst="flat")
    terminal.print_questions(rows, console, title="Worst")
    for question_id in "123":
        terminal.print_question(inspect.view_question(source, question_id), console)
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= width
    assert "evidence" in text and "▲" in text
    # Rich markup in a question is text, not style.
    assert HOSTILE in text and "<b>green</b>" in text


def test_rich_markup_in_questions_is_plain_text(cache: Path) -> None:
    source = inspect.open_source(cache)
    view = inspect.view_question(source, "1")
    record = dataclasses.replace(view.record, problem="[red]x[/red] [/]", video_id="[bold]v")
    console = Console(width=80, record=True, file=io.StringIO())
    terminal.print_question(dataclasses.replace(view, record=record), console)
    text = console.export_text()
    assert "[red]x[/red] [/]" in text and "[bold]v" in text


def test_a_wide_pool_is_wrapped(cache: Path) -> None:
    view = inspect.view_question(inspect.open_source(cache), "1")
    console = Console(width=50, record=True, file=io.StringIO())
    terminal.print_question(view, console)
    text = console.export_text()
    assert text.count("score  ") >= 2 and "(35" not in text


def test_sparkline() -> None:
    assert terminal.sparkline([0, 0.5, 1], 0, 1) == "▁▅█"
    assert terminal.sparkline([3, 3], 3, 3) == "▁▁"


def test_inspecting_loads_no_torch(cache: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from strive.report import inspect, inspect_html;"
        f"source = inspect.open_source(Path({str(cache)!r}));"
        "inspect_html.render_inspect_page(source, [inspect.view_question(source, '1')]);"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def text_of(summary: inspect.DatasetSummary) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    terminal.print_summary(summary, console)
    return " ".join(console.export_text().split())


def test_one_word_for_a_p_that_is_nearly_uniform(cache: Path) -> None:
    # Question 1 has evidence at +0.5, question 2 equal scores; 3 has 9 frames for 16 segments.
    hot = inspect.summarise(cache, settings=InspectSettings(frame_temperature=50.0))
    (row,) = hot.scorers
    assert row.flat_share == 1.0 and row.constant_share == pytest.approx(1 / 3)
    assert row.peak is not None and row.peak.is_flat and row.peak.num_questions == 2
    shown = text_of(hot)
    assert "100.0 % of uniform" in shown and "flat │ 100.0 % of questions" in shown
    assert "P 0.25, uniform 0.25: within 10 % of it, so frames are drawn at random" in shown
    cold = inspect.summarise(cache, settings=InspectSettings(frame_temperature=0.05))
    assert cold.scorers[0].flat_share == pytest.approx(2 / 3)


def test_stale_scores_are_counted_and_not_shown(cache: Path) -> None:
    write_questions(
        open_cache(cache), [dataclasses.replace(RECORDS[0], problem="What size is it?")]
    )
    summary = inspect.summarise(cache)
    (row,) = summary.scorers
    assert (row.num_scored, row.num_missing, row.num_stale) == (2, 1, 1)
    assert "1 have scores of an earlier text or of earlier frames" in text_of(summary)
    with pytest.raises(CacheError, match=r"no current 'siglip2' scores \(.*an earlier text\)"):
        inspect.view_question(inspect.open_source(cache), "1")


def test_suggested_temperatures(cache: Path) -> None:
    source = inspect.open_source(cache, "siglip2")
    raw, scaled = inspect.suggest_temperatures(source, InspectSettings())
    # Question 2 is constant and 3 leaves no choice. The median of two is half way between P of
    # question 1 and 0.25: 0.5 where P is 0.75. Its best frame scores 0.5 above two neighbours and
    # beside another of evidence, so P tends to 1 as tau falls.
    for row in (raw, scaled):
        assert row.peak is not None and row.peak.probability == pytest.approx(0.5, abs=0.02)
        assert row.peak.num_questions == 2 and row.peak.uniform == 0.25
    console = Console(width=100, record=True, file=io.StringIO())
    terminal.print_suggestions((raw, scaled), source, console)
    shown = console.export_text()
    assert "where the best frame has P 0.5" in shown and "--set frame_temperature=" in shown
    weights_F = np.arange(64, dtype=np.float32)
    add_scorer(cache, "gradient", weights_F, kind="weight")
    with pytest.raises(ConfigError, match="'gradient' are weights"):
        inspect.suggest_temperatures(inspect.open_source(cache, "gradient"), InspectSettings())


def test_pools_that_leave_no_choice_have_no_peak(cache: Path) -> None:
    settings = InspectSettings(num_segments=100)
    summary = inspect.summarise(cache, settings=settings)
    assert summary.scorers[0].peak is None and "peak" not in text_of(summary).split("flat")[0]
    source = inspect.open_source(cache)
    view = inspect.view_question(source, "1", settings=settings)
    assert "<th" in inspect_html.render_inspect_page(source, [view], summary=summary)
    assert plain_json(summary)["scorers"][0]["peak"] is None
