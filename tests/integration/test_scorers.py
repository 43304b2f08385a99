"""Every scorer of the package through the whole stage, on clips of the lab's world."""

import dataclasses
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from strive.cache.frames import FrameReader
from strive.cache.layout import open_cache, read_settings
from strive.cache.scores import ScoreReader, query_of
from strive.cache.verify import verify_cache
from strive.commands.offline import print_estimate, print_precompute
from strive.configs.schema import PrecomputeConfig
from strive.lab.models import lab_model_path
from strive.lab.world import build_world
from strive.pipeline.run import PrecomputeSummary, precompute
from strive.records import Record, read_records, write_records
from strive.report.inspect import summarise
from strive.report.quality import STALE, score_quality
from strive.scorers import ScorerRequest, SplitScorer, cosines, load_scorer

MODELS = {
    "siglip2": "siglip2",
    "llava_ov": "llava_ov",
    "policy": "qwen2_5_vl",
    "gradient": "qwen3_vl",
}
PATHS = {name: str(lab_model_path(model)) for name, model in MODELS.items()}
SCORERS = (*MODELS, "random", "oracle")
LONG = "Which colour does the shape have that is seen last? " * 12


@dataclasses.dataclass(frozen=True)
class Run:
    root: Path
    data: Path
    cache: Path
    records: tuple[Record, ...]

    def precompute(self, cache: Path | None = None, **changes: Any) -> PrecomputeSummary:
        values: dict[str, Any] = {
            "data": (self.data,),
            "video_root": self.root,
            "cache": cache or self.cache,
            "scorers": SCORERS,
            "scorer_models": PATHS,
            "frames": 16,
            "workers": 1,
        }
        return precompute(PrecomputeConfig(**{**values, **changes}))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("world")
    build_world(root, num_clips=3, seed=3)
    records = list(read_records(sorted(root.glob("*.jsonl"))).records)
    records[0] = dataclasses.replace(records[0], evidence_spans_seconds=None)
    records[1] = dataclasses.replace(records[1], problem=LONG)
    data = root / "changed" / "records.jsonl"
    data.parent.mkdir()
    write_records(data, records)
    made = Run(root, data, tmp_path_factory.mktemp("cache") / "cache", tuple(records))
    summary = made.precompute()
    assert summary.num_failed == 0 and summary.num_unscorable == 1
    assert verify_cache(made.cache) == []
    return made


def unit_rows(x_ND: np.ndarray) -> np.ndarray:
    unit_ND: np.ndarray = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    return unit_ND


def rows_of(cache: Path, key: str) -> dict[str, np.ndarray]:
    reader = ScoreReader(open_cache(cache), key)
    found = {name: reader.get(name) for name in reader.question_ids}
    return {name: row.scores_F for name, row in found.items() if row is not None}


def keys_of(cache: Path) -> dict[str, str]:
    layout = open_cache(cache)
    return {str(read_settings(layout.scores(key))["name"]): key for key in layout.scorer_keys()}


def test_every_question_has_every_score_but_those_without_spans(run: Run) -> None:
    asked = {record.question_id for record in run.records}
    for name, key in keys_of(run.cache).items():
        missing = asked - set(rows_of(run.cache, key))
        assert missing == ({run.records[0].question_id} if name == "oracle" else set()), name


@pytest.mark.parametrize("name", sorted(MODELS))
def test_stored_scores_are_the_scorer_on_the_stored_frames(run: Run, name: str) -> None:
    # To the last bit, though the run filled its batches with frames of several videos.
    scorer = load_scorer(name, ScorerRequest(model=PATHS[name]))
    layout = open_cache(run.cache)
    reader = FrameReader(layout, layout.frames_keys()[0])
    rows = rows_of(run.cache, keys_of(run.cache)[name])
    for record in run.records:
        row = reader.row(record.video_id)
        frames = reader.read(record.video_id, range(row["num_frames"]))
        query = query_of(record)
        if isinstance(scorer, SplitScorer):
            stored = unit_rows(scorer.embed_frames(frames)).astype(np.float16)
            expected = cosines(stored, unit_rows(scorer.embed_questions([query]))[0])
        else:
            times = np.asarray(row["pts_seconds"])
            joint: Any = scorer
            expected = joint.score(frames, query, pts_seconds_F=times)
        np.testing.assert_array_equal(rows[record.question_id], expected)


def test_trained_scorers_and_the_oracle_find_the_evidence(run: Run) -> None:
    keys = keys_of(run.cache)
    layout = open_cache(run.cache)
    reader = FrameReader(layout, layout.frames_keys()[0])
    gaps: dict[str, list[float]] = {name: [] for name in SCORERS}
    for record in run.records[2:]:
        times = np.asarray(reader.row(record.video_id)["pts_seconds"])
        inside = np.zeros(len(times), bool)
        for start, end in record.evidence_spans_seconds or ():
            inside |= (times >= start) & (times < end)
        if 0 < inside.sum() < len(times):
            for name in SCORERS:
                scores = rows_of(run.cache, keys[name])[record.question_id]
                higher = scores[inside][:, None] > scores[~inside]
                gaps[name].append(float(higher.mean()))
    means = {name: np.mean(values) for name, values in gaps.items()}
    assert means["oracle"] == 1.0
    assert means["siglip2"] > 0.9 and means["llava_ov"] > 0.9 and means["random"] < 0.75


def test_again_is_nothing_to_do_and_one_by_one_is_the_same(run: Run, tmp_path: Path) -> None:
    again = run.precompute()
    assert again.num_decoded == again.num_embedded == again.num_scored == 0
    for name in SCORERS:
        models = {name: PATHS[name]} if name in PATHS else {}
        run.precompute(tmp_path / "cache", scorers=(name,), scorer_models=models)
    keys = keys_of(run.cache)
    assert keys_of(tmp_path / "cache") == keys
    for key in keys.values():
        wanted, found = rows_of(run.cache, key), rows_of(tmp_path / "cache", key)
        assert set(found) == set(wanted)
        for question_id, scores in found.items():
            np.testing.assert_array_equal(scores, wanted[question_id])


def test_chunk_mean_is_another_key_and_cuts_nothing(run: Run) -> None:
    key = keys_of(run.cache)["siglip2"]
    long_id = run.records[1].question_id
    cut = ScoreReader(open_cache(run.cache), key).get(long_id)
    assert cut is not None and cut.text_truncated
    summary = run.precompute(
        scorers=("siglip2",), scorer_models={"siglip2": PATHS["siglip2"]}, long_text="chunk-mean"
    )
    assert summary.num_decoded == 0 and summary.scorer_keys["siglip2"] != key
    whole = ScoreReader(open_cache(run.cache), summary.scorer_keys["siglip2"]).get(long_id)
    assert whole is not None and whole.text_truncated is False
    assert whole.num_text_tokens == cut.num_text_tokens and cut.num_text_tokens > 64
    assert (whole.scores_F != cut.scores_F).any()


def test_a_changed_record_makes_every_scorers_scores_of_it_stale(run: Run, tmp_path: Path) -> None:
    cache = shutil.copytree(run.cache, tmp_path / "cache")
    keys = run.precompute(cache).scorer_keys  # other tests may have added others of these names
    data = tmp_path / "records.jsonl"
    text, spans = run.records[2].question_id, run.records[3].question_id
    changed = list(run.records)
    changed[2] = dataclasses.replace(changed[2], problem="What else is there?")
    changed[3] = dataclasses.replace(changed[3], evidence_spans_seconds=((0.0, 0.5),))
    write_records(data, changed)
    # One scorer is run again; the cache now holds the new text for all.
    summary = run.precompute(cache, data=(data,), scorers=("random",), scorer_models={})
    assert summary.num_scored == 1
    for name in SCORERS:
        reader = ScoreReader(open_cache(cache), keys[name])
        wanted = {} if name == "random" else {text: "text"}
        if name == "oracle":  # its scores are made from the spans
            wanted |= {spans: "text"}
        assert reader.stale == wanted, name
        assert (text in reader) == (name == "random") and len(reader.question_ids) > 3
    rows = {row.key: row for row in summarise(cache).scorers}
    missing = {n: (rows[keys[n]].num_stale, rows[keys[n]].num_missing) for n in SCORERS}
    assert missing["random"] == (0, 0) and missing["siglip2"] == (1, 1)
    assert missing["oracle"] == (2, 3)  # one question has no spans
    quality = score_quality(cache, scorers=(keys["siglip2"], keys["random"]))
    left_out = {row.key: row.left_out for row in quality.rows}
    assert left_out[keys["siglip2"]].get(STALE) == 1 and STALE not in left_out[keys["random"]]
    # Made anew, they are what they were for what did not change.
    again = run.precompute(
        cache,
        data=(data,),
        scorers=("siglip2", "oracle"),
        scorer_models={"siglip2": PATHS["siglip2"]},
    )
    assert again.num_scored == 3
    assert not ScoreReader(open_cache(cache), keys["oracle"]).stale
    before, after = rows_of(run.cache, keys["siglip2"]), rows_of(cache, keys["siglip2"])
    different = {name for name in before if (before[name] != after[name]).any()}
    assert different == {text}


def test_the_summary_says_what_training_will_make_of_scores_and_solutions(
    run: Run, tmp_path: Path
) -> None:
    data = tmp_path / "records.jsonl"
    unmatched = [dataclasses.replace(record, solution="?!") for record in run.records]
    write_records(data, unmatched)
    training = tmp_path / "training.yaml"
    training.write_text("num_frames: 4\nframe_temperature: 0.4\n")
    options = {"data": (data,), "for_config": str(training)}
    summary = run.precompute(shutil.copytree(run.cache, tmp_path / "cache"), **options)
    peak = summary.peaks["policy"]
    assert peak is not None and peak.is_flat and peak.uniform == 0.25
    strong = summary.peaks["random"]
    assert strong is not None and not strong.is_flat and strong.probability > 0.5
    assert summary.unmatched is not None and summary.unmatched.num_unmatched == len(unmatched)
    console = Console(width=300, record=True, file=io.StringIO())
    print_precompute(summary, console)
    shown = " ".join(console.export_text().split())
    assert "solutions can never be earned under grading video_r1" in shown
    assert "inspect-scores --scorer policy --suggest-temperature" in shown
    dry = run.precompute(
        tmp_path / "none", scorers=("random",), scorer_models={}, dry_run=True, **options
    )
    assert dry.unmatched is not None and dry.peaks == {}
    print_estimate(dry, console)
    assert "can never be earned" in " ".join(console.export_text().split())
