"""Prune removes what no reader sees, and nothing else: every reader is asked before and after."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cache.conftest import add_frames, add_scorer, encoded
from strive.cache.care import (
    NO_SETTINGS,
    SUPERSEDED,
    TEMPORARY,
    UNLISTED,
    Contents,
    apply_prune,
    cache_info,
    plan_drop,
    walk_cache,
)
from strive.cache.commit import commit_parquet, list_parts, read_part
from strive.cache.frames import (
    FrameCodec,
    FrameReader,
    FrameWriter,
    read_video_states,
)
from strive.cache.layout import CacheLayout, live_writers
from strive.cache.scores import (
    QuestionScores,
    ScoreReader,
    VideoEmbeddings,
    commit_embeddings,
    commit_scores,
    iter_embeddings,
    read_embedding_states,
)
from strive.cache.verify import verify_cache
from strive.errors import CacheError, UnknownNameError
from strive.files import atomic_file

HOURS = 3600.0


@pytest.fixture
def filled(layout: CacheLayout) -> CacheLayout:
    frames_key = add_frames(layout, "jpeg", "a", "b")
    add_scorer(layout, "siglip2", frames_key, "1@a", "2@b")
    return layout


def age(path: Path, seconds: float = 2 * HOURS) -> None:
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        os.utime(file, (time.time() - seconds,) * 2)


def orphan(layout: CacheLayout) -> Path:
    """Pixels whose rows were never committed, as a kill between the two leaves them."""
    folder = layout.frames(layout.frames_keys()[0])
    path = folder / "frames-0000000000000000001-s0of1-0123abcd.arrow"
    path.write_bytes(b"x" * 1000)
    return path


def everything_seen(layout: CacheLayout) -> dict[str, object]:
    """All that readers see."""
    seen: dict[str, object] = {}
    for key in layout.frames_keys():
        frames = FrameReader(layout, key)
        for video_id in frames.video_ids:
            info = frames.info(video_id)
            frames_FHWC = frames.read(video_id, range(info.num_frames))
            seen[f"{key} {video_id}"] = (frames_FHWC.tobytes(), info.pts_seconds_F.tolist())
    for key in layout.scorer_keys():
        scores = ScoreReader(layout, key)
        for question_id in scores.question_ids:
            found = scores.get(question_id)
            assert found is not None
            seen[f"{key} {question_id}"] = found.scores_F.tolist()
        states = read_video_states(layout, scores.frames_key)
        wanted = {video_id: state.checksum for video_id, state in states.items()}
        for video in iter_embeddings(layout, key, wanted):
            seen[f"{key} embedding {video.video_id}"] = video.embeddings_FD.tobytes()
    return seen


def test_a_clean_cache_stays_as_it_is(filled: CacheLayout) -> None:
    age(filled.root)
    plan = walk_cache(filled.root, superseded=True)
    assert plan.removals == () and plan.num_young == 0


def test_old_leftovers_go_and_nothing_else(filled: CacheLayout) -> None:
    seen = everything_seen(filled)
    temporary = filled.scores("x").parent / ".tmp-999999999-aa-part-1-s0of1-x.parquet"
    temporary.write_bytes(b"y" * 10)
    bare = filled.embeddings("dropped-1234")
    bare.mkdir()
    (bare / "part-1.parquet").write_bytes(b"z" * 7)
    (bare / ".tmp-999999999-bb-part").write_bytes(b"z" * 3)
    pixels = orphan(filled)
    for path in (temporary, bare, pixels):
        age(path)
    plan = walk_cache(filled.root)
    assert plan.by_reason == {TEMPORARY: (1, 10), NO_SETTINGS: (1, 10), UNLISTED: (1, 1000)}
    assert temporary.exists() and bare.exists() and pixels.exists()  # a plan changes nothing
    assert cache_info(filled.root).num_orphan_bytes == 1020
    before = cache_info(filled.root).num_bytes
    assert apply_prune(plan) == plan.num_bytes == 1020
    assert cache_info(filled.root).num_bytes == before - 1020
    assert not (temporary.exists() or bare.exists() or pixels.exists())
    assert everything_seen(filled) == seen and verify_cache(filled.root) == []
    assert apply_prune(plan) == 0  # gone already: nothing to do, no error


def test_young_leftovers_stay(filled: CacheLayout) -> None:
    pixels = orphan(filled)
    with atomic_file(filled.frames(filled.frames_keys()[0]) / "frames-2.arrow") as temporary:
        temporary.write_bytes(b"half of it")
        plan = walk_cache(filled.root)
        assert plan.removals == () and plan.num_young == 2
        apply_prune(plan)
        assert temporary.exists() and pixels.exists()
        # However old: its process runs.
        age(temporary)
        age(pixels)
        assert [r.path for r in walk_cache(filled.root).removals] == [pixels]


def test_a_running_writers_files_stay_whatever_their_age(filled: CacheLayout) -> None:
    pixels = orphan(filled)
    age(pixels)
    filled.writers.mkdir()
    lock = filled.writers / "s0of1.lock"
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        owner = {"writer": "s0of1", "host": socket.gethostname(), "pid": sleeper.pid}
        lock.write_text(json.dumps(owner))
        assert live_writers(filled) == {"s0of1"}
        assert walk_cache(filled.root).removals == ()
        with pytest.raises(CacheError, match="being written by s0of1"):
            plan_drop(filled.root, scorers=("siglip2",), frames_keys=())
    finally:
        sleeper.communicate(b"\n")
    assert live_writers(filled) == set()
    assert [r.path for r in walk_cache(filled.root).removals] == [pixels]


def test_a_lock_held_elsewhere_counts(filled: CacheLayout) -> None:
    filled.writers.mkdir()
    lock = filled.writers / "s1of2.lock"
    lock.write_text(json.dumps({"writer": "s1of2", "host": "another-machine", "pid": 1}))
    assert live_writers(filled) == set()
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    assert live_writers(filled) == {"s1of2"}
    holder.communicate(b"\n")
    assert live_writers(filled) == set()


def again(layout: CacheLayout, video_id: str, *, num_frames: int = 4) -> None:
    """Decode a video anew, embed and score it, as `--overwrite` does."""
    (frames_key,), (scorer_key,) = layout.frames_keys(), layout.scorer_keys()
    writer = FrameWriter(layout, frames_key, writer="again")
    writer.add(encoded(video_id, FrameCodec("jpeg"), num_frames))
    writer.commit()
    checksum = read_video_states(layout, frames_key)[video_id].checksum
    embeddings_FD = np.full((num_frames, 3), 0.5, np.float16)
    videos = [VideoEmbeddings(video_id, embeddings_FD, checksum)]
    commit_embeddings(layout, scorer_key, videos, writer="again")
    scores_F = np.ones(num_frames, np.float32)
    row = QuestionScores(f"1@{video_id}", video_id, scores_F, 4, False, "query", checksum)
    commit_scores(layout, scorer_key, [row], writer="again")


def test_superseded_rows_go_only_when_asked(filled: CacheLayout) -> None:
    again(filled, "a")
    again(filled, "b", num_frames=3)
    (frames_key,) = filled.frames_keys()
    first = list_parts(filled.frames(frames_key), "frames", ".arrow")[0]
    age(filled.root)
    seen = everything_seen(filled)
    assert walk_cache(filled.root).removals == ()
    plan = walk_cache(filled.root, superseded=True)
    assert set(plan.by_reason) == {SUPERSEDED} and first in [r.path for r in plan.removals]
    before = cache_info(filled.root).num_bytes
    freed = apply_prune(plan)
    assert cache_info(filled.root).num_bytes == before - freed
    assert not first.exists()
    assert everything_seen(filled) == seen and verify_cache(filled.root) == []
    age(filled.root)
    assert walk_cache(filled.root, superseded=True).removals == ()


def test_a_kill_between_rewriting_and_removing_harms_nobody(filled: CacheLayout) -> None:
    again(filled, "a")
    again(filled, "b")
    age(filled.root)
    seen = everything_seen(filled)
    plan = walk_cache(filled.root, superseded=True)
    for count in range(len(plan.removals) + 1):
        apply_prune(Contents(plan.root, plan.removals[:count]))
        assert everything_seen(filled) == seen and verify_cache(filled.root) == []


def test_young_replacements_keep_the_old_rows(filled: CacheLayout) -> None:
    age(filled.root)
    again(filled, "a")
    again(filled, "b")
    parts = walk_cache(filled.root, superseded=True).removals
    # The rows that replace are young. Stale scores and embeddings are seen by nobody either way.
    assert all(filled.frames(filled.frames_keys()[0]) not in r.path.parents for r in parts)


def test_embeddings_of_the_frames_at_hand_stay_behind_those_of_others(filled: CacheLayout) -> None:
    """A re-decode that was undone: the last embeddings row is stale, an earlier one is right."""
    (scorer_key,) = filled.scorer_keys()
    stale = [VideoEmbeddings("a", np.zeros((5, 3), np.float16), "of other frames")]
    commit_embeddings(filled, scorer_key, stale, writer="again")
    age(filled.root)
    seen = everything_seen(filled)
    apply_prune(walk_cache(filled.root, superseded=True))
    assert everything_seen(filled) == seen
    states = read_video_states(filled, filled.frames_keys()[0])
    assert read_embedding_states(filled, scorer_key)["a"] == states["a"].checksum


def test_pixels_stay_when_their_list_cannot_be_read(filled: CacheLayout) -> None:
    (frames_key,) = filled.frames_keys()
    part = next(filled.frames(frames_key).glob("videos-*.parquet"))
    part.write_bytes(part.read_bytes()[:-5])
    age(filled.root)
    plan = walk_cache(filled.root)
    assert plan.removals == () and part.name in plan.damaged[0]
    assert part.name in walk_cache(filled.root, superseded=True).damaged[0]


@pytest.mark.parametrize("kind", ["frames", "scores"])
def test_a_set_that_lost_its_settings_is_damage_and_stays(filled: CacheLayout, kind: str) -> None:
    (folder,) = (filled.root / kind).iterdir()
    settings = folder / "settings.json"
    text = settings.read_text()
    settings.unlink()
    age(filled.root)
    plan = walk_cache(filled.root, superseded=True)
    assert plan.removals == () and f"{folder} holds parts but no settings.json" in plan.damaged[0]
    assert f"{folder} holds parts but no settings.json" in verify_cache(filled.root)[0]
    settings.write_text(text)  # as the next precompute does
    assert verify_cache(filled.root) == []


def test_a_kill_while_a_set_is_dropped_leaves_what_the_next_prune_removes(
    filled: CacheLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    (frames_key,) = filled.frames_keys()
    plan = plan_drop(filled.root, scorers=(), frames_keys=(frames_key,))
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr("shutil.rmtree", interrupted)
        apply_prune(plan)
    (scorer_folder,) = (filled.root / "scores").iterdir()
    assert filled.scorer_keys() == [] and verify_cache(filled.root) == []
    left = scorer_folder.rename(scorer_folder.with_name(".tmp-999999999-dropped"))
    age(left)
    assert [r.path for r in walk_cache(filled.root).removals if r.why == TEMPORARY] == [left]


def interrupted(folder: Path) -> None:
    raise KeyboardInterrupt


def test_only_files_of_the_cache_go(filled: CacheLayout, tmp_path: Path) -> None:
    """A stranger's cache whose rows list a file elsewhere as pixels that later rows replace."""
    precious = tmp_path / "precious"
    precious.write_text("x")
    part = next((filled.root / "frames").rglob("videos-*.parquet"))
    table = read_part(part)
    place = table.schema.get_field_index("shard")
    elsewhere = pa.array([f"../../../{precious.name}"] * len(table), pa.string())
    commit_parquet(part, table.set_column(place, table.schema.field(place), elsewhere))
    assert (part.parent / f"../../../{precious.name}").is_file()
    again(filled, "a")
    again(filled, "b")
    age(filled.root)
    apply_prune(walk_cache(filled.root, superseded=True))
    assert precious.exists()


@pytest.mark.parametrize("name", [lambda key: "siglip2", lambda key: key])
def test_dropping_a_scorer(filled: CacheLayout, name: Callable[[str], str]) -> None:
    frames_key = filled.frames_keys()[0]
    add_scorer(filled, "other", frames_key, "1@a")
    key = next(key for key in filled.scorer_keys() if key.startswith("siglip2"))
    seen = {text: value for text, value in everything_seen(filled).items() if key not in text}
    plan = plan_drop(filled.root, scorers=(name(key),), frames_keys=())
    assert [r.path for r in plan.removals] == [filled.scores(key), filled.embeddings(key)]
    apply_prune(plan)
    assert everything_seen(filled) == seen and verify_cache(filled.root) == []
    assert not filled.embeddings(key).exists()


def test_a_damaged_scorer_can_be_dropped(filled: CacheLayout) -> None:
    (key,) = filled.scorer_keys()
    part = next(filled.scores(key).glob("part-*"))
    part.write_bytes(part.read_bytes()[:-5])
    apply_prune(plan_drop(filled.root, scorers=("siglip2",), frames_keys=()))
    assert filled.scorer_keys() == [] and verify_cache(filled.root) == []


def test_a_scorer_with_nonsense_for_settings_can_be_dropped(filled: CacheLayout) -> None:
    (key,) = filled.scorer_keys()
    for text in ("{}", "[]", '{"fields": 3, "name": 4}'):
        (filled.scores(key) / "settings.json").write_text(text)
        plan = plan_drop(filled.root, scorers=(key,), frames_keys=())
        assert [r.path for r in plan.removals] == [filled.scores(key), filled.embeddings(key)]


def test_dropping_frames_takes_their_scorers_along(filled: CacheLayout) -> None:
    kept = add_frames(filled, "raw", "a")
    add_scorer(filled, "other", kept, "1@a")
    gone = next(key for key in filled.frames_keys() if key != kept)
    plan = plan_drop(filled.root, scorers=(), frames_keys=(gone,))
    assert len(plan.removals) == 3
    apply_prune(plan)
    assert filled.frames_keys() == [kept] and len(filled.scorer_keys()) == 1
    assert verify_cache(filled.root) == []
    with pytest.raises(UnknownNameError, match="unknown frames key"):
        plan_drop(filled.root, scorers=(), frames_keys=(gone,))
    with pytest.raises(CacheError, match="has no scorer 'siglip2'"):
        plan_drop(filled.root, scorers=("siglip2",), frames_keys=())
