import math

import numpy as np
import pytest

from strive.train.advantages import group_advantages
from strive.train.metrics import GroupOutcome, completion_rows, summarise, variant_agreement


def outcome(accuracy_MG, *, answers=None, evidence=None, question_id="q", with_accuracy=True):
    accuracy_MG = np.array(accuracy_MG, float)
    shape = accuracy_MG.shape
    advantages_MG, measures = group_advantages(accuracy_MG)
    return GroupOutcome(
        question_id=question_id,
        frame_index_MK=np.arange(shape[0] * 2).reshape(shape[0], 2),
        frame_overlap=0.5 if shape[0] > 1 else float("nan"),
        effective_frames=2.0,
        evidence_seen_M=None if evidence is None else np.array(evidence),
        texts=tuple(tuple("t" for _ in range(shape[1])) for _ in range(shape[0])),
        answers=answers or tuple(tuple("A" for _ in range(shape[1])) for _ in range(shape[0])),
        lengths_MG=np.full(shape, 4),
        truncated_MG=accuracy_MG < 1,
        parsed_MG=accuracy_MG >= 0,
        rewards_MG=accuracy_MG,
        rewards_by_name={"accuracy": accuracy_MG} if with_accuracy else {"own": accuracy_MG},
        advantages_MG=advantages_MG,
        measures=measures,
        problem_type="multiple choice",
    )


def test_variant_agreement_by_hand():
    # Pairs across the two variants: (A,A) (A,B) (B,A) (B,B): half agree.
    assert variant_agreement([["A", "B"], ["A", "B"]]) == 0.5
    assert variant_agreement([["A", "A"], ["A", "A"]]) == 1
    assert math.isnan(variant_agreement([["A", "B"]]))
    # Three variants: 2 of 4 pairs agree between the first two, 0 of 4 between the first and the
    # last, 1 of 4 between the last two: (0.5 + 0 + 0.25) / 3.
    assert variant_agreement([["A", "A"], ["A", "C"], ["C", "B"]]) == 0.25


def test_summary_by_hand():
    groups = [
        outcome([[1, 1], [1, 1]], evidence=[True, True]),  # zero-std, all right
        outcome([[0, 0], [0, 0]]),  # zero-std, all wrong, no spans
        outcome([[1, 1], [0, 0]], evidence=[True, False]),  # signal, all of it between variants
        outcome([[1, 0], [1, 0]], evidence=[False, False]),  # signal, all of it within
    ]
    metrics = summarise(groups)
    assert metrics["reward/mean"] == metrics["reward/accuracy"] == 0.5
    assert metrics["group/zero_std_fraction"] == 0.5
    assert metrics["group/accuracy_zero_std_fraction"] == 0.5
    assert metrics["group/all_correct_fraction"] == metrics["group/all_wrong_fraction"] == 0.25
    # std (ddof 1) of 1, 1, 0, 0 is sqrt(1/3) = 0.57735, in two of four groups.
    assert metrics["group/reward_std"] == pytest.approx(0.57735 / 2, abs=1e-5)
    assert metrics["group/between_variant_share"] == pytest.approx(0.5)  # 1 and 0
    assert metrics["group/mixed_evidence_fraction"] == pytest.approx(1 / 3)
    assert metrics["variants/evidence_seen"] == pytest.approx(0.5)
    assert metrics["completion/truncated_fraction"] == 0.5
    assert metrics["completion/length_mean"] == 4
    assert metrics["variants/frame_overlap"] == 0.5


def test_what_does_not_apply_is_nan():
    metrics = summarise([outcome([[1, 1]], with_accuracy=False)])
    for name in (
        "group/between_variant_share",
        "group/variant_agreement",
        "group/mixed_evidence_fraction",
        "variants/frame_overlap",
        "variants/evidence_seen",
    ):
        assert math.isnan(metrics[name]), name
    assert metrics["reward/own"] == 1
    # Of a reward that the run does not have there is no metric.
    of_accuracy = {"accuracy_zero_std_fraction", "all_correct_fraction", "all_wrong_fraction"}
    assert not {f"group/{name}" for name in of_accuracy} & metrics.keys()


def test_completion_rows():
    rows = completion_rows(outcome([[1, 0], [0, 0]], evidence=[True, False]), step=7)
    assert len(rows) == 4
    assert [(row["variant"], row["generation"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert rows[0]["reward_accuracy"] == 1 and rows[0]["advantage"] > 0 and rows[0]["step"] == 7
    assert rows[2]["frame_index"] == [2, 3] and rows[2]["evidence_seen"] is False
    assert completion_rows(outcome([[1, 0]]), step=1)[0]["evidence_seen"] is None
