"""The controls: scores without pixels, and why they depend on nothing else."""

import numpy as np
import pytest

from strive.errors import ConfigError
from strive.records import Record
from strive.scorers import FrameFreeScorer, JointScorer, ScorerRequest, SplitScorer
from strive.scorers import load_scorer as load

TIMES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.5])


def record(question_id: str = "7", spans: tuple[tuple[float, float], ...] | None = None) -> Record:
    return Record(question_id, "a.mp4", "What?", "free-form", (), "<answer>a</answer>", "", spans)


def made(name: str, model: str | None = None) -> FrameFreeScorer:
    scorer = load(name, ScorerRequest(model=model))
    assert isinstance(scorer, FrameFreeScorer)
    assert not isinstance(scorer, (SplitScorer, JointScorer))
    return scorer


def test_random_depends_on_seed_and_question_alone() -> None:
    scores = made("random").score_record(record(), TIMES)
    assert scores is not None and scores.dtype == np.float32 and scores.shape == (6,)
    np.testing.assert_array_equal(made("random", "0").score_record(record(), TIMES + 9), scores)
    for other in (
        made("random", "1").score_record(record(), TIMES),
        made("random").score_record(record("8"), TIMES),
    ):
        assert other is not None and (other != scores).all()


def test_random_scores_are_standard_normal() -> None:
    rows = [made("random").score_record(record(str(i)), np.zeros(64)) for i in range(200)]
    values = np.concatenate([row for row in rows if row is not None])
    assert abs(values.mean()) < 0.03 and abs(values.std() - 1) < 0.03


def test_oracle_knows_half_open_spans() -> None:
    spans = ((0.5, 1.0), (2.0, 9.0))
    scores = made("oracle").score_record(record(spans=spans), TIMES)
    assert scores is not None and scores.dtype == np.float32
    assert scores.tolist() == [0, 1, 0, 0, 1, 1]
    scores = made("oracle", "0.25").score_record(record(spans=spans), TIMES)
    assert scores is not None and scores.tolist() == [0, 0.25, 0, 0, 0.25, 0.25]


def test_oracle_cannot_score_without_spans() -> None:
    assert made("oracle").score_record(record(), TIMES) is None
    assert made("oracle").score_record(record(spans=()), TIMES) is None
    assert made("oracle").needs_spans  # type: ignore[attr-defined] # optional for scorers


def test_settings_are_in_the_identity() -> None:
    identities = [
        made(name, model).identity()
        for name, model in (("random", None), ("random", "3"), ("oracle", None), ("oracle", "0.3"))
    ]
    assert [identity["model"] for identity in identities] == [
        "seed-0",
        "seed-3",
        "gap-1",
        "gap-0.3",
    ]


@pytest.mark.parametrize(
    ("name", "model"),
    [("random", "many"), ("random", "0.5"), ("oracle", "wide"), ("oracle", "nan")],
)
def test_wrong_settings_are_named(name: str, model: str) -> None:
    with pytest.raises(ConfigError, match=f"'{model}'; write --scorer-model {name}="):
        load(name, ScorerRequest(model=model))
