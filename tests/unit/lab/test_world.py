import json

import numpy as np
import pytest

from strive.errors import ConfigError
from strive.lab.render import render_slots
from strive.lab.scene import Difficulty, draw_scene
from strive.lab.world import build_world, encode_clip, read_world, split_of_clip
from strive.records import read_records

decord = pytest.importorskip("decord")
NUM_CLIPS = 5


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("world"), num_clips=NUM_CLIPS, seed=0)


@pytest.fixture(scope="module")
def records(world):
    return read_records([world.records_file(s) for s in ("train", "held_out", "test")]).records


def decode_pool(path):
    reader = decord.VideoReader(str(path), num_threads=1)
    index_F = np.floor((np.arange(64) + 0.5) * len(reader) / 64).astype(int)
    return reader.get_batch(index_F).asnumpy(), reader.get_frame_timestamp(index_F)[:, 0]


def test_splits_share_no_clip_and_ids_are_unique(world, records):
    assert sum(world.num_questions.values()) == len(records) == 4 * NUM_CLIPS
    assert len({record.question_id for record in records}) == len(records)
    for split in ("train", "held_out", "test"):
        for record in read_records([world.records_file(split)]).records:
            assert split_of_clip(int(record.question_id) // 100) == split


def test_pool_frames_show_the_scene(world, records):
    for clip, video in enumerate(sorted({record.video_id for record in records})):
        frames_F, _ = decode_pool(world.root / video)
        scene = draw_scene(0, clip, Difficulty())
        drawn_F = render_slots(
            scene, np.arange(64), height=frames_F.shape[1], width=frames_F.shape[2]
        )
        difference_F = np.abs(frames_F.astype(int) - drawn_F).mean(axis=(1, 2, 3))
        assert difference_F.max() < 4.0


def test_evidence_is_visible_inside_its_span_and_nowhere_else(world, records):
    for record in records:
        if record.data_source in ("lab/order", "lab/count"):
            continue
        scene = draw_scene(0, int(record.question_id) // 100, Difficulty())
        spans = {scene.span_seconds(sprite): sprite for sprite in scene.sprites}
        (span,) = record.evidence_spans_seconds
        sprite = spans[span]
        _, pts_seconds_F = decode_pool(world.root / record.video_id)
        inside_F = (pts_seconds_F >= span[0]) & (pts_seconds_F < span[1])
        assert np.array_equal(inside_F, sprite.visible_at(np.arange(64)))
        assert 1 <= inside_F.sum() <= 3


def test_the_same_call_returns_at_once_and_another_is_refused(world):
    again = build_world(world.root, num_clips=NUM_CLIPS, seed=0)
    assert not again.was_built and again.content_hash == world.content_hash
    assert read_world(world.root) == again
    with pytest.raises(ConfigError, match="seed is 0 there and 1 here"):
        build_world(world.root, num_clips=NUM_CLIPS, seed=1)
    with pytest.raises(ConfigError, match="num_clips=0"):
        build_world(world.root, num_clips=0, seed=1)


def test_clips_do_not_depend_on_how_many_there_are(world, tmp_path):
    fewer = build_world(tmp_path / "fewer", num_clips=2, seed=0, workers=1)
    for name in ("000000.mp4", "000001.mp4"):
        assert (fewer.root / "clips" / name).read_bytes() == (
            world.root / "clips" / name
        ).read_bytes()
    rows = (world.root / "train.jsonl").read_text().splitlines()
    assert (fewer.root / "train.jsonl").read_text().splitlines() == rows[:8]


def test_an_interrupted_build_goes_on(world, tmp_path, monkeypatch):
    root = tmp_path / "world"

    def encode_two(scene, path):
        if scene.clip == 2:
            raise KeyboardInterrupt
        encode_clip(scene, path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("strive.lab.world.encode_clip", encode_two)
        build_world(root, num_clips=NUM_CLIPS, seed=0, workers=1)
    assert not (root / "clips" / "000002.mp4").exists()
    assert read_world(root) is None
    with pytest.raises(ConfigError):
        build_world(root, num_clips=NUM_CLIPS, seed=9)
    assert build_world(root, num_clips=NUM_CLIPS, seed=0).content_hash == world.content_hash
    assert sorted(p.name for p in root.iterdir()) == [
        "clips",
        "held_out.jsonl",
        "test.jsonl",
        "train.jsonl",
        "world.json",
    ]
    assert json.loads((root / "world.json").read_text())["parameters"]["seed"] == 0
