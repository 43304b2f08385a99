"""What a call of the offline stage reports."""

from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path

from strive.answers import Unmatched
from strive.variants import Peak


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would cost, from a few videos that were really decoded (and embedded)."""

    num_videos_to_decode: int
    num_videos_to_embed: int
    num_questions_to_score: int
    num_videos_tried: int
    num_tried_failed: int
    bytes_on_disk: int
    bytes_free: int
    seconds: float
    decode_seconds_per_video: float
    embed_seconds_per_video: float
    num_workers: int


@dataclass(slots=True, kw_only=True)
class StageCounts:
    """What one stage has done; those of several (Ray actors) add up."""

    num_decoded: int = 0
    num_repaired: int = 0
    num_embedded: int = 0
    num_scored: int = 0
    num_unscorable: int = 0  # questions that a scorer cannot score, such as ones without spans
    num_frames: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # {video_id: its first error}
    notes: Counter[str] = field(default_factory=Counter)  # newly decoded videos by note
    failed_questions: dict[str, str] = field(default_factory=dict)  # {question_id: its first error}
    num_parts: int = 0  # files that were committed
    bytes_written: int = 0
    decode_seconds: float = 0.0  # summed over the workers
    prepare_seconds: float = 0.0  # reading frames back and preparing them for the models
    embed_seconds: float = 0.0  # models at work, frames and questions, summed over threads
    embed_wall_seconds: float = 0.0  # in which any model was at work
    write_seconds: float = 0.0

    @property
    def num_failed(self) -> int:
        """Videos that have failed; one on which several scorers fail counts once."""
        return len(self.failed)

    @property
    def failed_by_error(self) -> dict[str, int]:
        """Failed videos by the error that came first."""
        return dict(Counter(self.failed.values()))

    @property
    def failed_questions_by_error(self) -> dict[str, int]:
        """Questions that some scorer failed on, by the error that came first."""
        return dict(Counter(self.failed_questions.values()))

    @property
    def failed_text(self) -> str:
        """`2 failed`, and how many questions if there are any."""
        num_questions = len(self.failed_questions)
        questions = f", {num_questions} questions not scored" * bool(num_questions)
        return f"{self.num_failed} failed{questions}"

    def add(self, other: "StageCounts") -> None:
        """Add what another stage has done."""
        for item in fields(StageCounts):
            value = getattr(other, item.name)
            if isinstance(value, Counter):
                getattr(self, item.name).update(value)
            elif isinstance(value, dict):
                mine = getattr(self, item.name)
                for name, error in value.items():
                    mine.setdefault(name, error)
            else:
                setattr(self, item.name, getattr(self, item.name) + value)

    def reset(self) -> None:
        """Begin again from zero."""
        for item in fields(StageCounts):
            value = getattr(self, item.name)
            setattr(self, item.name, type(value)())


@dataclass(slots=True, kw_only=True)
class PrecomputeSummary(StageCounts):
    """What a call did and what the cache now holds of what was asked for."""

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


# What a user can turn when a part of the work is the one that all others wait for.
_KNOBS = {
    "decode": "decoding; more cores and --workers, --shard i/n, or --frame-plan keyframe",
    "prepare": "reading frames back and preparing them; --shard i/n, or a smaller --max-pixels",
    "embed": "the models; a GPU, a smaller --scorer-model, --shard i/n or --engine ray",
    "write": "writing; a faster disk under --cache, or --frame-codec jpeg",
}
