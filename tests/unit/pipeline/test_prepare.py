import os
from dataclasses import replace
from pathlib import Path

import pytest
from video import coded_clips as clips

from strive.cache.frames import FrameCodec
from strive.errors import DecodeError
from strive.files import content_digest
from strive.pipeline import prepare
from strive.pipeline.prepare import PrepareRule, prepare_video
from strive.video.decode import DecodedVideo, decode_frames
from strive.video.frame_plan import FramePlan


@pytest.fixture
def rule(clip_folder: Path) -> PrepareRule:
    return PrepareRule(
        clip_folder.resolve(), FramePlan("uniform", 4), 10_000, FrameCodec("raw"), ("pyav",)
    )


def kind_of(video_id: str, rule: PrepareRule) -> str:
    with pytest.raises(DecodeError) as caught:
        prepare_video(video_id, rule)
    return caught.value.kind


def test_a_video_is_known_by_its_content_and_its_time(rule: PrepareRule) -> None:
    path = rule.video_root / "clip0.mp4"
    video = prepare_video("clip0.mp4", rule)
    assert (video.size_bytes, video.content_digest) == content_digest(path)
    assert video.modified_ns == path.stat().st_mtime_ns
    assert video.facts.repaired == ""
    assert video.facts.source_num_frames == 30


def test_paths_outside_the_root_need_leave(rule: PrepareRule, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    outside = clips.write_clip(tmp_path / "outside.mp4", 6)
    (root / "link.mp4").symlink_to(outside)
    refusing = replace(rule, video_root=root)
    allowing = replace(refusing, allow_outside_root=True)
    for video_id in ("../outside.mp4", str(outside), "link.mp4"):
        assert kind_of(video_id, refusing) == "outside_root"
        assert prepare_video(video_id, allowing).facts.source_num_frames == 6


def test_names_that_no_file_can_have_are_missing(rule: PrepareRule, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "loop.mp4").symlink_to(root / "loop.mp4")
    for allowed in (False, True):
        other = replace(rule, video_root=root, allow_outside_root=allowed)
        for video_id in ("loop.mp4", "x" * 5000 + ".mp4", "a\0b.mp4", "absent.mp4"):
            assert kind_of(video_id, other) == "missing"


def test_a_file_that_changes_while_it_is_read_is_not_cached(
    rule: PrepareRule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clips.write_clip(tmp_path / "a.mp4", 6)

    def decode_and_touch(*arguments: object, **named: object) -> DecodedVideo:
        decoded = decode_frames(*arguments, **named)  # type: ignore[arg-type]
        os.utime(path, ns=(1, 1))
        return decoded

    monkeypatch.setattr(prepare, "decode_frames", decode_and_touch)
    assert kind_of("a.mp4", replace(rule, video_root=tmp_path)) == "changed"
