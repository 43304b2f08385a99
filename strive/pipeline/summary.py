"""The report of a call of the offline stage, and the error of one on which too much failed."""

from dataclasses import dataclass, field
from pathlib import Path

from strive.answers import Unmatched, find_unmatched
from strive.cache.frames import read_video_states
from strive.cache.layout import CacheLayout
from strive.cache.scores import ScoreReader, read_score_states
from strive.configs.schema import PrecomputeConfig, TrainConfig
from strive.errors import TooManyFailuresError, way_out
from strive.pipeline.estimate import Estimate
from strive.pipeline.options import make_frames_key
from strive.pipeline.part import StageCounts
from strive.pipeline.work import NO_TEXT, SelectedRecords, Work
from strive.variants import DrawRule, Peak, typical_peak

MAX_WAYS_SHOWN = 2
"""Of how many kinds of failure, the most frequent first, an error says what to do."""

# What a user can turn when a part of the work is the one that all others wait for.
_KNOBS = {
    "decode": "decoding; more cores and --workers, --shard i/n, or --frame-plan keyframe",
    "prepare": "reading frames back and preparing them; --shard i/n, or a smaller --max-pixels",
    "embed": "the models; a GPU, a smaller --scorer-model, --shard i/n or --engine ray",
    "write": "writing; a faster disk under --cache, or --frame-codec jpeg",
}


@dataclass(slots=True, kw_only=True)
class PrecomputeSummary(StageCounts):
    """The work of a call, and what the cache now holds of what was asked for."""

    cache: Path
    frames_key: str
    scorer_keys: dict[str, str] = field(default_factory=dict)
    num_videos: int = 0
    num_questions: int = 0
    num_image_rows: int = 0
    num_bad_rows: int = 0  # left out, as the call allows
    num_ok: int = 0
    redone: list[str] = field(default_factory=list)  # cached by rules that may have erred
    truncated_share: dict[str, float | None] = field(default_factory=dict)
    # How far the draws of the run that was named (else of the paper's settings) are from uniform,
    # by scorer, and which solutions no answer can earn under its grading.
    peaks: dict[str, Peak | None] = field(default_factory=dict)
    draws: str = ""  # the settings of those draws
    unmatched: Unmatched | None = None
    engine: str = "local"  # with what a cluster has
    num_workers: int = 0
    num_nodes_used: int = 1
    total_seconds: float = 0.0
    run_seconds: float = 0.0  # wall time between the first video and the last commit
    nothing_to_do: bool = False
    interrupted: bool = False
    subset_file: Path | None = None
    estimate: Estimate | None = None
    time_shares: dict[str, float] = field(default_factory=dict)
    bottleneck: str = ""

    def explain_time(self) -> None:
        """Fill `time_shares` and `bottleneck` from the seconds.

        Shares are of the run's wall time: `decode` of all workers' time together, `embed` in which
        a model was at work, `waiting` in which neither the models nor the writer were.
        """
        wall = self.run_seconds
        if wall <= 0:
            return
        shares = {
            "decode": self.decode_seconds / (wall * max(self.num_workers, 1)),
            "prepare": self.prepare_seconds / wall,
            "embed": self.embed_wall_seconds / wall,
            "write": self.write_seconds / wall,
        }
        shares = {name: min(share, 1.0) for name, share in shares.items()}
        shares["waiting"] = max(0.0, 1.0 - max(shares["embed"], shares["write"]))
        self.time_shares = shares
        slowest = max(_KNOBS, key=lambda name: shares[name])
        if self.num_decoded + self.num_embedded + self.num_scored:
            self.bottleneck = _KNOBS[slowest]


def new_summary(
    options: PrecomputeConfig, selected: SelectedRecords, work: Work
) -> PrecomputeSummary:
    """Return the summary of a call whose work has not begun."""
    summary = PrecomputeSummary(
        cache=options.cache,
        frames_key=make_frames_key(options),
        scorer_keys={scorer.session.name: scorer.session.key for scorer in work.scorers},
        num_videos=len(selected.by_video),
        num_questions=len(selected.records),
        num_image_rows=selected.num_image_rows,
        num_bad_rows=selected.num_bad_rows,
        num_unscorable=sum(scorer.num_unscorable for scorer in work.scorers),
        nothing_to_do=work.is_empty,
        redone=list(work.redone),
    )
    summary.failed = {name: failure.error for name, failure in work.known_failures.items()}
    summary.failed_questions = {
        name: failure.error for name, failure in work.known_question_failures.items()
    } | {row.question_id: row.error for row in work.new_failures if row.question_id is not None}
    return summary


def count_results(
    training: TrainConfig,
    layout: CacheLayout,
    selected: SelectedRecords,
    work: Work,
    summary: PrecomputeSummary,
) -> None:
    """Count what the cache now holds of what was asked for."""
    for video_id, records in selected.by_video.items():
        errors = [summary.failed_questions.get(record.question_id) for record in records]
        # One bad question is no bad video, and one without a text is nobody's failure.
        if None not in errors and any(error != NO_TEXT for error in errors):
            error = next(error for error in errors if error not in (None, NO_TEXT))
            summary.failed.setdefault(video_id, str(error))
    summary.num_ok = summary.num_videos - summary.num_failed
    if summary.interrupted or summary.estimate is not None:
        cached = read_video_states(layout, summary.frames_key)
        summary.num_ok = sum(video_id in cached for video_id in selected.by_video)
    rule = DrawRule(training.num_frames, training.frame_temperature, training.score_transform)
    question_ids = {record.question_id for record in selected.records}
    for scorer in work.scorers:
        states = read_score_states(layout, scorer.session.key)
        truncated = [
            state.text_truncated
            for question_id, state in states.items()
            if question_id in question_ids and state.text_truncated is not None
        ]
        share = sum(truncated) / len(truncated) if truncated else None
        summary.truncated_share[scorer.session.name] = share
        if question_ids & states.keys():
            reader = ScoreReader(layout, scorer.session.key, selected.records)
            found = (reader.get(record.question_id) for record in selected.records)
            summary.peaks[scorer.session.name] = typical_peak(
                [scores.scores_F for scores in found if scores],
                reader.draw_rule(rule, drop_transform=True),
            )
    summary.draws = (
        f"at frame_temperature {training.frame_temperature:g}, score_transform "
        f"{training.score_transform}"
    )
    summary.unmatched = find_unmatched(selected.records, training.grading)


def check_failures(options: PrecomputeConfig, summary: PrecomputeSummary) -> None:
    """Refuse a call on which more of the videos, or of the questions, failed than it allows.

    Raises:
        TooManyFailuresError: with what failed most, and what can be done about it.
    """
    # Questions without a text are told and counted; no scorer could have done better.
    questions = {
        error: count
        for error, count in summary.failed_questions_by_error.items()
        if error != NO_TEXT
    }
    for what, errors, total in (
        ("videos", summary.failed_by_error, summary.num_videos),
        ("questions", questions, summary.num_questions),
    ):
        num_failed = sum(errors.values())
        if num_failed <= options.max_failure_fraction * total:
            continue
        ranked = sorted(errors.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{count} {error}" for error, count in ranked)
        ways = "; ".join(f"{error}: {way_out(error)}" for error, _ in ranked[:MAX_WAYS_SHOWN])
        raise TooManyFailuresError(
            f"{num_failed} of {total} {what} failed ({shown}); at most "
            f"{options.max_failure_fraction:.0%} may with --max-failure-fraction; everything else "
            f"is committed; {ways}; each failure and what to do: strive-cli cache failures "
            f"--cache {options.cache}"
        )
