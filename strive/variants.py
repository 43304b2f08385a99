"""Which frames each visual variant of a video shows (Sec. 3.3 and Eq. 4 of arXiv:2604.01824).

Pure NumPy. Axes: F pool frames, K segments (and frames per variant), M variants. Segments and spans
are half-open. A variant's draws come from `derive_rng(seed, "frames", step, question_id, variant)`
and from nothing else, and its frames stand in temporal order.

Where the paper is silent:
1. Uniform frames are `round(linspace(0, F - 1, K))`, first and last frame included (as Video-R1).
2. `deterministic`: where the frames of an offset outnumber K, K of them uniformly; an offset beyond
   the pool wraps around.
3. `stochastic`: a crop of half of the pool or more at a random place, then K equal strides with one
   random phase. The spatial half of the paper's strategy is the trainer's `spatial` switch.
4. F < K: every frame at least once, repeats spread evenly, for every kind (there is no choice).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from strive.choices import ScoreTransform
from strive.errors import CacheError, ConfigError, unknown_name
from strive.named import check_name, load_function, raised
from strive.seeding import derive_rng

ScoreKind = Literal["similarity", "weight"]
SCORE_TRANSFORMS: tuple[str, ...] = get_args(ScoreTransform)

MIN_CROP_FRACTION = 0.5
"""Shortest temporal crop of `stochastic`, as a fraction of the pool."""
DEFAULT_LOGIT_SCALE = 100.0
"""Learned scale of CLIP-type scorers (CLIP's bound; SigLIP 2 is near 110) for `logit`."""

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.int64]


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


def transform_scores(
    scores_F: FloatArray,
    transform: ScoreTransform,
    *,
    logit_scale: float = DEFAULT_LOGIT_SCALE,
) -> FloatArray:
    """Rescale similarity scores before Eq. 4; flat scores become zeros under any rescaling.

    `none` keeps them, `zscore` is (s - mean) / std (ddof 0), `minmax` maps to [0, 1], `logit` is
    `logit_scale * s`, what a contrastive scorer's own softmax reads (its bias cancels in Eq. 4).
    """
    scores_F = np.asarray(scores_F, dtype=np.float64)
    if transform == "none":
        return scores_F
    if transform == "logit":
        return logit_scale * scores_F
    if transform not in SCORE_TRANSFORMS:
        raise unknown_name("score_transform", transform, SCORE_TRANSFORMS)
    offset = scores_F.mean() if transform == "zscore" else scores_F.min()
    scale = scores_F.std() if transform == "zscore" else np.ptp(scores_F)
    # Equal float32 scores can leave rounding noise; dividing by it would make noise look like rank.
    if scale <= 1e-9 * max(1.0, float(np.abs(scores_F).max())):
        return np.zeros_like(scores_F)
    return (scores_F - offset) / scale


def segment_probabilities(
    scores_F: FloatArray, *, num_segments: int, frame_temperature: float
) -> FloatArray:
    """Eq. 4: P(t) = exp(s_t / tau) / sum over the segment of exp(s_u / tau).

    Sums to 1 in every non-empty segment. tau -> 0 tends to the segment's argmax (equal maxima
    share), tau -> infinity to uniform.
    """
    if not frame_temperature > 0:
        raise ConfigError(f"frame_temperature is {frame_temperature}; it must be above 0")
    scores_F = _finite(scores_F, "scores")

    def softmax(part: FloatArray) -> FloatArray:
        # Subtracting first keeps s / tau from overflowing at a tiny tau.
        powers = np.exp((part - part.max()) / frame_temperature)
        return powers / powers.sum()

    return _per_segment(scores_F, num_segments, softmax)


def segment_weight_probabilities(weights_F: FloatArray, *, num_segments: int) -> FloatArray:
    """P(t) = w_t / sum over the segment of w_u, for scores that are weights (Sec. 4.2, gradients).

    A segment whose weights are all zero is uniform.
    """
    weights_F = _finite(weights_F, "weights")
    if (weights_F < 0).any():
        raise CacheError(
            f"weights hold {weights_F.min():g}; weights of kind 'weight' must be 0 or more"
        )

    def normalise(part: FloatArray) -> FloatArray:
        largest = part.max()
        if largest == 0:
            return np.full(len(part), 1 / len(part))
        part = part / largest  # before the sum, which could overflow or lose denormals
        return part / part.sum()

    return _per_segment(weights_F, num_segments, normalise)


def _per_segment(
    values_F: FloatArray, num_segments: int, function: Callable[[FloatArray], FloatArray]
) -> FloatArray:
    result_F = np.empty_like(values_F)
    for start, end in segment_bounds(len(values_F), num_segments):
        if end > start:
            result_F[start:end] = function(values_F[start:end])
    return result_F


def _finite(values_F: FloatArray, what: str) -> FloatArray:
    values_F = np.asarray(values_F, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values_F))
    if len(bad):
        raise CacheError(
            f"{what} are not finite at {len(bad)} of {len(values_F)} frames (first: frame "
            f"{bad[0]} is {values_F[bad[0]]}); make them again with strive-cli precompute "
            "--scorer NAME --overwrite"
        )
    return values_F


# --- kinds of variant ---------------------------------------------------------------------------


@dataclass(frozen=True)
class DrawRequest:
    """What a kind of variant is told: one variant of one question, scores already checked."""

    num_frames: int
    num_segments: int
    num_variants: int
    variant: int
    probabilities_F: FloatArray | None
    """Eq. 4 (or normalised weights) where scores are at hand."""
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
    "deterministic": _draw_deterministic,
    "stochastic": _draw_stochastic,
    "random": _draw_random,
    "importance": _draw_importance,
}
NEEDS_SCORES = frozenset({"importance"})
"""Kinds that cannot draw without scores; a user's own kind gets them where the cache has them."""


def find_variant_kind(kind: str) -> DrawFunction:
    """Return the draw function of a known kind, or of a user's `module:function`."""
    check_name("variants", kind, VARIANT_KINDS)
    return VARIANT_KINDS.get(kind) or load_function(f"variants '{kind}'", kind)


def draw_variants(
    kind: str,
    *,
    num_frames: int,
    num_variants: int,
    num_segments: int,
    scores_F: FloatArray | None = None,
    score_kind: ScoreKind = "similarity",
    frame_temperature: float = 0.4,
    score_transform: ScoreTransform = "none",
    logit_scale: float = DEFAULT_LOGIT_SCALE,
    seed: int,
    step: int,
    question_id: str,
) -> IntArray:
    """Draw the pool indices of all variants of one question: int64 [M, K], rows non-decreasing.

    Raises:
        CacheError: `importance` without scores, or scores that are not finite or of another length.
        ConfigError: a transform that weights do not allow, or a user's kind that returns nonsense.
    """
    draw = find_variant_kind(kind)
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
        probabilities_F = probabilities_of(
            scores_F,
            score_kind=score_kind,
            num_segments=num_segments,
            frame_temperature=frame_temperature,
            score_transform=score_transform,
            logit_scale=logit_scale,
        )
    indices_MK = np.empty((num_variants, num_segments), dtype=np.int64)
    for variant in range(num_variants):
        if num_frames <= num_segments:
            indices_MK[variant] = uniform_frames(num_frames, num_segments)
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
            drawn = np.asarray(draw(request, rng))
        except Exception as error:
            if kind in VARIANT_KINDS:
                raise
            raise ConfigError(
                f"variants '{kind}' raised {raised(error)} for variant {variant} of question "
                f"'{question_id}' (docs/own-rewards.md)"
            ) from error
        indices_MK[variant] = np.sort(_checked(drawn, kind, request))
    return indices_MK


def probabilities_of(
    scores_F: FloatArray,
    *,
    score_kind: ScoreKind,
    num_segments: int,
    frame_temperature: float,
    score_transform: ScoreTransform = "none",
    logit_scale: float = DEFAULT_LOGIT_SCALE,
) -> FloatArray:
    """Return P(t) for either kind: Eq. 4 for similarities, normalised weights otherwise."""
    if score_kind == "similarity":
        scores_F = transform_scores(
            _finite(scores_F, "scores"), score_transform, logit_scale=logit_scale
        )
        return segment_probabilities(
            scores_F, num_segments=num_segments, frame_temperature=frame_temperature
        )
    if score_transform != "none":
        raise ConfigError(
            f"score_transform is '{score_transform}' but the scores are weights, which Eq. 4's "
            "softmax does not read; set score_transform=none"
        )
    return segment_weight_probabilities(scores_F, num_segments=num_segments)


def _checked(indices_K: IntArray, kind: str, request: DrawRequest) -> IntArray:
    expected = (request.num_segments,)
    if indices_K.shape != expected or not np.issubdtype(indices_K.dtype, np.integer):
        raise ConfigError(
            f"variants '{kind}' returned {indices_K.dtype} of shape {indices_K.shape}; integers of "
            f"shape {expected} are expected"
        )
    if indices_K.min() < 0 or indices_K.max() >= request.num_frames:
        raise ConfigError(
            f"variants '{kind}' returned indices {indices_K.min()} to {indices_K.max()}; they must "
            f"lie in [0, {request.num_frames})"
        )
    return indices_K.astype(np.int64)


# --- measures -----------------------------------------------------------------------------------


def effective_frames(probabilities_F: FloatArray, bounds_K2: IntArray) -> FloatArray:
    """Effective number of frames a segment is drawn from: exp(entropy of P); 0 for an empty one.

    Runs from 1 (one frame always) to the segment's length (uniform).
    """
    logs_F = np.log(np.where(probabilities_F > 0, probabilities_F, 1.0))
    terms_F = probabilities_F * logs_F
    return np.array(
        [np.exp(-terms_F[start:end].sum()) if end > start else 0.0 for start, end in bounds_K2]
    )


def expected_overlap(probabilities_F: FloatArray, bounds_K2: IntArray) -> float:
    """Chance that two variants show the same frame: mean over segments of sum P(t)^2."""
    squares_F = probabilities_F**2
    return float(np.mean([squares_F[start:end].sum() for start, end in bounds_K2 if end > start]))


def frame_overlap(indices_MK: IntArray) -> float:
    """Share of frames that two variants have in common, mean over pairs; NaN with one variant."""
    sets = [set(row) for row in np.asarray(indices_MK).tolist()]
    pairs = [
        len(first & second) / max(len(first), len(second))
        for number, first in enumerate(sets)
        for second in sets[number + 1 :]
    ]
    return float(np.mean(pairs)) if pairs else float("nan")


def evidence_seen(
    indices_MK: IntArray,
    pts_seconds_F: FloatArray,
    spans: tuple[tuple[float, float], ...],
) -> NDArray[np.bool_]:
    """Tell for each variant whether one of its frames lies in an evidence span `[start, end)`."""
    pts_F = np.asarray(pts_seconds_F, dtype=np.float64)
    inside_F = np.zeros(len(pts_F), dtype=bool)
    for start, end in spans:
        inside_F |= (pts_F >= start) & (pts_F < end)
    return np.any(inside_F[np.asarray(indices_MK)], axis=1)
