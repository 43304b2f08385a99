import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strive.errors import ConfigError, MissingInputError, OutsideRootError, RecordsError
from strive.files import resolve_video
from strive.records import (
    CHOICE_TYPES,
    PROBLEM_TYPES,
    Record,
    read_records,
    record_to_row,
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
LONG = {**ROW, "evidence_spans_seconds": [[0, 0.125]]}


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
        (
            {"problem_type": "grounded multiple choice", "options": ["A"]},
            "a grounded multiple choice row needs at least two options",
        ),
        (
            {"problem_type": "grounded multiple choice"},
            "a grounded multiple choice row needs evidence_spans_seconds, the spans that show",
        ),
        ({"evidence_spans_seconds": [[2, 1]]}, "every end must follow its start"),
        ({"evidence_spans_seconds": "soon"}, "evidence_spans_seconds"),
        ({"evidence_spans_seconds": [[1, True]]}, r"is \[\[1, True\]\]; a list of"),
        ({"problem_id": 7}, r"row 2: field 'problem_id' is 7, as in .*data.json, row 1; ids must"),
        ({"problem_id": 8.5}, "field 'problem_id' is 8.5; a whole number or a text"),
        ({"problem_id": True}, "field 'problem_id' is True"),
        ({"problem_id": ""}, "field 'problem_id' is ''"),
        ({"data_source": 5}, "field 'data_source' is 5"),
        ({"path": ""}, "field 'path' is empty"),
        ({"options": "x" * 9000}, r"field 'options' is 'x{199}\.\.\.; a list of strings"),
        ({"problem": ["x" * 9000]}, r"field 'problem' is \['x{198}\.\.\.; a string is"),
        ({"problem_type": "x" * 9000}, "unknown problem_type 'x{200}'; known"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, change: dict, text: str) -> None:
    rows = [ROW, {**ROW, "problem_id": 8, **change}]
    with pytest.raises(RecordsError, match=text):
        read_records([write_rows(tmp_path / "data.json", rows)])


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.json", "", "row 1: not valid JSON"),
        ("a.json", "[", "row 1: not valid JSON"),
        ("a.json", '[{"data_type": "image"}, {"data_type": "image"},', "row 3: not valid JSON"),
        ("a.json", '[{"data_type": "image"}, {"problem": NaN}]', "row 2: not valid JSON"),
        ("a.json", "[{}] []", "row 1: field 'problem_id' is missing"),
        ("a.json", '[{"data_type": "image"}] []', r"row 2: not valid JSON \(.*trailing"),
        ("a.json", "\n {}", r"a JSON list of rows is expected.*'\{'.*\.jsonl"),
        ("a.json", "7", "a JSON list of rows is expected"),
        ("a.json", "[1]", "row 1: an object is expected"),
        ("a.jsonl", '{"data_type": "image"}\n\n{', "row 2: not valid JSON"),
        ("a.jsonl", '{"problem": NaN}', "row 1: not valid JSON .*NaN is not in JSON"),
        ("a.jsonl", json.dumps({**ROW, "problem": "\ud800"}), "row 1: field 'problem' .*Unicode"),
        ("a.jsonl", json.dumps({**ROW, "options": ["x", "\udfff"]}), "'options' .*Unicode"),
        (
            "a.json",
            json.dumps([LONG]).replace("0.125", "1e400"),
            "row 1: .*'evidence_spans_seconds'",
        ),
        (
            "a.jsonl",
            json.dumps(LONG).replace("0.125", "1e400"),
            "row 1: .*'evidence_spans_seconds'",
        ),
        ("a.parquet", "PAR1", "row 1: not valid Parquet"),
        ("a.csv", "", "'.csv' is not a records format"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, name: str, content: str, text: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RecordsError, match=text) as caught:
        read_records([tmp_path / name])
    assert "\n" not in str(caught.value)


def test_invalid_utf8_is_a_row(tmp_path: Path) -> None:
    for name, content in (("a.json", b'[{"data_type": "\xff"}]'), ("a.jsonl", b'{"x": "\xff"}')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RecordsError, match="row 1: not valid JSON"):
            read_records([tmp_path / name])


def test_a_damaged_parquet_file_names_the_row_reached(tmp_path: Path) -> None:
    rows = [{**ROW, "problem_id": n, "problem": f"{n}" * 50} for n in range(4000)]
    path = write_rows(tmp_path / "data.parquet", rows)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle - 3000 : middle + 3000] = bytes(6000)
    path.write_bytes(content)
    with pytest.raises(RecordsError, match=r"row \d+: not valid Parquet"):
        read_records([path])


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    for name in ("a.json", "a.jsonl"):
        path = write_rows(tmp_path / name, [ROW])
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert len(read_records([path]).records) == 1


def test_several_files_are_one_set_and_ids_are_unique_over_all(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "a.json", [{**ROW, "data_type": "image"}, ROW])
    second = write_rows(tmp_path / "b.jsonl", [{**ROW, "problem_id": "8"}])
    read = read_records([first, second])
    assert [r.question_id for r in read.records] == ["7", "8"] and read.num_image_rows == 1
    again = write_rows(tmp_path / "c.jsonl", [{**ROW, "problem_id": "7"}])
    message = r"c\.jsonl, row 1: field 'problem_id' is 7, as in .*a\.json, row 2"
    with pytest.raises(RecordsError, match=message):
        read_records([first, second, again])


texts = st.text(st.characters(codec="utf-8"), max_size=12)
seconds = st.floats(0, 1e4, allow_nan=False).map(lambda x: round(x, 3))
raw_rows = st.fixed_dictionaries(
    {
        "problem_id": st.integers(-5, 2**63 - 1),
        "problem": texts,
        "data_type": st.sampled_from(["video", "video", "image"]),
        "problem_type": st.sampled_from(sorted(set(PROBLEM_TYPES) - set(CHOICE_TYPES))),
        "options": st.lists(texts, max_size=3),
        "solution": texts,
        "path": st.text("ab/.é\\", min_size=1, max_size=8),
        "process": texts,
        "data_source": texts,
        "evidence_spans_seconds": st.none()
        | st.lists(st.tuples(seconds, seconds.map(lambda x: x + 1e5)).map(list), max_size=2),
    }
)


@given(st.lists(raw_rows, min_size=1, max_size=6, unique_by=lambda row: row["problem_id"]))
def test_the_three_formats_mean_the_same(rows: list[dict]) -> None:
    with TemporaryDirectory() as folder:
        files = [Path(folder) / "r.json", Path(folder) / "r.jsonl", Path(folder) / "r.parquet"]
        for path in files[:2]:
            write_rows(path, rows)
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), files[2])
        read = [read_records([path]) for path in files]
    assert read[0] == read[1] == read[2]
    videos = [row for row in rows if row["data_type"] == "video"]
    assert read[0].num_image_rows == len(rows) - len(videos)
    for record, row in zip(read[0].records, videos, strict=True):
        assert record.question_id == str(row["problem_id"])
        assert record.options == tuple(row["options"]) and record.problem == row["problem"]
        spans = row["evidence_spans_seconds"]
        assert record.evidence_spans_seconds == (
            None if spans is None else tuple(map(tuple, spans))
        )
        assert all(type(x) is float for span in record.evidence_spans_seconds or () for x in span)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_numbers_of_any_size_keep_their_digits(tmp_path: Path, suffix: str) -> None:
    ids = [2**64 + 1, 17.0, "017", -3]
    rows = [{**ROW, "problem_id": n, "evidence_spans_seconds": [[0, 1.25]]} for n in ids]
    records = read_records([write_rows(tmp_path / f"data{suffix}", rows)]).records
    assert [r.question_id for r in records] == ["18446744073709551617", "17", "017", "-3"]
    assert records[0].evidence_spans_seconds == ((0.0, 1.25),)
    assert all(type(x) is float for x in records[0].evidence_spans_seconds[0])
    write_records(tmp_path / "again.jsonl", records)
    assert read_records([tmp_path / "again.jsonl"]).records == records


def test_a_text_that_many_rows_share_is_kept_once(tmp_path: Path) -> None:
    rows = [{**ROW, "problem_id": n} for n in range(2)]
    for suffix in (".json", ".jsonl", ".parquet"):
        first, second = read_records([write_rows(tmp_path / f"data{suffix}", rows)]).records
        for field in ("video_id", "data_source", "problem_type", "solution"):
            assert getattr(first, field) is getattr(second, field)


MEASURE = """
import json, re, sys, time
from pathlib import Path
import ijson, pyarrow.parquet
from strive.records import read_records
path = Path(sys.argv[1])

def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1])

before, started = peak(), time.process_time()
read = read_records([path])
seconds = time.process_time() - started
print(json.dumps([len(read.records), read.num_image_rows, peak() - before, seconds]))
"""


def test_65k_rows_in_memory_that_the_kept_rows_alone_decide(tmp_path: Path) -> None:
    """Of 65,000 rows 28,000 are kept, at most 1,000 bytes each; the file holds far more."""
    path, num_rows, num_kept = tmp_path / "r.json", 65_000, 0
    filler = "Let me think. " * 60  # `process` of an image row: a chain of thought
    with path.open("w") as out:
        for n in range(num_rows):
            kept = n % 9 < 4 and num_kept < 28_000
            num_kept += kept
            row = {
                **ROW,
                "problem_id": n,
                "problem": f"What does the person number {n} do after opening the door?",
                "data_type": "video" if kept else "image",
                "options": [f"A. opens {n}", f"B. closes {n}", f"C. waits {n}", f"D. leaves {n}"],
                "process": filler,
                "path": f"./LLaVA-Video-178K/source{n % 7}/videos/{n // 3:06d}.mp4",
            }
            out.write(("[" if n == 0 else ",\n") + json.dumps(row))
        out.write("]")
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    found_kept, num_images, grown, cpu_seconds = json.loads(run.stdout)
    assert (found_kept, num_images) == (num_kept, num_rows - num_kept)
    print(f"{path.stat().st_size / 1e6:.0f} MB, {grown / num_kept:.0f} bytes a kept row")
    print(f"{grown / 1e6:.0f} MB grown, {cpu_seconds:.1f} CPU seconds")
    assert num_kept == 28_000
    assert grown < 1_000 * num_kept < path.stat().st_size / 2


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
    for text in ("007", "²", "7a"):
        assert record_to_row(replace(records[0], question_id=text))["problem_id"] == text


def test_paths_stay_under_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (tmp_path / "secret.mp4").touch()
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "deep" / "inner.mp4").symlink_to(root / "a.mp4")
    for path in ("./deep//b.mp4", "deep/./b.mp4", "deep\\b.mp4", "deep/b.mp4/"):
        assert video_id_of(path) == "deep/b.mp4"
    for path in (".", "/a//b", "../a", "a/../b", "...", "a/..."):
        assert video_id_of(path) == str(PurePosixPath(path))
    assert resolve_video(root, "deep/../a.mp4") == (root / "a.mp4").resolve()
    assert resolve_video(root, "deep/inner.mp4") == (root / "a.mp4").resolve()
    for video_id in ("../secret.mp4", "/etc/passwd", "link.mp4", "deep/../../secret.mp4"):
        with pytest.raises(OutsideRootError):
            resolve_video(root, video_id)
        assert resolve_video(root, video_id, allow_outside=True) == root / video_id
    assert resolve_video(root, "/etc/passwd", allow_outside=True) == Path("/etc/passwd")


def many(count: int) -> list[Record]:
    kinds = ("multiple choice", "numerical", "OCR")
    return [
        Record(str(n), f"v{n // 3}.mp4", "?", kinds[n % 3], ("A", "B"), "", f"source{n % 2}")  # type: ignore[arg-type]
        for n in range(count)
    ]


def test_filters_are_or_within_a_field_and_and_across(tmp_path: Path) -> None:
    records, path = many(12), tmp_path / "records.jsonl"
    write_records(path, records)
    filters = [("problem_type", "OCR"), ("problem_type", "numerical"), ("data_source", "source0")]
    chosen = read_records([path], filters=filters).records
    assert [r.question_id for r in chosen] == ["2", "4", "8", "10"]
    assert read_records([path]).records == tuple(records)
    with pytest.raises(ConfigError, match=r"unknown --filter field 'source'"):
        read_records([path], filters=[("source", "x")])


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


def bad_rows(num_good: int, num_bad: int) -> list[dict]:
    good = [{**ROW, "problem_id": n} for n in range(num_good)]
    return [
        *good,
        *({**ROW, "problem_id": f"b{n}", "problem_type": "open"} for n in range(num_bad)),
    ]


@pytest.mark.parametrize("name", ["r.json", "r.jsonl", "r.parquet"])
def test_all_bad_rows_are_counted_and_ten_are_shown(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path / name, bad_rows(3, 37))
    other = write_rows(tmp_path / "other.jsonl", [{**ROW, "problem_id": 1}])
    with pytest.raises(RecordsError) as caught:
        read_records([path, other])
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("38 bad rows; --skip-bad-records") and len(lines) == 10
    assert f"{name}, row 4: unknown problem_type 'open'" in lines[0]
    assert f"{name}, row 13: " in lines[-1]
    read = read_records([path, other], skip_bad=True)
    assert len(read.records) == 3 and read.bad_rows.count == 38


def test_one_bad_row_is_one_line_that_names_the_option(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "r.jsonl", bad_rows(1, 1))
    with pytest.raises(RecordsError, match=r"row 2: unknown problem_type 'open'.*--skip-bad-rec"):
        read_records([path])


def test_rows_of_a_jsonl_that_cannot_be_read_are_bad_rows_of_many(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    good = [json.dumps({**ROW, "problem_id": n}) for n in range(2)]
    path.write_text("\n".join([good[0], "{torn", "[]", '{"problem": NaN}', good[1], ""]))
    with pytest.raises(RecordsError, match="3 bad rows"):
        read_records([path])
    read = read_records([path], skip_bad=True)
    assert [record.question_id for record in read.records] == ["0", "1"]
    assert "row 2: not valid JSON" in read.bad_rows.shown[0]
    # A JSON list that breaks off cannot be read on: that is never skipped.
    (tmp_path / "r.json").write_text(f"[{good[0]}, [], {good[1]},")
    with pytest.raises(RecordsError, match=r"row 2: an object.*row 4: not valid JSON"):
        read_records([tmp_path / "r.json"], skip_bad=True)


def test_what_a_filter_leaves_out_may_be_bad(tmp_path: Path) -> None:
    rows = [*bad_rows(2, 500), {**ROW, "problem_id": "x", "data_source": None, "options": 3}]
    path = write_rows(tmp_path / "r.json", rows)
    wanted = ("problem_type", ROW["problem_type"])
    read = read_records([path], filters=[wanted, ("data_source", ROW["data_source"])])
    assert len(read.records) == 2 and read.bad_rows.count == 0
    with pytest.raises(RecordsError, match="row 503: field 'options' is 3"):
        read_records([path], filters=[wanted])


@pytest.mark.parametrize(
    ("data_type", "kind"),
    [
        *((text, "video") for text in ("Video", "VIDEO", "videos", " Videos\n", "", None)),
        *((text, "image") for text in ("Image", "IMAGES", "image ")),
        *((text, "bad") for text in ("vidio", "text", 3, ["video"], "video/mp4")),
    ],
)
def test_data_types_in_any_case_and_number(tmp_path: Path, data_type: object, kind: str) -> None:
    path = write_rows(tmp_path / "r.jsonl", [ROW, {**ROW, "problem_id": 2, "data_type": data_type}])
    read = read_records([path], skip_bad=True)
    counts = (len(read.records) - 1, read.num_image_rows, read.bad_rows.count)
    assert counts == tuple(int(kind == name) for name in ("video", "image", "bad"))
    assert all("row 2: " in line and "data_type" in line for line in read.bad_rows.shown)


def test_a_row_with_a_line_feed_cannot_look_like_another_line(tmp_path: Path) -> None:
    rows = [{**ROW, "problem_type": "x\nerror: all is lost\x1b[2J"}, {**ROW, "problem_type": "y"}]
    with pytest.raises(RecordsError) as caught:
        read_records([write_rows(tmp_path / "r.jsonl", rows)])
    assert len(str(caught.value).splitlines()) == 3 and "\x1b" not in str(caught.value)
