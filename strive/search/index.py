"""The search index of one scorer: all its frame embeddings in faiss, kept beside them.

    embeddings/<scorer_key>/index.faiss        one row a pool frame, float16 as stored
    embeddings/<scorer_key>/index-videos.npy   mean embedding of each quarter of each video
    embeddings/<scorer_key>/index.json         the videos in order, the parts they came from, and
                                               digests of the other two files

It holds nothing that the parts do not: missing, damaged or stale, it is made again. Written by
atomic renames, `index.json` last: a kill in between leaves digests that do not fit.
"""

import hashlib
import io
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from strive.cache.commit import commit_json, list_parts, read_json
from strive.cache.embeddings import VideoEmbeddings, iter_embeddings, read_embedding_states
from strive.cache.frames import read_video_states
from strive.cache.layout import CacheLayout
from strive.errors import CacheDamageError, CacheError, DiskError
from strive.files import atomic_file

FLAT_UP_TO = 200_000
"""Frames up to which every search looks at all of them; beyond, a graph (HNSW) finds nearly all."""
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 100, 256
_FORMAT = 1
_DIGEST_WHOLE = 1 << 30
_DIGEST_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class SearchIndex:
    """Frames of V videos behind one another; `starts_V` has V + 1 entries.

    `state` says where it came from: `kept`, `extended`, `built`, or `built, not kept` when the
    cache cannot be written.
    """

    faiss_index: Any
    videos: dict[str, str]
    """{video_id: checksum of its frames}, in the order of the rows."""
    starts_V: np.ndarray
    quarters_VPD: np.ndarray
    """Mean embedding of each quarter of each video, float32 [V, 4, D]."""
    state: str

    @property
    def kind(self) -> str:
        """`flat` (exact) or `hnsw` (approximate)."""
        return "hnsw" if hasattr(self.faiss_index, "hnsw") else "flat"

    @property
    def num_frames(self) -> int:
        """Frames that can be found."""
        return int(self.starts_V[-1])

    def rows(self, number: int) -> np.ndarray:
        """Return the stored embeddings of a video by its number: float32 [F, D]."""
        start, end = int(self.starts_V[number]), int(self.starts_V[number + 1])
        rows_FD: np.ndarray = self.faiss_index.reconstruct_n(start, end - start)
        return rows_FD

    def nearest(self, query_D: np.ndarray, count: int) -> list[tuple[int, int]]:
        """Return (video number, frame) of the rows with the largest inner product, best first."""
        count = min(count, self.num_frames)
        if self.kind == "hnsw":
            self.faiss_index.hnsw.efSearch = max(HNSW_SEARCH, 2 * count)
        _, rows = self.faiss_index.search(query_D.astype(np.float32)[None], count)
        found = rows[0][rows[0] >= 0]
        numbers = np.searchsorted(self.starts_V, found, side="right") - 1
        frames = found - self.starts_V[numbers]
        return list(zip(numbers.tolist(), frames.tolist(), strict=True))


def open_index(
    layout: CacheLayout, scorer_key: str, frames_key: str, *, flat_up_to: int = FLAT_UP_TO
) -> SearchIndex:
    """Load the index of a scorer, bringing it up to date with the committed parts first.

    Raises:
        CacheError: the cache holds no embeddings of this scorer for the frames at hand.
    """
    folder = layout.embeddings(scorer_key)
    parts = {
        "parts": [path.name for path in list_parts(folder, "part")],
        "frames_parts": [path.name for path in list_parts(layout.frames(frames_key), "videos")],
    }
    about = _read_about(folder)
    if about is not None and all(about[name] == names for name, names in parts.items()):
        loaded = _load(folder, about, "kept")
        if loaded is not None:
            return loaded
        about = None
    states = read_video_states(layout, frames_key)
    embedded = read_embedding_states(layout, scorer_key)
    wanted = {name: state.checksum for name, state in states.items() if name in embedded}
    old = None
    if about is not None and all(wanted.get(name) == was for name, was in about["videos"].items()):
        old = _load(folder, about, "extended")
    missing = {name: sum_ for name, sum_ in wanted.items() if old is None or name not in old.videos}
    new = list(iter_embeddings(layout, scorer_key, missing))
    if old is None and not new:
        raise CacheError(
            f"{layout.root} holds no embeddings of {scorer_key} for the frames at hand; make them "
            "with `strive-cli precompute`"
        )
    index = _joined(old, new, flat_up_to)
    try:
        _keep(folder, index, parts)
    except DiskError:
        return SearchIndex(
            index.faiss_index, index.videos, index.starts_V, index.quarters_VPD, "built, not kept"
        )
    return index


# --- making -------------------------------------------------------------------------------------


def _joined(old: SearchIndex | None, new: list[VideoEmbeddings], flat_up_to: int) -> SearchIndex:
    num_frames = sum(len(video.embeddings_FD) for video in new)
    total = num_frames + (old.num_frames if old else 0)
    dimension = old.quarters_VPD.shape[2] if old else new[0].embeddings_FD.shape[1]
    wants_graph = total > flat_up_to
    if old is not None and wants_graph == (old.kind == "hnsw"):
        faiss_index = old.faiss_index
    else:
        faiss_index = _empty(dimension, wants_graph)
        if old is not None:
            faiss_index.add(old.faiss_index.reconstruct_n(0, old.num_frames))
    for video in new:
        faiss_index.add(np.ascontiguousarray(video.embeddings_FD, np.float32))
    starts = [0] if old is None else old.starts_V.tolist()
    for video in new:
        starts.append(starts[-1] + len(video.embeddings_FD))
    quarters = [_quarters(video.embeddings_FD.astype(np.float32)) for video in new]
    before = [] if old is None else [old.quarters_VPD]
    return SearchIndex(
        faiss_index,
        (old.videos if old else {}) | {video.video_id: video.frames_checksum for video in new},
        np.array(starts, np.int64),
        np.concatenate([*before, np.array(quarters, np.float32).reshape(-1, 4, dimension)]),
        "built" if old is None else "extended",
    )


def _quarters(rows_FD: np.ndarray) -> np.ndarray:
    """Means of four equal stretches [4, D]; with fewer frames than four, some share a frame."""
    edges = np.arange(5) * len(rows_FD) // 4
    return np.stack(
        [rows_FD[start : max(end, start + 1)].mean(axis=0) for start, end in pairwise(edges)]
    )


def _empty(dimension: int, wants_graph: bool) -> Any:
    import faiss

    index: Any
    metric = faiss.METRIC_INNER_PRODUCT
    # float16 rows: the stored embeddings to the last bit, in half the memory.
    kind: Any = faiss.ScalarQuantizer.QT_fp16
    if wants_graph:
        index = faiss.IndexHNSWSQ(dimension, kind, HNSW_LINKS, metric)
        index.hnsw.efConstruction = HNSW_BUILD
    else:
        index = faiss.IndexScalarQuantizer(dimension, kind, metric)
    index.train(np.zeros((1, dimension), np.float32))
    return index


# --- keeping and loading ------------------------------------------------------------------------


def _keep(folder: Path, index: SearchIndex, parts: dict[str, list[str]]) -> None:
    import faiss

    with atomic_file(folder / "index.faiss") as temporary:
        try:
            faiss.write_index(index.faiss_index, str(temporary))
        except RuntimeError as error:
            raise DiskError(f"cannot write {folder / 'index.faiss'}: {error}") from None
    with atomic_file(folder / "index-videos.npy") as temporary:
        buffer = io.BytesIO()
        np.save(buffer, index.quarters_VPD, allow_pickle=False)
        temporary.write_bytes(buffer.getvalue())
    about = {
        "format": _FORMAT,
        "kind": index.kind,
        "num_frames": index.num_frames,
        **parts,
        "digests": {name: _digest(folder / name) for name in ("index.faiss", "index-videos.npy")},
        "frames_per_video": np.diff(index.starts_V).tolist(),
        "videos": index.videos,
    }
    commit_json(folder / "index.json", about)


def _read_about(folder: Path) -> dict[str, Any] | None:
    """Read `index.json`; None where there is none that this version can use."""
    path = folder / "index.json"
    if not path.is_file():
        return None
    try:
        about = read_json(path)
    except CacheDamageError:
        return None
    wanted = {"format", "parts", "frames_parts", "digests", "frames_per_video", "videos"}
    return about if wanted <= about.keys() and about["format"] == _FORMAT else None


def _load(folder: Path, about: dict[str, Any], state: str) -> SearchIndex | None:
    """Load what `index.json` describes; None where the files are not those."""
    import faiss

    try:
        if any(_digest(folder / name) != was for name, was in about["digests"].items()):
            return None
        faiss_index = faiss.read_index(str(folder / "index.faiss"))
        quarters_VPD = np.load(folder / "index-videos.npy", allow_pickle=False)
    except (OSError, RuntimeError, ValueError):
        return None
    starts_V = np.concatenate([[0], np.cumsum(about["frames_per_video"], dtype=np.int64)])
    shape = (len(about["videos"]), 4, faiss_index.d)
    if faiss_index.ntotal != starts_V[-1] or quarters_VPD.shape != shape:
        return None
    return SearchIndex(faiss_index, about["videos"], starts_V, quarters_VPD, state)


def _digest(path: Path) -> str:
    """Digest of a file; of one above 1 GiB, of its size and a thousand blocks spread over it."""
    digest = hashlib.blake2b(digest_size=16)
    size = path.stat().st_size
    stride = _DIGEST_BLOCK if size <= _DIGEST_WHOLE else size // 1024
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for start in range(0, size, stride):
            file.seek(start)
            digest.update(file.read(_DIGEST_BLOCK))
    return digest.hexdigest()
