"""Rows that no prompt, file or report can hold, and videos that are links: one rule for all."""

from pathlib import Path
from typing import Any

import pytest
from published_rows import VSI_CHOICE, VSI_NUMBER, write_rows

from strive.configs.load import build_config
from strive.configs.schema import EvaluateConfig
from strive.errors import OutsideRootError
from strive.evaluate.benchmarks import BENCHMARKS, read_benchmark
from strive.evaluate.check import check_benchmarks
from strive.evaluate.frames import FileFrames
from strive.evaluate.items import Item, Reading, fail_unfit
from strive.files import follow_video, has_video

HALF = "\ud800"


@pytest.mark.parametrize(
    "changes",
    [
        {"question": f"{HALF} x"},
        {"options": [f"A. {HALF}", "B. right"]},
        {"dataset": HALF},
        {"scene_name": f"x{HALF}"},
        {"scene_name": "a\0b"},
        {"scene_name": "n" * 300},
        {"scene_name": "\u00e9" * 130},  # 260 bytes
        {"id": f"7{HALF}"},
        {"options": ["", " "]},
    ],
    ids=str,
)
def test_a_row_that_nothing_can_hold_fails_alone(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_rows(tmp_path / "test.jsonl", [{**VSI_CHOICE, **changes}, VSI_NUMBER])
    reading = read_benchmark("vsibench", BENCHMARKS["vsibench"], tmp_path)
    assert [item.question_id for item in reading.items] == ["1"]
    [failure] = reading.failures
    assert failure.error == "bad_row"
    repr(failure).encode()
    "".join([failure.question_id, failure.video_id, failure.cluster, failure.message]).encode()
    config = build_config(EvaluateConfig, {"benchmarks": ["vsibench"], "data_root": tmp_path})
    [check] = check_benchmarks(config)
    assert check.num_questions == 2 and len(check.failures) == 1 and not check.is_complete


def test_what_can_be_held_stays_as_it_is() -> None:
    item = Item("1", "a/\u00e9.mp4", "?", "OCR", (), "x", dimensions={"kind": "\u00e9"})
    reading = Reading((item,), left_out={"why": 1})
    assert fail_unfit(reading, "b") == reading


@pytest.mark.parametrize("name", ["a\0b.mp4", "n" * 300 + ".mp4", "a/" * 3000, "loop.mp4", "../x"])
def test_a_name_that_no_file_has_is_absent(tmp_path: Path, name: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "x").write_bytes(b"outside")
    (tmp_path / "root" / "loop.mp4").symlink_to("loop.mp4")
    config = build_config(EvaluateConfig, {"data_root": tmp_path / "root"})
    source = FileFrames(config)
    assert source.identity(Item("1", name, "?", "OCR", (), "x")) == "absent"
    assert not has_video(tmp_path / "root", name)
    source.close()


def test_links_of_a_root_are_followed_and_paths_out_of_it_are_not(tmp_path: Path) -> None:
    blob = tmp_path / "hub" / "blobs" / "abc"
    snapshot = tmp_path / "hub" / "snapshots" / "main"
    disk = tmp_path / "disk"
    for folder in (blob.parent, snapshot, disk):
        folder.mkdir(parents=True)
    blob.write_bytes(b"video")
    (disk / "b.mp4").write_bytes(b"video")
    (snapshot / "a.mp4").symlink_to("../../blobs/abc")
    (snapshot / "data").symlink_to(disk)
    for name in ("a.mp4", "data/b.mp4", str(snapshot / "a.mp4")):
        assert has_video(snapshot, name) and follow_video(snapshot, name).read_bytes() == b"video"
    for name in ("../../blobs/abc", "data/../disk/b.mp4", str(blob)):
        assert not has_video(snapshot, name)
        with pytest.raises(OutsideRootError):
            follow_video(snapshot, name)
