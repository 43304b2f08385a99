import os
import signal
import struct
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from strive.cache.frames import FrameCodec
from strive.errors import DecodeError
from strive.files import content_digest
from strive.pipeline.prepare import PrepareRule, prepare_video
from strive.video import repair
from strive.video.decode import AUTO_ORDER, decode_frames
from strive.video.frame_plan import FramePlan
from strive.video.repair import repaired_copies
from video.coded_clips import numbers_of, remux, write_clip
from video.jobs import is_alive

PLAN = FramePlan("uniform", 12)


def rule_for(root: Path, **changes: object) -> PrepareRule:
    rule = PrepareRule(root.resolve(), PLAN, 1 << 20, FrameCodec("raw"), AUTO_ORDER, repair=True)
    return replace(rule, **changes)  # type: ignore[arg-type]


def kind_of(video_id: str, rule: PrepareRule) -> str:
    with pytest.raises(DecodeError) as caught:
        prepare_video(video_id, rule)
    return caught.value.kind


def chunk_offsets(data: bytes) -> int:
    """Where an MP4's only chunk offset is written."""
    return data.index(b"stco") + 12


def test_half_a_file_becomes_a_video_of_its_half(media: Path) -> None:
    path = media / "truncated.mp4"
    before = content_digest(path)
    assert kind_of("truncated.mp4", rule_for(media, repair=False)) == "incomplete"
    video = prepare_video("truncated.mp4", rule_for(media))
    assert video.facts.repaired == "remuxed"
    assert 50 < video.facts.source_num_frames < 150
    assert video.facts.source_index_F.tolist() == [
        (2 * i + 1) * video.facts.source_num_frames // 24 for i in range(12)
    ]
    # The row's digest is that of the user's file, which is left as it was.
    assert (video.size_bytes, video.content_digest) == before == content_digest(path)


@pytest.mark.parametrize("how", ["remuxed", "transcoded"])
@pytest.mark.parametrize(
    "name", ["truncated.mp4", "bframes.mp4", "vfr.mp4", "odd.mkv", "mpeg4.avi", "stream.ts"]
)
def test_both_repairs_show_the_right_frames(
    media: Path, tmp_path: Path, name: str, how: str
) -> None:
    copies = repaired_copies(media / name, tmp_path)
    for copy, made in copies:
        if made == how:
            video = decode_frames(copy, PLAN)
            assert numbers_of(video.frames_FHWC) == video.facts.source_index_F.tolist()
            if name != "truncated.mp4":
                facts = decode_frames(media / name, PLAN).facts
                assert video.facts.source_num_frames == facts.source_num_frames
                assert video.facts.pts_seconds_F == pytest.approx(facts.pts_seconds_F, abs=2e-3)
            return
    pytest.fail(f"{name} was not {how}")


def test_damaged_pictures_are_left_out(media: Path, tmp_path: Path) -> None:
    data = bytearray((media / "bframes.mp4").read_bytes())
    start = data.index(b"mdat") + 1200
    data[start : start + 300] = bytes(300)
    (tmp_path / "hurt.mp4").write_bytes(data)
    all_frames = FramePlan("uniform", 90)  # the damage counts where it is wanted
    assert kind_of("hurt.mp4", rule_for(tmp_path, repair=False, plan=all_frames)) == "damaged"
    info = prepare_video("hurt.mp4", rule_for(tmp_path, plan=all_frames)).facts
    assert info.repaired == "transcoded"
    assert 60 < info.source_num_frames < 90


def test_an_avi_cut_within_a_picture_is_repaired(media: Path, tmp_path: Path) -> None:
    data = (media / "mpeg4.avi").read_bytes()
    pictures = data.index(b"movi")
    (tmp_path / "cut.avi").write_bytes(data[: pictures + (len(data) - pictures) // 3])
    assert kind_of("cut.avi", rule_for(tmp_path, repair=False)) == "incomplete"
    info = prepare_video("cut.avi", rule_for(tmp_path)).facts
    assert info.repaired in ("remuxed", "transcoded") and 5 < info.source_num_frames < 60


def test_an_index_that_points_nowhere_is_beyond_repair(media: Path, tmp_path: Path) -> None:
    data = bytearray((media / "plain.mp4").read_bytes())
    offset = chunk_offsets(data)
    data[offset : offset + 4] = struct.pack(">I", len(data) - 500)
    (tmp_path / "nowhere.mp4").write_bytes(data)
    with pytest.raises(DecodeError, match="repair did not help"):
        prepare_video("nowhere.mp4", rule_for(tmp_path))


def test_sound_files_playlists_and_absent_files_are_not_repaired(
    media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("a repair was tried")

    monkeypatch.setattr("strive.pipeline.prepare.repaired_copies", refuse)
    for name, kind in (
        ("audio.mp4", "no_video_stream"),
        ("playlist.mp4", "playlist"),
        ("zero.mp4", "empty_file"),
        ("text.mp4", "not_a_video"),
        ("absent.mp4", "missing"),
        ("../absent.mp4", "outside_root"),
    ):
        assert kind_of(name, rule_for(media)) == kind


def test_nothing_is_left_behind(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    prepare_video("truncated.mp4", rule_for(media))
    kind_of("no_index.mp4", rule_for(media))
    assert list(tmp_path.iterdir()) == []


def test_a_repair_that_takes_too_long_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / "long.mp4", 200)
    with pytest.raises(DecodeError) as caught:
        list(repaired_copies(path, tmp_path, timeout_seconds=0.001))
    assert caught.value.kind == "timeout"


def test_a_repair_that_fills_the_disk_fails(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "MAX_REPAIR_BYTES", 1000)
    assert list(repaired_copies(media / "plain.mp4", tmp_path)) == []


def test_ffmpeg_dies_with_its_worker(tmp_path: Path) -> None:
    short = write_clip(tmp_path / "short.mp4", 100)
    remux(short, tmp_path / "long.mp4", stream_loop=400)
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from strive.video.repair import repaired_copies
        print("ready", flush=True)
        list(repaired_copies(Path(sys.argv[1]), Path(sys.argv[2])))
    """)
    arguments = [sys.executable, "-c", script, str(tmp_path / "long.mp4"), str(tmp_path)]
    worker = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    worker.stdout.readline()
    deadline = time.monotonic() + 20
    while not (tmp_path / "transcoded.mp4").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    assert len(children) == 1
    os.kill(worker.pid, signal.SIGKILL)
    worker.communicate()
    deadline = time.monotonic() + 5
    while is_alive(int(children[0])) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(int(children[0]))
