"""Batches across videos, the queues between the threads, and faults in any of them."""

import pickle
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clip_world import World, question
from video import coded_clips as clips

from strive.cache.commit import list_parts, part_number
from strive.cache.failures import FailureRow
from strive.cache.frames import EncodedVideo
from strive.cache.layout import CacheLayout, create_cache, open_cache
from strive.cache.scores import (
    QuestionScores,
    ScoreReader,
    VideoEmbeddings,
    find_scorer,
    iter_embeddings,
    read_embedding_states,
)
from strive.cache.verify import verify_cache
from strive.errors import ModelError
from strive.lab.models import lab_model_path
from strive.pipeline.embed import Batch, Batcher, EmbedRequest, VideoProgress
from strive.pipeline.part import Part, StageCounts
from strive.pipeline.queues import BusyClock, CallQueue, QueueClosed
from strive.pipeline.run import precompute
from strive.records import VideoFacts, shard_of, write_records
from strive.scorers import BatchedScorer, ScorerRequest, load_scorer
from strive.scorers.session import ScorerSession

SIGLIP2 = {"scorers": ("siglip2",), "scorer_models": {"siglip2": str(lab_model_path("siglip2"))}}
LENGTHS = (30, 40, 5, 50, 3, 60)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Six clips with 12, 5 or 3 pool frames, so that batches of 16 run across videos."""
    root = tmp_path_factory.mktemp("mixed")
    for number, length in enumerate(LENGTHS):
        clips.write_clip(root / f"clip{number}.mp4", length)
    data = root / "records.jsonl"
    write_records(data, [question(n, f"clip{n % 6}.mp4") for n in range(9)])
    return World(root, data)


def bits_of(cache: Path) -> dict[str, bytes]:
    """Every stored embedding and score of a cache with one scorer."""
    layout = open_cache(cache)
    key = find_scorer(layout, None).key
    reader = ScoreReader(layout, key)
    bits = {name: reader.get(name).scores_F.tobytes() for name in sorted(reader.question_ids)}  # type: ignore[union-attr]
    for video in iter_embeddings(layout, key, read_embedding_states(layout, key)):
        bits[video.video_id] = video.embeddings_FD.tobytes()
    return bits


@pytest.fixture(scope="module")
def plain(mixed: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    cache = tmp_path_factory.mktemp("plain") / "cache"
    precompute(mixed.options(cache, **SIGLIP2, embed_batch_size=16, workers=1))
    assert verify_cache(cache) == []
    return bits_of(cache)


def test_numbers_do_not_depend_on_what_shares_a_batch(
    mixed: World, plain: dict[str, bytes], tmp_path: Path
) -> None:
    assert len(plain) == 9 + len(LENGTHS)
    shuffled = tmp_path / "shuffled.jsonl"
    write_records(shuffled, [question(n, f"clip{n % 6}.mp4") for n in (7, 2, 8, 4, 1, 6, 0, 3, 5)])
    options = {**SIGLIP2, "embed_batch_size": 16}
    precompute(mixed.options(tmp_path / "a", data=(shuffled,), **options))
    assert bits_of(tmp_path / "a") == plain
    for limit in (1, 4, None):  # the same in three calls, each with other neighbours
        precompute(mixed.options(tmp_path / "b", limit=limit, **options))
    assert bits_of(tmp_path / "b") == plain
    for shard in {shard_of(f"clip{n}.mp4", 3) for n in range(len(LENGTHS))}:
        precompute(mixed.options(tmp_path / "c", shard=(shard, 3), **options))
    assert bits_of(tmp_path / "c") == plain


def test_embeddings_from_the_cache_equal_those_of_the_first_run(
    mixed: World, plain: dict[str, bytes], tmp_path: Path
) -> None:
    options = mixed.options(tmp_path / "cache", **SIGLIP2, embed_batch_size=16)
    precompute(options)
    for folder in ("embeddings", "scores"):
        shutil.rmtree(tmp_path / "cache" / folder)
    again = precompute(options)
    assert (again.num_decoded, again.num_embedded, again.num_scored) == (0, 6, 9)
    assert bits_of(tmp_path / "cache") == plain


def test_the_lab_scorer_takes_batches_and_its_rows_stand_alone() -> None:
    scorer = load_scorer("siglip2", ScorerRequest(str(lab_model_path("siglip2")), batch_size=16))
    assert isinstance(scorer, BatchedScorer)
    frames = np.random.default_rng(0).integers(0, 255, (16, 48, 64, 3), np.uint8)
    prepared = scorer.prepare_frames(frames)
    together = np.asarray(scorer.embed_prepared(prepared))
    order = np.random.default_rng(1).permutation(16)
    np.testing.assert_array_equal(
        np.asarray(scorer.embed_prepared(prepared[order])), together[order]
    )
    for row in (0, 7, 15):
        alone = np.asarray(scorer.embed_prepared(prepared[row : row + 1]))
        np.testing.assert_array_equal(alone[0], together[row])


def request(name: str, num_frames: int) -> EmbedRequest:
    session = ScorerSession("toy", ScorerRequest(), CacheLayout(Path("nowhere")), "frames-key")
    return EmbedRequest(session, VideoProgress(name, num_frames), ())


def test_batches_are_cut_across_videos() -> None:
    batcher = Batcher(8)
    rows = np.arange(23, dtype=np.float32).reshape(23, 1)
    requests = [request("a", 5), request("b", 12), request("c", 6)]

    def feed() -> Iterator[Batch]:
        start = 0
        for each in requests:
            stop = start + each.video.num_frames
            yield from batcher.add(each, rows[start:stop])
            start = stop
        yield from batcher.flush()

    batches = list(feed())
    assert [len(batch.prepared) for batch in batches] == [8, 8, 7]
    assert [[(r.video.video_id, n) for r, n in batch.spans] for batch in batches] == [
        [("a", 5), ("b", 3)],
        [("b", 8)],
        [("b", 1), ("c", 6)],
    ]
    np.testing.assert_array_equal(np.concatenate([batch.prepared for batch in batches]), rows)
    assert list(batcher.flush()) == []


def number_of(calls: CallQueue) -> int:
    call = calls.get()
    assert call is not None
    return int(call())


def test_a_queue_waits_for_room_by_count_and_by_bytes() -> None:
    calls = CallQueue(2, 100)
    calls.put(int, 0, num_bytes=500)  # one call always fits
    done = []

    def put() -> None:
        for number in (1, 2, 3):
            calls.put(int, number, num_bytes=40)
            done.append(number)

    thread = threading.Thread(target=put)
    thread.start()
    time.sleep(0.1)
    assert done == []
    assert number_of(calls) == 0
    time.sleep(0.1)
    assert done == [1, 2]
    assert [number_of(calls) for _ in range(3)] == [1, 2, 3]
    thread.join()
    assert calls.get(timeout_seconds=0.01) is None


def test_a_closed_queue_ends_both_sides() -> None:
    calls = CallQueue(4, 100)
    made: list[int] = []
    calls.put(made.append, 1)
    calls.close()
    with pytest.raises(QueueClosed):
        calls.put(made.append, 2)
    with pytest.raises(QueueClosed):
        calls.make_calls()
    assert made == [1]
    dropped = CallQueue(1, 100)
    dropped.put(made.append, 1)
    ended = []

    def put_in_vain() -> None:
        with pytest.raises(QueueClosed):
            dropped.put(made.append, 2)
        ended.append(True)

    waiting = threading.Thread(target=put_in_vain)
    waiting.start()
    dropped.close(drop=True)
    waiting.join(5)
    assert ended == [True]
    with pytest.raises(QueueClosed):
        dropped.get()


def test_a_clock_counts_what_overlaps_once() -> None:
    clock = BusyClock()

    def work() -> None:
        with clock:
            time.sleep(0.2)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.total_seconds > 0.55
    assert 0.2 <= clock.wall_seconds < clock.total_seconds - 0.2


def test_a_part_is_committed_frames_first_then_what_is_made_of_them(tmp_path: Path) -> None:
    """Else a kill in between would leave scores of frames that are not there."""
    layout = create_cache(tmp_path / "cache")
    counts = StageCounts()
    part = Part(layout, "frames", counts, writer="w")
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    facts = VideoFacts(
        source_index_F=np.arange(2),
        pts_seconds_F=np.arange(2.0),
        source_fps=1.0,
        source_num_frames=2,
        duration_seconds=2.0,
        height=4,
        width=4,
        orientation=1,
        codec="h264",
        decoder="pyav",
    )
    frames = tuple(frame.tobytes() for frame in pixels)
    part.add_frames(EncodedVideo("a.mp4", facts, 1, "digest", frames))
    part.add_embeddings("scorer", VideoEmbeddings("a.mp4", np.eye(2, dtype=np.float16), "sum"))
    row = QuestionScores("1", "a.mp4", np.zeros(2, np.float32), None, None, "text", "sum")
    part.add_scores("scorer", [row])
    part.add_failure(FailureRow("b.mp4", "b.mp4", "decode", "damaged", "", 0.0, "frames"))
    part.commit()
    # The number in a name says what came after what.
    folders = {
        layout.frames("frames"): "videos",
        layout.embeddings("scorer"): "part",
        layout.scores("scorer"): "part",
        layout.failures: "part",
    }
    parts = [path for folder, prefix in folders.items() for path in list_parts(folder, prefix)]
    assert len(parts) == 4 and parts == sorted(parts, key=part_number)
    assert (counts.num_decoded, counts.num_embedded, counts.num_scored) == (1, 1, 1)
    assert counts.num_parts == 4 and counts.failed == {"b.mp4": "damaged"}


def test_counts_add_up_and_begin_again() -> None:
    counts = StageCounts(num_decoded=2, failed={"a": "damaged"}, write_seconds=0.5)
    counts.add(StageCounts(num_decoded=3, failed={"a": "nonfinite", "b": "timeout"}))
    # Video `a` has failed twice: it is one video.
    assert (counts.num_decoded, counts.num_failed, counts.write_seconds) == (5, 2, 0.5)
    assert counts.failed_by_error == {"damaged": 1, "timeout": 1}
    counts.reset()
    assert counts == StageCounts()


def test_a_session_travels_without_its_model(world: World, tmp_path: Path) -> None:
    request = ScorerRequest(str(lab_model_path("siglip2")))
    session = ScorerSession("siglip2", request, CacheLayout(tmp_path), "frames-key")
    key, mode = session.key, session.scorer.mode
    data = pickle.dumps(session)
    assert len(data) < 10_000
    copy: ScorerSession = pickle.loads(data)
    assert copy._scorer is None and (copy.key, copy.scorer.mode) == (key, mode)


def test_a_fault_of_the_model_ends_the_run_and_keeps_what_is_finished(
    world: World, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(ModelError, match=r"shape \(3, 4\)"):
        precompute(world.options(cache, scorers=("pipeline.toy_scorer:make_wrong",)))
    assert verify_cache(cache) == []
    assert not list(cache.rglob(".tmp-*"))
    # The frames that were decoded by then are there.
    assert precompute(world.options(cache)).num_decoded < 4


def test_an_unforeseen_fault_of_a_scorer_is_a_row(world: World, tmp_path: Path) -> None:
    summary = precompute(
        world.options(tmp_path / "cache", scorers=("pipeline.toy_scorer:make_raising",))
    )
    assert summary.failed_by_error == {"unexpected": 1} and summary.num_scored == 6
