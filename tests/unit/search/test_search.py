"""Search against a plain look at every stored score."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from clip_world import TOY, World, question

from strive.cache.care import OLD_INDEX, apply_prune, walk_cache
from strive.cache.commit import commit_parquet
from strive.cache.frames import VIDEOS_SCHEMA, FrameReader
from strive.cache.layout import CacheLayout, create_cache, ensure_settings, open_cache
from strive.cache.scores import ScoreReader, VideoEmbeddings, commit_embeddings
from strive.cache.verify import verify_cache
from strive.errors import (
    CacheError,
    ConfigError,
    MissingInputError,
    StaleCacheError,
)
from strive.pipeline.run import precompute
from strive.records import write_records
from strive.report.pages import render_duplicates_page, render_search_page
from strive.scorers import cosines
from strive.search.nearest import (
    DuplicatePair,
    SearchSource,
    agreement_of,
    find_duplicates,
    search_text,
)
from strive.seeding import derive_rng

WEIGHTS = "pipeline.toy_scorer:make_weights"


@pytest.fixture(scope="module")
def made_cache(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    write_records(folder / "records.jsonl", [question(n, f"clip{n // 2}.mp4") for n in range(8)])
    precompute(World(clip_folder, folder / "records.jsonl").options(folder / "cache"))
    return folder / "cache"


@pytest.fixture
def cache(made_cache: Path, tmp_path: Path) -> Path:
    """A cache of the world's clips, a test's own."""
    return Path(shutil.copytree(made_cache, tmp_path / "cache"))


def every_score(cache: Path, question_id: str, video_id: str) -> list[tuple[float, str, int]]:
    layout = open_cache(cache)
    found = ScoreReader(layout, layout.scorer_keys()[0]).get(question_id)
    assert found is not None and found.video_id == video_id
    return [(float(score), video_id, frame) for frame, score in enumerate(found.scores_F)]


def test_the_nearest_frames_are_those_with_the_best_scores(world: World, tmp_path: Path) -> None:
    """The same text asked about every video: what search finds is what `precompute` scored."""
    text = "What is shown here?"
    write_records(world.data, [question(n, f"clip{n}.mp4", text) for n in range(4)])
    cache = tmp_path / "cache"
    precompute(world.options(cache, scorers=("pipeline.toy_scorer:make_telling",)))
    scored = [row for n in range(4) for row in every_score(cache, str(n), f"clip{n}.mp4")]
    scored.sort(key=lambda row: -row[0])
    assert len({score for score, _, _ in scored}) > 7
    result = search_text(cache, text, top=7)
    assert [frame.score for frame in result.frames] == [score for score, _, _ in scored[:7]]
    by_frame = {(video_id, frame): score for score, video_id, frame in scored}
    layout = open_cache(cache)
    pools = FrameReader(layout, layout.frames_keys()[0])
    for frame in result.frames:
        assert by_frame[frame.video_id, frame.frame_index] == frame.score
        pts_seconds_F = pools.info(frame.video_id).pts_seconds_F
        assert frame.pts_seconds == pts_seconds_F[frame.frame_index]
    assert (result.num_videos, result.num_frames) == (4, len(scored))
    one_each = search_text(cache, text, top=9, per_video=1)
    assert sorted(frame.video_id for frame in one_each.frames) == [f"clip{n}.mp4" for n in range(4)]


def test_every_search_sees_the_videos_that_the_cache_holds_now(
    world: World, cache: Path, tmp_path: Path
) -> None:
    assert search_text(cache, "cats").index == "flat, built"
    shutil.copy(world.root / "clip2.mp4", world.root / "clip9.mp4")
    more = tmp_path / "more.jsonl"
    write_records(more, [question(99, "clip9.mp4")])
    precompute(world.options(cache, data=(more,)))
    assert search_text(cache, "cats", top=200).num_videos == 5
    layout = open_cache(cache)
    assert not list(layout.embeddings(layout.scorer_keys()[0]).glob("index*"))


def test_an_index_that_an_older_version_kept_is_a_leftover(cache: Path) -> None:
    wanted = search_text(cache, "cats")
    layout = open_cache(cache)
    folder = layout.embeddings(layout.scorer_keys()[0])
    old = [folder / name for name in ("index.faiss", "index-videos.npy", "index.json")]
    for path in old:
        path.write_bytes(b"of before")
    assert search_text(cache, "cats") == wanted
    assert verify_cache(cache) == []
    assert walk_cache(cache).num_young == 3
    plan = walk_cache(cache, safe_age_seconds=-1)
    assert plan.by_reason == {OLD_INDEX: (3, 27)} and {r.path for r in plan.removals} == set(old)
    apply_prune(plan)
    assert search_text(cache, "cats") == wanted and not any(path.exists() for path in old)


def test_the_stored_rows_are_searched_to_the_last_bit(tmp_path: Path) -> None:
    layout = create_cache(tmp_path / "cache")
    rng = derive_rng(0, "flat")
    rows = rng.normal(size=(40, 50, 24))
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    stored = rows.astype(np.float16)
    videos = [VideoEmbeddings(f"v{n:02d}", x, "sum") for n, x in enumerate(stored)]
    add_states(layout, videos)
    # Rows of frames that were since decoded anew do not count, wherever they stand.
    of_before = VideoEmbeddings("v07", stored[8], "sum of other frames")
    commit_embeddings(layout, "scorer", [of_before], writer="test")
    source = SearchSource(layout.root, None)
    assert (len(source.ids), source.num_frames) == (40, 2000)
    np.testing.assert_array_equal(source.rows(source.ids.index("v07")), stored[7])
    everything = stored.reshape(-1, 24)
    for query_D in rng.normal(size=(20, 24)).astype(np.float32):
        scores = cosines(everything, query_D)
        best = np.argsort(-scores, kind="stable")[:10]
        found = [
            (int(source.ids[video][1:]) * 50 + frame, score)
            for video, frame, score in source.nearest(query_D, 10)
        ]
        assert found == [(row, scores[row]) for row in best.tolist()]


def add_states(layout: CacheLayout, videos: list[VideoEmbeddings]) -> None:
    """Embeddings with just enough of frames and settings that they count as those at hand."""
    fields = {"frames_key": "frames"}
    settings = {
        "name": "scorer", "kind": "similarity", "allowed_transforms": ["none"], "split": True,
        "fields": fields,
    }  # fmt: skip
    ensure_settings(layout.scores("scorer"), settings)
    commit_embeddings(layout, "scorer", videos, writer="test")
    rows = [
        {
            "video_id": v.video_id, "path": v.video_id, "size_bytes": 1, "content_digest": "",
            "num_frames": len(v.embeddings_FD), "source_index": [],
            "pts_seconds": np.arange(len(v.embeddings_FD), dtype=float).tolist(),
            "source_fps": 1.0, "source_num_frames": 1, "duration_seconds": 1.0, "height": 1,
            "width": 1, "codec": "", "decoder": "", "shard": "", "offsets": [],
            "lengths": [], "checksum": v.frames_checksum,
        }
        for v in videos
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=VIDEOS_SCHEMA)
    commit_parquet(layout.frames("frames") / "videos-1.parquet", table)


def test_only_split_scorers_can_search(world: World, cache: Path) -> None:
    precompute(world.options(cache, scorers=(WEIGHTS,)))
    assert search_text(cache, "cats").scorer == TOY  # the only one that can
    with pytest.raises(ConfigError, match=f"leaves no embeddings to search.*with --scorer: {TOY}"):
        search_text(cache, "cats", scorer=WEIGHTS)
    precompute(world.options(cache, frames=5))
    with pytest.raises(CacheError, match=r"by several scorers; --scorer: .*toy-[0-9a-f]+, .*toy-"):
        search_text(cache, "cats")
    with pytest.raises(ConfigError, match="TEXT is empty"):
        search_text(cache, "  ")
    with pytest.raises(ConfigError, match="--threshold 2"):
        find_duplicates(cache, threshold=2)


def test_the_model_must_be_the_one_that_embedded_the_frames(cache: Path) -> None:
    layout = open_cache(cache)
    folder = layout.scores(layout.scorer_keys()[0])
    settings = json.loads((folder / "settings.json").read_text())
    settings["fields"]["revision"] = 2
    (folder / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(StaleCacheError, match=r"revision: the cache has 2, this call has 1.*model"):
        search_text(cache, "cats")


def test_a_model_that_has_moved_is_asked_for(cache: Path) -> None:
    layout = open_cache(cache)
    folder = layout.scores(layout.scorer_keys()[0])
    settings = json.loads((folder / "settings.json").read_text())
    settings["fields"]["scorer"] = "no_such_module:scorer"
    (folder / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(MissingInputError, match="name where it is now with --scorer-model"):
        search_text(cache, "cats")


def test_without_embeddings_the_way_to_them_is_named(cache: Path) -> None:
    layout = open_cache(cache)
    shutil.rmtree(layout.embeddings(layout.scorer_keys()[0]))
    with pytest.raises(CacheError, match=r"holds no embeddings.*precompute"):
        search_text(cache, "cats")


def test_agreement_finds_where_a_cut_begins() -> None:
    # Unit vectors that turn with time: the cosine of two moments is cos(0.5 * their distance).
    def turning(times_F: np.ndarray) -> np.ndarray:
        return np.stack([np.cos(0.5 * times_F), np.sin(0.5 * times_F)], axis=1)

    long_F, cut_F = np.arange(64) * 0.1, np.arange(64) * 0.05
    value, offset = agreement_of(turning(long_F), long_F, turning(cut_F + 2.0), cut_F)
    assert value > 0.9995 and offset == pytest.approx(2.0, abs=0.051)
    # Clocks that do not begin at 0, the piece's or the whole's, change nothing.
    for late_long, late_cut in ((0.0, 5.0), (7.0, 0.0)):
        again = agreement_of(
            turning(long_F), long_F + late_long, turning(cut_F + 2.0), cut_F + late_cut
        )
        assert again[0] > 0.9995 and again[1] == pytest.approx(2.0, abs=0.051)
    # The other way round in time: nowhere do the moments agree.
    value, _ = agreement_of(turning(long_F), long_F, turning(40 - 3 * cut_F), cut_F)
    assert value < 0.9
    # One frame each.
    one_F = np.zeros(1)
    assert agreement_of(turning(one_F), one_F, turning(one_F), one_F) == (1.0, 0.0)


def test_videos_are_compared_about_the_mean_of_all_frames(tmp_path: Path) -> None:
    # Frames 4 x (1, 0, 0), 4 x (0, 1, 0), 12 x (0, 0, 1): the mean is (0.2, 0.2, 0.6). The first
    # two are then (0.8, -0.2, -0.6) and (-0.2, 0.8, -0.6): their cosine is 0.04 / 1.04, and of
    # either with the third, (-0.2, -0.2, 0.4), it is -0.36 / sqrt(1.04 * 0.24).
    layout = create_cache(tmp_path / "cache")
    rows_VD = np.eye(3, dtype=np.float16)
    lengths = {"a": 4, "b": 4, "c": 12}
    videos = [
        VideoEmbeddings(name, np.tile(row_D, (length, 1)), "sum")
        for (name, length), row_D in zip(lengths.items(), rows_VD, strict=True)
    ]
    add_states(layout, videos)
    pairs = SearchSource(layout.root, None).duplicates_of(range(3), -1.0)
    found = {frozenset((pair.first, pair.second)): pair.agreement for pair in pairs}
    with_c = -0.36 / np.sqrt(1.04 * 0.24)
    wanted = {"ab": 0.04 / 1.04, "ac": with_c, "bc": with_c}
    assert found == pytest.approx({frozenset(pair): value for pair, value in wanted.items()})


def test_pages_hold_what_was_found_and_escape_it(cache: Path) -> None:
    result = search_text(cache, "<script>alert(1)</script>", top=5)
    frames = FrameReader(open_cache(cache), result.frames_key)
    page = render_search_page(result, frames)
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert page.count("data:image/jpeg;base64,") == 5 and "http" not in page
    # Every frame of these clips is alike to the toy scorer: it tells nothing apart, so nothing is
    # called a duplicate.
    report = find_duplicates(cache)
    assert report.pairs == ()
    pair = DuplicatePair("clip1.mp4", "clip0.mp4", 0.97, 0.4, (1.6, 1.2))
    page = render_duplicates_page(dataclasses.replace(report, pairs=(pair,)), frames)
    assert page.count("data:image/jpeg;base64,") == 12 and "http" not in page
    assert "begins 0.4 s into the first" in page
