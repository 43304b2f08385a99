"""Which frames each visual variant of a video shows (Sec. 3.3 and Eq. 4 of arXiv:2604.01824).

Pure NumPy. Axes: F pool frames, K segments (and frames per variant), M variants, Q questions. Where
an argument is `[..., F]` one question's values or those of many are given; each row's result is
what it would be alone. Segments and spans are half-open. A variant's draws come from
`derive_rng(seed, "frames", step, question_id, variant)` and from nothing else, and its frames stand
in temporal order.

Where the paper is silent:
1. Uniform frames are `round(linspace(0, F - 1, K))`, first and last frame included (as Video-R1).
2. `deterministic`: where the frames of an offset outnumber K, K of them uniformly; an offset beyond
   the pool wraps around.
3. `stochastic`: a crop of half of the pool or more at a random place, then K equal strides with one
   random phase. The spatial half of the paper's strategy is the trainer's `spatial` switch.
4. F < K: every frame at least once, repeats spread evenly, for every kind (there is no choice).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from strive.choices import ScoreTransform
from strive.errors import CacheError, ConfigError, unknown_name
from strive.named import check_name, load_function, raised
from strive.seeding import derive_rng

ScoreKind = Literal["similarity", "weight"]
SCORE_TRANSFORMS: tuple[str, ...] = get_args(ScoreTransform)

# Shortest temporal crop of `stochastic`, as a fraction of the pool.
MIN_CROP_FRACTION = 0.5
# Learned scale of CLIP-type scorers (CLIP's bound; SigLIP 2 is near 110) for `logit`.
DEFAULT_LOGIT_SCALE = 100.0
# P(t) whose best frame is drawn less than so many times as often as by a uniform draw is flat:
# training then draws frames at random, whatever the scores say.
NEARLY_UNIFORM = 1.1
# P of the best frame that `suggest_temperature` looks for: as likely as all others together.
WANTED_PEAK = 0.5
# Of more questions `typical_peak` measures as many, evenly chosen.
MAX_QUESTIONS = 10_000
# Questions that are measured together.
ROWS_AT_ONCE = 4096

FloatArray = NDArray[np.floating]
Floats = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class DrawRule:
    """How frames are drawn from a pool's scores: all that Eq. 4 needs beside the scores.

    The first three are a training configuration's, the others the scorer's
    (`ScoreReader.draw_rule` fills them in); the defaults are the paper's.

    Raises:
        ConfigError: a value that Eq. 4 cannot use, or a transform of weights.
    """

    num_segments: int = 16
    """K: frames per variant (`num_frames` in the configuration)."""
    frame_temperature: float = 0.4
    """Tau of Eq. 4."""
    score_transform: ScoreTransform = "none"
    score_kind: ScoreKind = "similarity"
    logit_scale: float = DEFAULT_LOGIT_SCALE

    def __post_init__(self) -> None:
        if self.num_segments < 1:
            raise ConfigError(f"num_segments is {self.num_segments}; it must be at least 1")
        if not self.frame_temperature > 0:
            raise ConfigError(
                f"frame_temperature is {self.frame_temperature:g}; it must be above 0"
            )
        if self.score_transform not in SCORE_TRANSFORMS:
            raise unknown_name("score_transform", self.score_transform, SCORE_TRANSFORMS)
        if self.score_kind == "weight" and self.score_transform != "none":
            raise ConfigError(
                f"score_transform is '{self.score_transform}' but the scores are weights, which "
                "Eq. 4's softmax does not read; set score_transform=none"
            )


# --- segments and probabilities -----------------------------------------------------------------


def segment_bounds(num_frames: int, num_segments: int) -> IntArray:
    """Split `[0, F)` into K equal parts: row k is `[floor(kF/K), floor((k+1)F/K))`.

    Lengths differ by at most one; with F < K some parts are empty.
    """
    if num_frames < 1 or num_segments < 1:
        raise ConfigError(
            f"num_frames is {num_frames} and num_segments is {num_segments}; both must be at least "
            "1 (num_frames in the config is K)"
        )
    edges = np.arange(num_segments + 1, dtype=np.int64) * num_frames // num_segments
    return np.stack([edges[:-1], edges[1:]], axis=1)


def filled_bounds(num_frames: int, num_segments: int) -> IntArray:
    """Return the segments that hold a frame (with F < K some are empty), as rows [start, end)."""
    bounds_K2 = segment_bounds(num_frames, num_segments)
    return bounds_K2[bounds_K2[:, 1] > bounds_K2[:, 0]]


def transform_scores(
    scores: FloatArray, transform: ScoreTransform, *, logit_scale: float = DEFAULT_LOGIT_SCALE
) -> Floats:
    """Rescale similarity scores [..., F] before Eq. 4; any rescaling makes flat scores zeros.

    `none` keeps them, `zscore` is (s - mean) / std (ddof 0), `minmax` maps to [0, 1], `logit` is
    `logit_scale * s`, what a contrastive scorer's own softmax reads (its bias cancels in Eq. 4).
    """
    values = np.asarray(scores, dtype=np.float64)
    if transform == "none":
        return values
    if transform == "logit":
        return logit_scale * values
    if transform == "zscore":
        offset, scale = values.mean(-1, keepdims=True), values.std(-1, keepdims=True)
    elif transform == "minmax":
        offset, scale = values.min(-1, keepdims=True), np.ptp(values, axis=-1, keepdims=True)
    else:
        raise unknown_name("score_transform", transform, SCORE_TRANSFORMS)
    # Equal float32 scores can leave rounding noise; dividing by it would make noise look like rank.
    largest = np.abs(values).max(-1, keepdims=True)
    is_flat = scale <= 1e-9 * np.maximum(1.0, largest)
    return np.where(is_flat, 0.0, (values - offset) / np.where(is_flat, 1.0, scale))


def segment_probabilities(
    scores: FloatArray, *, num_segments: int, frame_temperature: float
) -> Floats:
    """Eq. 4: P(t) = exp(s_t / tau) / sum over the segment of exp(s_u / tau), of scores [..., F].

    Sums to 1 in every non-empty segment. tau -> 0 tends to the segment's argmax (equal maxima
    share), tau -> infinity to uniform.
    """
    values = _finite(scores, "scores")
    result = np.empty_like(values)
    # Segment by segment, not by `reduceat`, whose sums differ in the last bit from a row's own.
    for start, end in filled_bounds(values.shape[-1], num_segments):
        part = values[..., start:end]
        # Subtracting first keeps s / tau from overflowing at a tiny tau.
        powers = np.exp((part - part.max(-1, keepdims=True)) / frame_temperature)
        result[..., start:end] = powers / powers.sum(-1, keepdims=True)
    return result


def segment_weight_probabilities(weights: FloatArray, *, num_segments: int) -> Floats:
    """P(t) = w_t / sum over the segment of w_u, for scores that are weights (Sec. 4.2, gradients).

    Of weights [..., F]; a segment whose weights are all zero is uniform.
    """
    values = _finite(weights, "weights")
    if (values < 0).any():
        raise CacheError(
            f"weights hold {values.min():g}; weights of kind 'weight' must be 0 or more"
        )
    result = np.empty_like(values)
    for start, end in filled_bounds(values.shape[-1], num_segments):
        part = values[..., start:end]
        largest = part.max(-1, keepdims=True)
        is_empty = largest == 0
        # Divided before the sum, which could overflow or lose denormals.
        part = np.where(is_empty, 1.0, part / np.where(is_empty, 1.0, largest))
        result[..., start:end] = part / part.sum(-1, keepdims=True)
    return result


def draw_probabilities(scores: FloatArray, rule: DrawRule) -> Floats:
    """P(t) of scores [..., F] of either kind: Eq. 4 for similarities, normalised weights otherwise.

    With one segment it is the softmax (or the share) over the whole pool.

    Raises:
        CacheError: scores that are not finite, or weights below 0.
    """
    if rule.score_kind == "weight":
        return segment_weight_probabilities(scores, num_segments=rule.num_segments)
    transformed = transform_scores(
        _finite(scores, "scores"), rule.score_transform, logit_scale=rule.logit_scale
    )
    return segment_probabilities(
        transformed, num_segments=rule.num_segments, frame_temperature=rule.frame_temperature
    )


def uniform_probabilities(num_frames: int, num_segments: int) -> Floats:
    """P(t) of a draw that all frames of a segment share equally: [F]."""
    return segment_weight_probabilities(np.ones(num_frames), num_segments=num_segments)


def _finite(values: FloatArray, what: str) -> Floats:
    finite: Floats = np.asarray(values, dtype=np.float64)
    if not np.isfinite(finite).all():
        rows_QF = np.atleast_2d(finite)
        bad_QF = ~np.isfinite(rows_QF)
        row = int(bad_QF.any(axis=1).argmax())
        bad = np.flatnonzero(bad_QF[row])
        raise CacheError(
            f"{what} are not finite at {len(bad)} of {rows_QF.shape[1]} frames (first: frame "
            f"{bad[0]} is {rows_QF[row, bad[0]]}); make them again with strive-cli precompute "
            "--scorer NAME --overwrite"
        )
    return finite


# --- kinds of variant ---------------------------------------------------------------------------


@dataclass(frozen=True)
class DrawRequest:
    """What a kind of variant is told: one variant of one question, scores already checked."""

    num_frames: int
    num_segments: int
    num_variants: int
    variant: int
    probabilities_F: FloatArray | None
    """P(t) of Eq. 4 (or normalised weights) where scores are at hand."""
    scores_F: FloatArray | None


DrawFunction = Callable[[DrawRequest, np.random.Generator], IntArray]


def uniform_frames(num_frames: int, count: int) -> IntArray:
    """Return `count` pool indices spread over `[0, num_frames)`, ends included.

    With `num_frames` <= `count` every frame comes at least once and repeats are spread evenly.
    """
    if num_frames <= count:
        return segment_bounds(num_frames, count)[:, 0]
    return np.rint(np.linspace(0, num_frames - 1, count)).astype(np.int64)


def _draw_none(request: DrawRequest, rng: np.random.Generator) -> IntArray:
    """K uniform frames: the one visual input of plain GRPO."""
    return uniform_frames(request.num_frames, request.num_segments)


def _draw_deterministic(request: DrawRequest, rng: np.random.Generator) -> IntArray:
    """Sec. 3.3: start at offset i, take every M-th frame; then K of them uniformly."""
    offset = request.variant % request.num_frames
    strided = np.arange(offset, request.num_frames, request.num_variants, dtype=np.int64)
    return strided[uniform_frames(len(strided), request.num_segments)]


def _draw_stochastic(request: DrawRequest, rng: np.random.Generator) -> IntArray:
    """Sec. 3.3: a random temporal crop, then strided sampling from a random phase."""
    shortest = max(request.num_segments, int(np.ceil(request.num_frames * MIN_CROP_FRACTION)))
    length = int(rng.integers(shortest, request.num_frames + 1))
    start = int(rng.integers(0, request.num_frames - length + 1))
    stride = length / request.num_segments
    positions = (np.arange(request.num_segments) + rng.random()) * stride
    return start + np.minimum(positions.astype(np.int64), length - 1)


def _draw_random(request: DrawRequest, rng: np.random.Generator) -> IntArray:
    """Draw one frame of each segment, all equally likely: the control without relevance."""
    bounds_K2 = segment_bounds(request.num_frames, request.num_segments)
    return rng.integers(bounds_K2[:, 0], bounds_K2[:, 1])


def _draw_importance(request: DrawRequest, rng: np.random.Generator) -> IntArray:
    """Sec. 3.3: t_k ~ Categorical(P) in each segment, P of Eq. 4."""
    assert request.probabilities_F is not None
    bounds_K2 = segment_bounds(request.num_frames, request.num_segments)
    # Inverse CDF for all segments at once: segment k owns (k, k + 1] of the running sum.
    total_F = np.cumsum(request.probabilities_F)
    before_K = np.concatenate([[0.0], total_F])[bounds_K2[:, 0]]
    after_K = total_F[bounds_K2[:, 1] - 1]
    points_K = before_K + rng.random(request.num_segments) * (after_K - before_K)
    indices_K = np.searchsorted(total_F, points_K, side="right")
    return np.clip(indices_K, bounds_K2[:, 0], bounds_K2[:, 1] - 1)


VARIANT_KINDS: dict[str, DrawFunction] = {
    "none": _draw_none,
    "uniform": _draw_none,  # of several variants, which differ in their views alone
    "deterministic": _draw_deterministic,
    "stochastic": _draw_stochastic,
    "random": _draw_random,
    "importance": _draw_importance,
}
# Kinds that cannot draw without scores; a user's own kind gets them where the cache has them.
NEEDS_SCORES = frozenset({"importance"})


def find_variant_kind(kind: str) -> DrawFunction:
    """Return the draw function of a known kind, or of a user's `module:function`."""
    check_name("variants", kind, VARIANT_KINDS)
    return VARIANT_KINDS.get(kind) or load_function(f"variants '{kind}'", kind)


class DrawnVariants(NamedTuple):
    """The variants of one question, and the probabilities that they were drawn by."""

    frame_index_MK: IntArray
    """Indices of the pool; rows are non-decreasing."""
    probabilities_F: Floats | None
    """P(t) of Eq. 4, or normalised weights; None where no scores were given."""


def draw_variants(
    kind: str,
    rule: DrawRule,
    *,
    num_frames: int,
    num_variants: int,
    scores_F: FloatArray | None = None,
    seed: int,
    step: int,
    question_id: str,
) -> DrawnVariants:
    """Draw the pool indices of all variants of one question.

    Raises:
        CacheError: `importance` without scores, or scores that are not finite or of another length.
        ConfigError: a user's kind that returns nonsense.
    """
    draw = find_variant_kind(kind)
    num_segments = rule.num_segments
    if scores_F is None and kind in NEEDS_SCORES:
        raise CacheError(
            f"variants '{kind}' needs scores and question '{question_id}' has none; make them with "
            "strive-cli precompute --scorer NAME, or set skip_unscored=true"
        )
    probabilities_F = None
    if scores_F is not None:
        if len(scores_F) != num_frames:
            raise CacheError(
                f"question '{question_id}' has {len(scores_F)} scores for {num_frames} frames; "
                "make them again with strive-cli precompute --scorer NAME --overwrite"
            )
        probabilities_F = draw_probabilities(scores_F, rule)
    frame_index_MK = np.empty((num_variants, num_segments), dtype=np.int64)
    for variant in range(num_variants):
        if num_frames <= num_segments:
            frame_index_MK[variant] = uniform_frames(num_frames, num_segments)
            continue
        request = DrawRequest(
            num_frames=num_frames,
            num_segments=num_segments,
            num_variants=num_variants,
            variant=variant,
            # Copies: what a user's kind writes into them the next variant must not see.
            probabilities_F=None if probabilities_F is None else probabilities_F.copy(),
            scores_F=None if scores_F is None else np.array(scores_F, dtype=np.float64),
        )
        rng = derive_rng(seed, "frames", step, question_id, variant)
        try:
            drawn_K = np.asarray(draw(request, rng))
        except Exception as error:
            if kind in VARIANT_KINDS:
                raise
            raise ConfigError(
                f"variants '{kind}' raised {raised(error)} for variant {variant} of question "
                f"'{question_id}' (docs/own-rewards.md)"
            ) from error
        if drawn_K.shape != (num_segments,) or not np.issubdtype(drawn_K.dtype, np.integer):
            raise ConfigError(
                f"variants '{kind}' returned {drawn_K.dtype} of shape {drawn_K.shape}; integers of "
                f"shape ({num_segments},) are expected"
            )
        if drawn_K.min() < 0 or drawn_K.max() >= num_frames:
            raise ConfigError(
                f"variants '{kind}' returned indices {drawn_K.min()} to {drawn_K.max()}; they must "
                f"lie in [0, {num_frames})"
            )
        frame_index_MK[variant] = np.sort(drawn_K.astype(np.int64))
    return DrawnVariants(frame_index_MK, probabilities_F)


# --- measures of P(t) ---------------------------------------------------------------------------


def per_segment(
    values: FloatArray, num_segments: int, reduce: Callable[[FloatArray], FloatArray]
) -> Floats:
    """Apply `reduce` ([..., L] to [...]) to each segment that holds a frame, of values [..., F]."""
    bounds_K2 = filled_bounds(values.shape[-1], num_segments)
    return np.stack([reduce(values[..., start:end]) for start, end in bounds_K2], axis=-1)


def segment_lengths(num_frames: int, num_segments: int) -> IntArray:
    """Frames of each segment that holds one."""
    return np.diff(filled_bounds(num_frames, num_segments), axis=1)[:, 0]


def effective_frames(probabilities: FloatArray, num_segments: int) -> Floats:
    """Effective number of frames that each segment is drawn from: exp(entropy of P).

    Of P(t) [..., F], for the segments that hold a frame. Runs from 1 (one frame always) to the
    segment's length (uniform).
    """
    logs = np.log(np.where(probabilities > 0, probabilities, 1.0))
    return np.exp(per_segment(probabilities * logs, num_segments, lambda part: -part.sum(-1)))


def expected_overlap(
    probabilities: FloatArray, num_segments: int, other: FloatArray | None = None
) -> Floats:
    """Chance that two variants show the same frame: mean over segments of sum P(t)^2, [...].

    With `other`, that a variant of it and one of the first do: sum P(t) P'(t).
    """
    shared = probabilities * (probabilities if other is None else other)
    return per_segment(shared, num_segments, lambda part: part.sum(-1)).mean(-1)


def segment_peak(probabilities: FloatArray, num_segments: int) -> tuple[Floats, Floats]:
    """P of the best frame of the most peaked segment, and what uniform would be: [...], [...].

    The most peaked segment is the one whose best frame stands furthest above 1 / length.
    """
    best = per_segment(probabilities, num_segments, lambda part: part.max(-1))
    uniform_K = 1.0 / segment_lengths(probabilities.shape[-1], num_segments)
    most = (best / uniform_K).argmax(-1)
    return np.take_along_axis(best, most[..., None], axis=-1)[..., 0], uniform_K[most]


def evidence_lift(probabilities: FloatArray, evidence: BoolArray, num_segments: int) -> Floats:
    """Evidence frames expected in a variant over those of a uniform draw; NaN without: [...]."""
    uniform_F = uniform_probabilities(probabilities.shape[-1], num_segments)
    mass = np.where(evidence, probabilities, 0.0).sum(-1)
    base = np.where(evidence, uniform_F, 0.0).sum(-1)
    return np.where(base > 0, mass / np.where(base > 0, base, 1.0), np.nan)


def evidence_chance(probabilities: FloatArray, evidence: BoolArray, num_segments: int) -> Floats:
    """Chance that a variant shows an evidence frame: 1 - prod_k (1 - mass of segment k): [...]."""
    mass = np.where(evidence, probabilities, 0.0)
    mass_K = per_segment(mass, num_segments, lambda part: part.sum(-1))
    return 1.0 - np.prod(1.0 - np.minimum(mass_K, 1.0), axis=-1)


# --- measures of drawn variants -----------------------------------------------------------------


def frame_overlap(indices_MK: IntArray) -> float:
    """Share of frames that two variants have in common, mean over pairs; NaN with one variant."""
    sets = [set(row) for row in np.asarray(indices_MK).tolist()]
    pairs = [
        len(first & second) / max(len(first), len(second))
        for number, first in enumerate(sets)
        for second in sets[number + 1 :]
    ]
    return float(np.mean(pairs)) if pairs else float("nan")


def evidence_mask(
    pts_seconds_F: FloatArray, spans: Sequence[tuple[float, float]] | None
) -> BoolArray:
    """Tell which frames lie in one of the half-open spans `[start, end)`, in seconds: [F]."""
    pts_seconds_F = np.asarray(pts_seconds_F, dtype=np.float64)
    inside_F = np.zeros(len(pts_seconds_F), dtype=bool)
    for start, end in spans or ():
        inside_F |= (pts_seconds_F >= start) & (pts_seconds_F < end)
    return inside_F


def evidence_seen(
    frame_index_MK: IntArray,
    pts_seconds_F: FloatArray,
    spans: Sequence[tuple[float, float]] | None,
) -> BoolArray | None:
    """Tell for each variant whether one of its frames lies in an evidence span; None without spans.

    Spans are half-open, `[start, end)`.
    """
    if spans is None:
        return None
    return np.any(evidence_mask(pts_seconds_F, spans)[frame_index_MK], axis=1)


# --- a whole cache ------------------------------------------------------------------------------


def by_pool_size(scores: Sequence[FloatArray]) -> Iterator[tuple[list[int], Floats]]:
    """Yield scores of pools of one size as an array [Q, F] with their places in the sequence.

    At most `ROWS_AT_ONCE` questions come together.
    """
    places: dict[int, list[int]] = {}
    for place, scores_F in enumerate(scores):
        places.setdefault(len(scores_F), []).append(place)
    for same in places.values():
        for start in range(0, len(same), ROWS_AT_ONCE):
            some = same[start : start + ROWS_AT_ONCE]
            yield some, np.stack([scores[place] for place in some]).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Peak:
    """How peaked Eq. 4 is, as medians over questions whose segments leave a choice.

    `probability` is that of the best frame in a question's most peaked segment, `uniform` what it
    would be without scores.
    """

    probability: float
    uniform: float
    overlap: float
    """Chance that two variants show the same frame (mean over questions)."""
    num_questions: int

    @property
    def is_flat(self) -> bool:
        """Whether the draws are nearly uniform."""
        return self.probability < NEARLY_UNIFORM * self.uniform

    @property
    def text(self) -> str:
        """The two figures beside one another, and what a flat P(t) means."""
        flat = ": within 10 % of it, so frames are drawn at random" if self.is_flat else ""
        return (
            f"best frame of the most peaked segment P {self.probability:.2f}, uniform "
            f"{self.uniform:.2f}{flat}"
        )


def typical_peak(scores: Sequence[FloatArray], rule: DrawRule) -> Peak | None:
    """Measure the scores [F] of some questions; None where no pool leaves a choice (F <= K).

    Questions whose scores are not finite are left out.
    """
    num_segments = rule.num_segments
    every = -(-len(scores) // MAX_QUESTIONS) or 1
    chosen = [s for s in scores[::every] if len(s) > num_segments and np.isfinite(s).all()]
    if not chosen:
        return None
    found = []
    for _, scores_QF in by_pool_size(chosen):
        p_QF = draw_probabilities(scores_QF, rule)
        found.append([*segment_peak(p_QF, num_segments), expected_overlap(p_QF, num_segments)])
    best_Q, uniform_Q, overlap_Q = np.concatenate(found, axis=1)
    return Peak(
        float(np.median(best_Q)), float(np.median(uniform_Q)), float(overlap_Q.mean()), len(best_Q)
    )


def suggest_temperature(scores: Sequence[FloatArray], rule: DrawRule) -> tuple[float, Peak] | None:
    """Tau of Eq. 4 at which the best frame of a question's most peaked segment has P = 0.5.

    In the median over the questions, to two digits, under the other settings of `rule`. None where
    no tau does that: scores are all equal, or the pools leave no choice.
    """

    def peak_at(tau: float) -> Peak | None:
        return typical_peak(scores, replace(rule, frame_temperature=tau))

    # P falls from 1 to uniform as tau grows; it is searched for on a scale of logarithms.
    low, high = 1e-6, 1e6
    coldest, hottest = peak_at(low), peak_at(high)
    if coldest is None or hottest is None:
        return None
    if not hottest.probability < WANTED_PEAK <= coldest.probability:
        return None
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        peak = peak_at(middle)
        assert peak is not None
        low, high = (middle, high) if peak.probability >= WANTED_PEAK else (low, middle)
    tau = float(f"{low:.2g}")
    found = peak_at(tau)
    assert found is not None
    return tau, found
