"""What an ordinary file costs: its packets once, a check of some pictures, and what is wanted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from strive.video import decoders, source, whole
from strive.video.decode import decode_frames
from strive.video.decoders import SEEK_PACKETS, decode_runs
from strive.video.frame_plan import FramePlan
from video.coded_clips import write_clip


class Counted:
    """Packets that were read from files, and pictures that a check decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.packets = 0
        self.checked = 0
        for module in (source, decoders, whole):
            monkeypatch.setattr(module, "packets_of", self._packets_of(module.packets_of))
        check = source._Packets._check

        def counted(packets: Any, packet: av.Packet | None) -> None:
            before = len(packets.checked)
            check(packets, packet)
            self.checked += len(packets.checked) - before

        monkeypatch.setattr(source._Packets, "_check", counted)

    def _packets_of(self, original: Any) -> Any:
        def counted(*arguments: Any) -> Iterator[av.Packet]:
            for packet in original(*arguments):
                self.packets += 1
                yield packet

        return counted


@pytest.mark.parametrize(("num_frames", "group"), [(900, 250), (3000, 60)])
@pytest.mark.parametrize("plan", ["uniform", "keyframe"])
def test_packets_and_pictures_of_an_ordinary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_frames: int, group: int, plan: str
) -> None:
    """The shapes of the two clips of `bench.decode`, smaller."""
    how = {"g": group, "keyint_min": group, "sc_threshold": 0, "bf": 3, "preset": "veryfast"}
    path = write_clip(tmp_path / "a.mp4", num_frames, size=(48, 64), **how)
    frame_plan = FramePlan(plan, 16)
    facts = source.read_index(path)
    # A pass over all packets, then the runs, with the gaps between them that are not worth a seek.
    expected, at, num_seeks = num_frames, 0, 0
    for run in decode_runs(facts, frame_plan.indices(facts)):
        if run.start_rank - at >= SEEK_PACKETS:
            at = run.start_rank
            num_seeks += 1
        expected += run.stop_rank + 1 - at
        at = run.stop_rank + 1
    counted = Counted(monkeypatch)
    video = decode_frames(path, frame_plan)
    assert video.facts.way == "index" and len(video.frames_FHWC) == 16
    # With B-frames FFmpeg may go to the keyframe before the one that was asked for.
    assert expected <= counted.packets <= expected + num_seeks * group
    assert 0 < counted.checked <= 64


@pytest.mark.parametrize(
    ("size", "most"),
    # 64 pictures of 576x320 have 11,796,480 pixels: 28 times 848x480 = 407,040 and a rest.
    [
        ((48, 64), 64),
        ((480, 848), 28),
        ((720, 1280), 12),
        pytest.param((1080, 1920), 12, marks=pytest.mark.long),
    ],
)
def test_the_check_of_large_pictures_is_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], most: int
) -> None:
    path = write_clip(tmp_path / "a.mp4", 80, size=size, preset="ultrafast")
    counted = Counted(monkeypatch)
    assert source.read_index(path).way == "index"
    # A decoder that holds pictures back has shown fewer of them by then.
    assert most - 4 < counted.checked <= most
