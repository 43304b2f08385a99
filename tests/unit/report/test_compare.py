"""Two scorers side by side: figures by hand, one question at a time, and what a terminal shows."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from strive import variants
from strive.cache.frames import read_video_states
from strive.cache.layout import ensure_settings, open_cache
from strive.cache.scores import QuestionScores, commit_scores, query_digest
from strive.errors import CacheError, ConfigError
from strive.report.compare import CompareSource, compare_scorers
from strive.report.scores import InspectSettings
from strive.report.terminal import print_compared, print_comparison

from .conftest import FRAMES_KEY, RECORDS, scores_of


def add_scorer(cache: Path, name: str, change: object, *, frames_key: str = FRAMES_KEY) -> None:
    """Score questions 1 to 3 by a change of what the first scorer says."""
    layout = open_cache(cache)
    fields = {"frames_key": frames_key, "model": name}
    ensure_settings(
        layout.scores(f"{name}-key"),
        {"name": name, "kind": "similarity", "allowed_transforms": ["none"], "fields": fields},
    )
    states = read_video_states(layout, FRAMES_KEY)
    rows = [
        QuestionScores(
            r.question_id,
            r.video_id,
            change(scores_of(r.question_id)),  # type: ignore[operator]
            3,
            False,
            query_digest(r),
            states[r.video_id].checksum,
        )
        for r in RECORDS[:3]
    ]
    commit_scores(layout, f"{name}-key", rows, writer="test")


def test_a_scorer_that_says_the_same_louder(cache: Path) -> None:
    add_scorer(cache, "louder", lambda scores_F: 2 * scores_F + 1)
    source = CompareSource(cache, "siglip2", "louder")
    got = compare_scorers(source)
    assert (got.num_only_first, got.num_only_second, len(got.questions)) == (0, 0, 3)
    assert got.means["spearman"].value == pytest.approx(1)
    assert got.means["top_k_jaccard"].value == pytest.approx(1)
    assert got.auc_difference is not None and got.auc_difference.difference == 0
    # Question 2 is flat: its ranks say nothing, and it comes last.
    assert got.questions[-1].question_id == "2" and math.isnan(got.questions[-1].spearman)
    assert got.means["spearman"].num_samples == 2
    row = next(row for row in got.questions if row.question_id == "1")
    p_F, other_F = (view.probabilities_F for view in source.views("1"))
    assert row.p_correlation == pytest.approx(np.corrcoef(p_F, other_F)[0, 1])
    # The chance that both draws of a segment are the same frame, summed frame by frame.
    bounds_K2 = variants.segment_bounds(64, 16)
    wanted = np.mean([sum(p_F[t] * other_F[t] for t in range(a, b)) for a, b in bounds_K2])
    assert row.expected_overlap == pytest.approx(wanted)


def test_a_scorer_that_says_the_contrary(cache: Path) -> None:
    add_scorer(cache, "contrary", lambda scores_F: -scores_F)
    got = compare_scorers(CompareSource(cache, "siglip2", "contrary"))
    assert got.means["spearman"].value == pytest.approx(-1)
    # Under the first the evidence of both questions is on top, under the other at the bottom.
    assert got.auc_difference is not None
    assert got.auc_difference.difference == pytest.approx(1)


def test_weights_are_compared_as_they_are(cache: Path) -> None:
    add_scorer(cache, "plain", lambda scores_F: scores_F)  # allows no transform
    settings = InspectSettings(score_transform="zscore")
    source = CompareSource(cache, "siglip2", "plain", settings)
    assert [rule.score_transform for rule in source.rules] == ["zscore", "none"]
    first, second = source.views(compare_scorers(source).questions[0].question_id)
    assert first.settings.score_transform == "zscore"
    assert second.settings.score_transform == "none"
    assert compare_scorers(source).means["p_correlation"].value < 1


def test_what_cannot_be_compared(cache: Path) -> None:
    with pytest.raises(ConfigError, match="names one scorer twice"):
        CompareSource(cache, "siglip2", "siglip2-test")
    ensure_settings(open_cache(cache).frames("other"), {"fields": {"codec": {"name": "raw"}}})
    add_scorer(cache, "elsewhere", lambda scores_F: scores_F, frames_key="other")
    with pytest.raises(CacheError, match="only scores of the same frames"):
        CompareSource(cache, "siglip2", "elsewhere")


@pytest.mark.parametrize("width", [80, 160])
def test_terminal(cache: Path, width: int) -> None:
    add_scorer(cache, "contrary", lambda scores_F: -scores_F)
    source = CompareSource(cache, "siglip2", "contrary")
    comparison = compare_scorers(source)
    console = Console(width=width, record=True, file=io.StringIO())
    print_comparison(comparison, console)
    row = comparison.questions[0]
    print_compared(row, source.views(row.question_id), source.names, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for wanted in ("-1.000 ± 0.000", "+1.000", "What colour is the square?", "contrary"):
        assert wanted in text
