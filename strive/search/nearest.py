"""Finding frames by text, and videos that are nearly the same, among all that a cache holds.

Both read the embeddings that a split scorer left: no video and no frame goes through a model. All
of them go into one flat faiss index, in memory, from the parts that the cache holds at the call.
Axes: V videos, P quarters of a video, F pool frames, D dimensions.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from strive.cache.frames import Pools
from strive.cache.layout import CacheLayout, open_cache, read_settings, require_fields
from strive.cache.scores import (
    ScorerInfo,
    find_scorer,
    iter_embeddings,
    list_scorers,
    read_embedding_states,
)
from strive.errors import CacheError, ConfigError, MissingInputError, ModelError, StaleCacheError
from strive.progress import show_progress
from strive.scorers import ScorerRequest, SplitScorer, cosines, load_scorer
from strive.scorers.session import read_recall

DUPLICATE_THRESHOLD = 0.9
"""Mean cosine of frames shown at the same moment (about the cache's mean embedding) from which two
videos are near-duplicates."""
NUM_NEIGHBOURS = 16
"""Number of videos that each is compared with frame by frame: those with the most similar quarters
(a piece cut from a video has another mean than the whole, but quarters that meet)."""
# Other embeddings of the same text: a number type of another device moves the third decimal.
_MAY_DIFFER = ("dtype",)


@dataclass(frozen=True, slots=True)
class FoundFrame:
    """One frame that a text found; `duplicates` are near-duplicates of its video in the cache."""

    video_id: str
    frame_index: int
    pts_seconds: float
    score: float
    duplicates: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """The part of a cache that was searched."""

    cache: str
    scorer: str
    scorer_key: str
    frames_key: str
    num_videos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult(Searched):
    """The frames nearest to a text, best first; `score` is the cosine that `precompute` stores."""

    text: str
    num_frames: int
    index: str = "flat, built"
    frames: tuple[FoundFrame, ...]


@dataclass(frozen=True, slots=True)
class DuplicatePair:
    """Two videos that show the same; `second` starts `offset_seconds` into `first`.

    `agreement` is the mean cosine of frames shown at the same moment; `first` is the longer one.
    """

    first: str
    second: str
    agreement: float
    offset_seconds: float
    seconds: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateReport(Searched):
    """All near-duplicate pairs of a cache, most alike first."""

    threshold: float
    pairs: tuple[DuplicatePair, ...]


class SearchSource:
    """The embedded frames of a cache in faiss, the frames of a video behind one another.

    `starts_V` holds the first row of each video and, last, the number of rows; `quarters_VPD` the
    mean embedding of each quarter of each video.

    Raises:
        CacheError: the cache holds no embeddings of this scorer for the frames at hand.
    """

    def __init__(self, cache: Path, scorer: str | None) -> None:
        import faiss

        self.layout = open_cache(cache)
        self.info = _find_split_scorer(self.layout, scorer)
        self.pools = Pools(self.layout, self.info.frames_key)
        embedded = read_embedding_states(self.layout, self.info.key)
        wanted = {name: self.pools.checksum(name) for name in self.pools if name in embedded}
        self.ids: list[str] = []
        self._index: Any = None
        starts, quarters = [0], []
        for video in iter_embeddings(self.layout, self.info.key, wanted):
            rows_FD = np.ascontiguousarray(video.embeddings_FD, np.float32)
            if self._index is None:
                # float16 rows: the stored embeddings to the last bit, in half the memory.
                kind: Any = faiss.ScalarQuantizer.QT_fp16
                dimension = rows_FD.shape[1]
                self._index = faiss.IndexScalarQuantizer(
                    dimension, kind, faiss.METRIC_INNER_PRODUCT
                )
                self._index.train(np.zeros((1, dimension), np.float32))
            self._index.add(rows_FD)
            self.ids.append(video.video_id)
            starts.append(starts[-1] + len(rows_FD))
            # Of fewer frames than four, some quarters share one.
            for start, end in pairwise(np.arange(5) * len(rows_FD) // 4):
                quarters.append(rows_FD[start : max(end, start + 1)].mean(axis=0))
        if not self.ids:
            raise CacheError(
                f"{cache} holds no embeddings of {self.info.key} for the frames at hand; make them "
                "with `strive-cli precompute`"
            )
        self.searched: dict[str, Any] = {
            "cache": str(cache),
            "scorer": self.info.name,
            "scorer_key": self.info.key,
            "frames_key": self.info.frames_key,
            "num_videos": len(self.ids),
        }
        self.starts_V = np.array(starts)
        self.quarters_VPD = np.array(quarters).reshape(len(self.ids), 4, -1)

    @property
    def num_frames(self) -> int:
        """Frames that can be found."""
        return int(self.starts_V[-1])

    def rows(self, number: int) -> np.ndarray:
        """Return the stored embeddings of a video by its number: float32 [F, D]."""
        start, end = int(self.starts_V[number]), int(self.starts_V[number + 1])
        rows_FD: np.ndarray = self._index.reconstruct_n(start, end - start)
        return rows_FD

    def nearest(
        self, query_D: np.ndarray, top: int, per_video: int | None = None
    ) -> list[tuple[int, int, float]]:
        """Return (video number, frame, cosine) of the nearest frames, best first."""
        # The index proposes by inner products in float32; cosines of the stored rows decide.
        count = 2 * top + 16
        while True:
            _, (rows,) = self._index.search(query_D[None], min(count, self.num_frames))
            numbers = np.searchsorted(self.starts_V, rows, side="right") - 1
            scored = []
            for number, frame in zip(numbers.tolist(), rows - self.starts_V[numbers], strict=True):
                (cosine,) = cosines(self.rows(number)[frame : frame + 1], query_D)
                scored.append((number, int(frame), float(cosine)))
            scored.sort(key=lambda item: (-item[2], item[0], item[1]))
            num_taken: Counter[int] = Counter()
            chosen = []
            for number, frame, score in scored:
                num_taken[number] += 1
                if per_video is None or num_taken[number] <= per_video:
                    chosen.append((number, frame, score))
            if len(chosen) >= top or count >= self.num_frames:
                return chosen[:top]
            count *= 4

    def duplicates_of(
        self, numbers: Sequence[int], threshold: float, *, show: bool = False
    ) -> list[DuplicatePair]:
        """Compare videos with those nearest to them; each pair once. `show` shows progress."""
        quarters_VPD = self.quarters_VPD
        centre_D = np.average(quarters_VPD.mean(axis=1), axis=0, weights=np.diff(self.starts_V))
        unit_ND = _unit((quarters_VPD - centre_D).reshape(-1, len(centre_D)))
        unit_VPD = unit_ND.reshape(quarters_VPD.shape)
        found: dict[tuple[int, int], DuplicatePair] = {}
        with show_progress("videos", len(numbers), "videos") if show else nullcontext() as bar:
            for number in numbers:
                cosine_PVP = (unit_VPD[number] @ unit_ND.T).reshape(-1, *quarters_VPD.shape[:2])
                likeness_V = cosine_PVP.max(axis=(0, 2))
                likeness_V[number] = -np.inf
                nearest = np.argsort(-likeness_V, kind="stable")[:NUM_NEIGHBOURS]
                for other in nearest[nearest != number].tolist():
                    pair = (min(number, other), max(number, other))
                    if pair not in found:
                        found[pair] = self._compare(*pair, centre_D)
                if bar is not None:
                    bar.advance()
        return [pair for pair in found.values() if pair.agreement >= threshold]

    def _compare(self, one: int, other: int, centre_D: np.ndarray) -> DuplicatePair:
        one_F, other_F = self.pools[self.ids[one]], self.pools[self.ids[other]]
        if np.ptp(other_F) > np.ptp(one_F):
            one, other, one_F, other_F = other, one, other_F, one_F
        agreement, offset = agreement_of(
            _unit(self.rows(one) - centre_D), one_F,
            _unit(self.rows(other) - centre_D), other_F,
        )  # fmt: skip
        first, second = self.ids[one], self.ids[other]
        seconds = (self.pools.duration_seconds(first), self.pools.duration_seconds(second))
        return DuplicatePair(first, second, agreement, offset, seconds)


def search_text(
    cache: Path,
    text: str,
    *,
    top: int = 10,
    per_video: int | None = None,
    scorer: str | None = None,
    scorer_model: str | None = None,
    threshold: float = DUPLICATE_THRESHOLD,
) -> SearchResult:
    """Find the frames of a whole cache that are nearest to a text.

    Args:
        cache: the cache.
        text: what the frames should show.
        top: how many frames.
        per_video: at most so many of one video.
        scorer: name or key of a split scorer; by default the cache's only one.
        scorer_model: its model, where the path that the cache remembers is not there any more.
        threshold: agreement from which another video is marked as a near-duplicate.

    Raises:
        ConfigError: an empty text, or a scorer that cannot embed a text apart from frames.
        StaleCacheError: the model is not the one that made the embeddings.
    """
    if not text.strip():
        raise ConfigError("TEXT is empty; say what the frames should show")
    if top < 1 or (per_video is not None and per_video < 1):
        raise ConfigError(f"--top {top}, --per-video {per_video}; at least 1 is needed")
    _check_threshold(threshold)
    source = SearchSource(cache, scorer)
    query_D = embed_text(source.layout, source.info, text.strip(), scorer_model)
    chosen = source.nearest(query_D, top, per_video)
    numbers = {number for number, _, _ in chosen}
    twins: dict[str, list[str]] = {}
    for pair in source.duplicates_of(sorted(numbers), threshold):
        twins.setdefault(pair.first, []).append(pair.second)
        twins.setdefault(pair.second, []).append(pair.first)
    frames = [
        FoundFrame(
            video_id=source.ids[number],
            frame_index=frame,
            pts_seconds=float(source.pools[source.ids[number]][frame]),
            score=score,
            duplicates=tuple(sorted(twins.get(source.ids[number], ()))),
        )
        for number, frame, score in chosen
    ]
    return SearchResult(
        **source.searched, text=text.strip(), num_frames=source.num_frames, frames=tuple(frames)
    )


def find_duplicates(
    cache: Path, *, scorer: str | None = None, threshold: float = DUPLICATE_THRESHOLD
) -> DuplicateReport:
    """List the near-duplicate videos of a cache: copies coded anew, scaled, or cut from another.

    Raises:
        ConfigError: the threshold is not a cosine, or the scorer has no embeddings.
    """
    _check_threshold(threshold)
    source = SearchSource(cache, scorer)
    pairs = source.duplicates_of(range(len(source.ids)), threshold, show=True)
    ranked = sorted(pairs, key=lambda pair: -pair.agreement)
    return DuplicateReport(**source.searched, threshold=threshold, pairs=tuple(ranked))


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ConfigError(f"--threshold {threshold:g}; above 0 and at most 1 is needed")


def agreement_of(
    long_FD: np.ndarray, long_F: np.ndarray, short_ED: np.ndarray, short_E: np.ndarray
) -> tuple[float, float]:
    """Lay a video over every stretch of a longer one: (best mean cosine, offset in seconds).

    At an offset, each frame of the shorter meets the frame of the longer that is nearest in time.
    Embeddings are of unit length; `long_F` and `short_E` are presentation times in seconds.
    """
    cosine_EF = short_ED @ long_FD.T
    room = (long_F[-1] - long_F[0]) - (short_E[-1] - short_E[0])
    step = float(np.median(np.diff(long_F))) / 2 if len(long_F) > 1 else 1.0
    # Half a frame spacing beyond the ends: two poolings of one video need not start alike.
    offsets_O = np.arange(-step, max(room, 0.0) + 1.5 * step, step) if step > 0 else np.zeros(1)
    moments_OE = (short_E - short_E[0]) + long_F[0] + offsets_O[:, None]
    right_OE = np.clip(np.searchsorted(long_F, moments_OE), 1, max(len(long_F) - 1, 1))
    left_OE = right_OE - 1
    right_OE = np.minimum(right_OE, len(long_F) - 1)
    nearer_OE = np.where(
        np.abs(long_F[left_OE] - moments_OE) <= np.abs(long_F[right_OE] - moments_OE),
        left_OE,
        right_OE,
    )
    means_O = cosine_EF[np.arange(len(short_E)), nearer_OE].mean(axis=1)
    best = int(means_O.argmax())
    return float(means_O[best]), float(max(offsets_O[best], 0.0))


def _unit(x_ND: np.ndarray) -> np.ndarray:
    norms_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    unit_ND: np.ndarray = x_ND / np.maximum(norms_N1, 1e-12)
    return unit_ND


# --- the scorer of a text -----------------------------------------------------------------------


def _find_split_scorer(layout: CacheLayout, name: str | None) -> ScorerInfo:
    infos = list_scorers(layout)
    splits = [info for info in infos if read_settings(layout.scores(info.key)).get("split")]
    names = [info.name for info in splits]
    able = [info.name if names.count(info.name) == 1 else info.key for info in splits]
    listed = ", ".join(able) or "none in this cache"
    if name is None and len(splits) > 1:
        raise CacheError(f"{layout.root} can be searched by several scorers; --scorer: {listed}")
    info = splits[0] if name is None and splits else find_scorer(layout, name)
    if info not in splits:
        raise ConfigError(
            f"scorer '{info.name}' leaves no embeddings to search; choose one that embeds frames "
            f"and texts apart with --scorer: {listed}"
        )
    return info


def embed_text(
    layout: CacheLayout, info: ScorerInfo, text: str, scorer_model: str | None
) -> np.ndarray:
    """Embed a text with the scorer that made a key: float32 [D] of unit length.

    Raises:
        StaleCacheError: the model at hand is not that scorer; the message shows what differs.
        MissingInputError: the model is not where it was and none is named.
    """
    folder = layout.scores(info.key)
    recall, fields = read_recall(folder), read_settings(folder)["fields"]
    asked = recall["asked"] if recall is not None else {}
    request = ScorerRequest(
        model=scorer_model or asked.get("model"),
        device=asked.get("device", "auto"),
        dtype=asked.get("dtype"),
        batch_size=asked.get("embed_batch_size", fields.get("embed_batch_size", 64)),
        long_text=fields.get("long_text", "truncate"),
    )
    try:
        scorer = load_scorer(fields.get("scorer", info.name), request)
    except (ModelError, MissingInputError) as error:
        if scorer_model is not None:
            raise
        raise MissingInputError(
            f"{error}; that is the model which the cache remembers, name where it is now with "
            "--scorer-model"
        ) from None
    if not isinstance(scorer, SplitScorer):
        raise CacheError(f"scorer '{info.name}' does not embed texts any more")
    try:
        identity = scorer.identity()
        require_fields(folder, {k: v for k, v in identity.items() if k not in _MAY_DIFFER})
    except StaleCacheError as error:
        raise StaleCacheError(
            f"{error}; the text must be embedded by the model that embedded the frames: name it "
            "with --scorer-model"
        ) from None
    query_D = _unit(np.asarray(scorer.embed_questions([text]), np.float32))[0]
    if not np.isfinite(query_D).all() or not query_D.any():
        raise ConfigError(f"scorer '{info.name}' gives no embedding of '{text}'; use other words")
    return query_D
