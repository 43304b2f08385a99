import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strive.errors import ConfigError, MissingInputError, OutsideRootError, RecordsError
from strive.records import (
    Record,
    filter_records,
    read_records,
    record_to_row,
    resolve_video,
    sample_records,
    shard_of,
    shard_records,
    video_id_of,
    write_records,
)

ROW = {
    "problem_id": 7,
    "problem": "What?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. x", "B. y"],
    "process": "",
    "solution": "<answer>A</answer>",
    "path": "./LLaVA/a.mp4",
    "data_source": "LLaVA",
}


def write_rows(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    else:
        import polars

        polars.DataFrame(rows).write_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_formats_read_alike(tmp_path: Path, suffix: str) -> None:
    rows = [ROW, {**ROW, "problem_id": 8, "data_type": "image"}, {**ROW, "problem_id": 9}]
    read = read_records([write_rows(tmp_path / f"data{suffix}", rows)])
    assert read.num_image_rows == 1
    assert [record.question_id for record in read.records] == ["7", "9"]
    first = read.records[0]
    assert (first.video_id, first.options) == ("LLaVA/a.mp4", ("A. x", "B. y"))
    assert first.evidence_spans_seconds is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"problem": None}, "row 2: field 'problem' is missing"),
        ({"path": 3}, "row 2: field 'path' is 3"),
        ({"problem_type": "multiple-choice"}, "did you mean 'multiple choice'"),
        ({"options": "A"}, "field 'options'"),
        ({"options": ["A"]}, "at least two options"),
        ({"evidence_spans_seconds": [[2, 1]]}, "every end must follow its start"),
        ({"evidence_spans_seconds": "soon"}, "evidence_spans_seconds"),
        ({"problem_id": 7}, "problem_id 7 appears twice"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, change: dict, text: str) -> None:
    rows = [ROW, {**ROW, "problem_id": 8, **change}]
    with pytest.raises(RecordsError, match=text):
        read_records([write_rows(tmp_path / "data.json", rows)])


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.json", "{", "not valid JSON"),
        ("a.json", "{}", "a JSON list of rows is expected"),
        ("a.json", "[1]", "row 1: an object is expected"),
        ("a.jsonl", '{"data_type": "image"}\n{', "line 2: not valid JSON"),
        ("a.parquet", "PAR1", "not a Parquet file"),
        ("a.csv", "", "'.csv' is not a records format"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, name: str, content: str, text: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RecordsError, match=text):
        read_records([tmp_path / name])


def test_an_absent_file_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="--data"):
        read_records([tmp_path / "nowhere.json"])


def test_rows_survive_a_round_trip(tmp_path: Path) -> None:
    records = (
        Record("7", "a.mp4", "Wie?\n", "free-form", (), "<answer>ü</answer>", "s", ((0.5, 2.0),)),
        Record("x7", "b/c.mp4", "?", "multiple choice", ("A", "B"), "<answer>A</answer>"),
    )
    write_records(tmp_path / "out" / "data.jsonl", records)
    assert read_records([tmp_path / "out" / "data.jsonl"]).records == records
    assert record_to_row(records[0])["problem_id"] == 7


def test_paths_stay_under_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (tmp_path / "secret.mp4").touch()
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "deep" / "inner.mp4").symlink_to(root / "a.mp4")
    assert video_id_of("./deep//b.mp4") == "deep/b.mp4"
    assert resolve_video(root, "deep/../a.mp4") == (root / "a.mp4").resolve()
    assert resolve_video(root, "deep/inner.mp4") == (root / "a.mp4").resolve()
    for video_id in ("../secret.mp4", "/etc/passwd", "link.mp4", "deep/../../secret.mp4"):
        with pytest.raises(OutsideRootError):
            resolve_video(root, video_id)


def many(count: int) -> list[Record]:
    kinds = ("multiple choice", "numerical", "OCR")
    return [
        Record(str(n), f"v{n // 3}.mp4", "?", kinds[n % 3], ("A", "B"), "", f"source{n % 2}")  # type: ignore[arg-type]
        for n in range(count)
    ]


def test_filters_are_or_within_a_field_and_and_across() -> None:
    records = many(12)
    chosen = filter_records(
        records,
        [("problem_type", "OCR"), ("problem_type", "numerical"), ("data_source", "source0")],
    )
    assert [r.question_id for r in chosen] == ["2", "4", "8", "10"]
    assert filter_records(records, []) == tuple(records)
    with pytest.raises(ConfigError, match=r"unknown --filter field 'source'"):
        filter_records(records, [("source", "x")])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
def test_samples_are_nested_and_free_of_order(small: int, large: int, seed: int) -> None:
    records = many(40)
    small, large = sorted((small, large))
    first, second = sample_records(records, small, seed), sample_records(records, large, seed)
    assert len(first) == small and set(first) <= set(second)
    assert list(first) == [record for record in records if record in first]
    turned = sample_records(records[::-1], small, seed)
    assert set(turned) == set(first)


def test_samples_follow_the_seed_and_have_bounds() -> None:
    records = many(40)
    assert sample_records(records, 10, 0) != sample_records(records, 10, 1)
    for size in (0, 41):
        with pytest.raises(ConfigError, match=f"--subset {size} of 40"):
            sample_records(records, size, 0)


@given(st.integers(1, 9))
def test_shards_split_videos(count: int) -> None:
    records = many(60)
    shards = [shard_records(records, index, count) for index in range(count)]
    assert sorted(r.question_id for shard in shards for r in shard) == sorted(
        r.question_id for r in records
    )
    for index, shard in enumerate(shards):
        assert all(shard_of(record.video_id, count) == index for record in shard)


def test_shards_are_equal_on_every_machine() -> None:
    # sha256("a.mp4") begins with ec 85 8c ..: the first eight bytes, little-endian, modulo 7
    import hashlib

    expected = int.from_bytes(hashlib.sha256(b"a.mp4").digest()[:8], "little") % 7
    assert shard_of("a.mp4", 7) == expected
    assert shard_of("a.mp4", 1) == 0


def test_records_are_values() -> None:
    record = many(1)[0]
    assert replace(record) == record and hash(replace(record)) == hash(record)
