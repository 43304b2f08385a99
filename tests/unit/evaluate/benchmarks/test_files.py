"""Published files on disk: layouts, columns, videos by name, zips half unpacked."""

import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from strive.errors import MissingInputError, RecordsError
from strive.evaluate.benchmarks.files import (
    Layout,
    VideoIndex,
    describe_videos,
    find_questions,
    read_object,
    read_rows,
)

LAYOUT = Layout(
    datasets=("org/Bench", "mirror/Bench"),
    size="3 GB",
    folders=("bench",),
    videos=("data", "video", ""),
    video_r1="eval_bench.json",
)
SNAPSHOT = "hub/datasets--mirror--Bench/snapshots/abc"


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("folder", ["", "Bench", "org/Bench", "bench", SNAPSHOT])
def test_questions_are_found_in_every_layout(tmp_path: Path, folder: str) -> None:
    for name in ("test-00001-of-00002.parquet", "test-00000-of-00002.parquet"):
        put(tmp_path / folder / "cfg" / name)
    found = find_questions(tmp_path, LAYOUT, ["cfg/test-*.parquet", "rows.jsonl"])
    assert [path.name[:10] for path in found] == ["test-00000", "test-00001"]
    assert {path.parent for path in found} == {tmp_path / folder / "cfg"}


def test_the_preferred_form_is_read_wherever_it_lies(tmp_path: Path) -> None:
    put(tmp_path / "rows.jsonl")
    wanted = put(tmp_path / "bench" / "cfg" / "test.parquet")
    assert find_questions(tmp_path, LAYOUT, ["cfg/test*.parquet", "rows.jsonl"]) == (wanted,)


def test_the_revision_that_the_hub_calls_main_is_preferred(tmp_path: Path) -> None:
    hub = tmp_path / "datasets--org--Bench"
    for revision in ("aaa", "bbb"):
        put(hub / "snapshots" / revision / "rows.jsonl")
    put(hub / "refs" / "main", b"bbb\n")
    [found] = find_questions(tmp_path, LAYOUT, ["rows.jsonl"])
    assert found.parent.name == "bbb"


def test_missing_questions_are_named_with_where_they_are_published(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError) as raised:
        find_questions(tmp_path, LAYOUT, ["cfg/test-*.parquet", "rows.jsonl"])
    message = str(raised.value)
    for part in ("cfg/test-*.parquet, rows.jsonl", "org/Bench = mirror/Bench", "3 GB"):
        assert part in message
    assert "\n" not in message
    with pytest.raises(MissingInputError, match="Video-R1/Video-R1-eval"):
        find_questions(tmp_path, LAYOUT, ["eval_bench.json"])


ROWS = [{"id": "1", "answer": None, "more": 2}, {"id": "2", "answer": "B", "more": 3}]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.parquet"])
def test_a_missing_column_is_one_line_whatever_the_form(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif name.endswith("jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        path.write_text(json.dumps(ROWS))
    found = [row for _, row in read_rows(path, ("id", "answer"), ("more", "optional"))]
    assert found == ROWS
    with pytest.raises(RecordsError) as raised:
        list(read_rows(path, ("id", "question")))
    message = str(raised.value)
    assert name in message
    assert "no column 'question'; there are: id, answer, more" in message


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match=r"rows\.parquet: not valid Parquet"):
        list(read_rows(put(tmp_path / "rows.parquet"), ("id",)))
    with pytest.raises(RecordsError, match=r"rows\.jsonl, row 1: not valid JSON"):
        list(read_rows(put(tmp_path / "rows.jsonl"), ("id",)))
    with pytest.raises(RecordsError, match=r"rows\.json: not valid JSON"):
        read_object(put(tmp_path / "rows.json"))
    with pytest.raises(RecordsError, match="an object is expected, found list"):
        read_object(put(tmp_path / "list.json", b"[]"))
    assert read_object(put(tmp_path / "bom.json", b'\xef\xbb\xbf{"a": 1}')) == {"a": 1}


def test_videos_are_found_by_name_in_any_folder_and_case_of_suffix(tmp_path: Path) -> None:
    put(tmp_path / "bench" / "data" / "abc.MP4")
    put(tmp_path / SNAPSHOT / "video" / "aBc.mkv")
    put(tmp_path / "data" / "clip.webm")
    put(tmp_path / "data" / "clip.mp4")
    put(tmp_path / "data" / "__MACOSX" / "ghost.mp4")
    put(tmp_path / "data" / "notes.txt")
    index = VideoIndex(tmp_path, LAYOUT)
    assert index.find("abc") == "bench/data/abc.MP4"
    assert index.find("aBc") == f"{SNAPSHOT}/video/aBc.mkv"
    assert index.find("clip") == "data/clip.mp4"
    assert index.find("ghost") is index.find("notes") is None
    # Where it should be, beside the others.
    assert index.path_of("gone") == "data/gone.mp4"
    assert index.path_of("/gone") == "data/gone.mp4"


def test_names_can_have_folders(tmp_path: Path) -> None:
    put(tmp_path / "data" / "Art" / "0.mp4", b"art")
    put(tmp_path / "data" / "Law" / "0.mp4", b"law")
    index = VideoIndex(tmp_path, LAYOUT)
    assert index.find("Law/0") == "data/Law/0.mp4"
    assert index.find("0") is None


def test_nothing_unpacked_still_says_where_a_video_should_be(tmp_path: Path) -> None:
    assert VideoIndex(tmp_path, LAYOUT).path_of("abc") == "data/abc.mp4"


def test_another_systems_path_is_found_by_its_longest_tail(tmp_path: Path) -> None:
    put(tmp_path / "data" / "abc.mp4")
    put(tmp_path / "Evaluation" / "Bench" / "data" / "abc.mp4")
    index = VideoIndex(tmp_path, LAYOUT)
    # "Bench/data/abc" under Evaluation is longer than "data/abc" under the root.
    assert index.path_by_tail("./Bench/data/abc.mp4") == "Evaluation/Bench/data/abc.mp4"
    assert index.path_by_tail("./Other/Bench2/abc.mp4") == "data/abc.mp4"
    assert index.path_by_tail("./Bench/gone.mp4") == "Bench/gone.mp4"


def pack(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_zips_not_or_half_unpacked_are_told(tmp_path: Path) -> None:
    pack(
        tmp_path / "a.zip", {"data/1.mp4": b"one", "data/2.mp4": b"two", "__MACOSX/data/1.mp4": b""}
    )
    pack(tmp_path / "b.zip", {"data/3.mp4": b"three", "data/4.mp4": b"four", "data/5.mp4": b"5"})
    pack(tmp_path / "c.zip", {"data/6.mp4": b"six", "data/other.mp4": b"not asked about"})
    pack(tmp_path / "subtitle.zip", {"subtitle/7.srt": b""})
    put(tmp_path / "d.zip", b"PK")
    put(tmp_path / "data" / "3.mp4", b"three")
    put(tmp_path / "data" / "4.mp4", b"fo")  # cut
    put(tmp_path / "data" / "6.mp4", b"six")
    report = describe_videos(tmp_path, LAYOUT, [f"data/{n}.mp4" for n in range(1, 8)])
    assert report.found == ("data/3.mp4", "data/4.mp4", "data/6.mp4")
    assert report.missing == ("data/1.mp4", "data/2.mp4", "data/5.mp4", "data/7.mp4")
    first, second, broken = report.archives
    assert first.startswith("a.zip: not unpacked, of 2 videos that are asked about 2 are not on")
    assert second.startswith("b.zip: half unpacked, of 3 videos that are asked about 1 are not on")
    assert "and 1 are of another size" in second
    assert broken.startswith("d.zip: cannot be opened")


def test_zipped_names_with_folders_are_told_apart(tmp_path: Path) -> None:
    pack(tmp_path / "videos.zip", {"videos/Art/0.mp4": b"a", "videos/Law/0.mp4": b"b"})
    put(tmp_path / "data" / "Art" / "0.mp4", b"a")
    report = describe_videos(tmp_path, LAYOUT, ["data/Art/0.mp4", "data/Law/0.mp4"])
    [line] = report.archives
    assert "of 2 videos that are asked about 1 are not on disk and 0 are" in line
