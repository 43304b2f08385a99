"""`evaluate` with a real tiny policy on real clips: resume, faults, frames, grading again."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from strive.cache.codec import FrameCodec
from strive.cache.frames import EncodedVideo, FrameReader, FrameWriter, VideoInfo
from strive.cache.layout import create_cache, ensure_settings
from strive.errors import ConfigError, MissingInputError, RecordsError, TooManyFailuresError
from strive.evaluate.again import compare, rescore
from strive.evaluate.benchmarks import read_benchmark
from strive.evaluate.frames import GREY, CacheFrames, FileFrames, FrameChoice
from strive.evaluate.results import EvaluationResults, results_to_json
from strive.evaluate.runner import AskSettings, EvaluateOptions, evaluate, held_out_metrics
from strive.evaluate.samples import read_samples
from strive.evaluate.tables import print_results
from strive.lab.models import lab_model_path
from strive.lab.world import build_world
from strive.models.loading import Policy, load_policy
from strive.records import write_records

NUM_FRAMES = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    build_world(root, num_clips=10, seed=3)
    return root


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(lab_model_path("qwen2_5_vl"))


def options(world: Path, out: Path) -> EvaluateOptions:
    return EvaluateOptions(
        model=str(lab_model_path("qwen2_5_vl")),
        data_root=world,
        out=out,
        prompt_template="short",
        num_frames=NUM_FRAMES,
        max_new_tokens=6,
        batch_size=3,
    )


def scores_of(results: EvaluationResults) -> object:
    """Scores with null for NaN, which is unequal to itself."""
    return results_to_json(results)["benchmarks"]


def test_evaluate_resume_and_rescore(world: Path, tmp_path: Path, policy: Policy) -> None:
    whole = options(world, tmp_path / "whole")
    # Opens the model by itself, as the command does.
    first = evaluate(whole)
    records = read_benchmark("lab", world, "test")
    assert first.benchmark("lab").overall.num_questions == len(records) == 8
    assert first.failures == () and first.num_resumed == 0
    samples = read_samples(whole.out / "samples.jsonl")
    assert [s.question_id for s in samples] == [r.question_id for r in records]
    assert all(len(s.source_index) == NUM_FRAMES and s.num_tokens <= 6 for s in samples)
    stored = json.loads((whole.out / "results.json").read_text())
    assert stored["settings"]["model_digest"] and stored["versions"]["torch"]

    again = evaluate(whole, policy=policy)
    assert again.num_resumed == 8 and scores_of(again) == scores_of(first)

    # A run killed in its second batch: three whole lines and a torn one.
    killed = options(world, tmp_path / "killed")
    shutil.copytree(whole.out, killed.out)
    lines = (whole.out / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (killed.out / "samples.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:40])
    (killed.out / "results.json").unlink()
    resumed = evaluate(killed, policy=policy)
    assert resumed.num_resumed == 3 and scores_of(resumed) == scores_of(first)
    assert (killed.out / "samples.jsonl").read_bytes() == b"".join(lines)

    assert scores_of(rescore(whole.out)) == scores_of(first)
    assert compare(whole.out, killed.out).overall.difference == 0


def test_other_settings_are_refused(world: Path, tmp_path: Path, policy: Policy) -> None:
    asked = replace(options(world, tmp_path / "out"), limit=1)
    evaluate(asked, policy=policy)
    with pytest.raises(ConfigError, match="num_frames: there 4, here 8"):
        evaluate(replace(asked, num_frames=8), policy=policy)
    assert evaluate(replace(asked, num_frames=8, overwrite=True), policy=policy).num_resumed == 0
    # More questions and another grading are no other settings.
    more = evaluate(replace(asked, num_frames=8, limit=3, grading="tolerant"), policy=policy)
    assert more.num_resumed == 1 and more.grading == "tolerant"
    # A smaller limit than before loses no answer.
    fewer = evaluate(replace(asked, num_frames=8, limit=2), policy=policy)
    assert fewer.benchmark("lab").overall.num_questions == 3 and fewer.num_resumed == 2
    assert fewer.seconds == more.seconds


def test_a_question_that_changed_is_asked_again(
    world: Path, tmp_path: Path, policy: Policy
) -> None:
    root = tmp_path / "world"
    shutil.copytree(world, root)
    asked = replace(options(root, tmp_path / "out"), limit=2)
    evaluate(asked, policy=policy)
    lines = (root / "test.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    lines[0] = json.dumps({**row, "problem": "Is it so?"})
    (root / "test.jsonl").write_text("\n".join(lines) + "\n")
    again = evaluate(asked, policy=policy)
    assert again.num_resumed == 1 and again.benchmark("lab").overall.num_questions == 2
    stored = read_samples(asked.out / "samples.jsonl")
    assert [s.prompt.startswith("Is it so?") for s in stored] == [True, False]


def test_a_corrupt_video_costs_its_questions_only(
    world: Path, tmp_path: Path, policy: Policy
) -> None:
    root = tmp_path / "world"
    shutil.copytree(world, root)
    records = read_benchmark("lab", root, "test")
    broken = records[0].video_id
    good = (root / broken).read_bytes()
    (root / broken).write_bytes(b"not a video at all")
    asked = options(root, tmp_path / "out")
    results = evaluate(asked, policy=policy)
    num_broken = sum(r.video_id == broken for r in records)
    assert results.benchmark("lab").num_failed == num_broken == len(results.failures)
    assert results.benchmark("lab").overall.num_questions == len(records) - num_broken
    assert {f.video_id for f in results.failures} == {broken}
    # Mended, the same call asks what is missing.
    (root / broken).write_bytes(good)
    mended = evaluate(asked, policy=policy)
    assert mended.failures == () and mended.num_resumed == len(records) - num_broken
    assert mended.benchmark("lab").overall.num_questions == len(records)


def test_frames_of_each_mode(world: Path) -> None:
    record = next(r for r in read_benchmark("lab", world, "test") if r.data_source == "lab/colour")
    assert record.evidence_spans_seconds
    seen = FileFrames(world, FrameChoice(16, "evidence")).frames(record)
    (start, end) = record.evidence_spans_seconds[0]
    inside = (seen.pts_seconds_K >= start) & (seen.pts_seconds_K < end)
    assert inside.any() and len(seen.frames_KHWC) == 16
    assert (np.diff(seen.source_index_K) > 0).all()
    uniform = FileFrames(world, FrameChoice(16)).frames(record)
    blank = FileFrames(world, FrameChoice(16, "blank")).frames(record)
    assert (blank.frames_KHWC == GREY).all()
    assert blank.frames_KHWC.shape == uniform.frames_KHWC.shape
    assert np.array_equal(blank.source_index_K, uniform.source_index_K)


def test_frames_from_a_cache_and_held_out_metrics(
    world: Path, tmp_path: Path, policy: Policy
) -> None:
    records = read_benchmark("lab", world, "test")
    pool = FileFrames(world, FrameChoice(32))
    layout = create_cache(tmp_path / "cache")
    codec = FrameCodec("raw")
    ensure_settings(layout.frames("pool"), {"fields": {"codec": codec.fields}})
    writer = FrameWriter(layout, "pool", writer="s0of1")
    for record in {r.video_id: r for r in records[:4]}.values():
        video = pool.frames(record)
        count, height, width, _ = video.frames_KHWC.shape
        info = VideoInfo(
            record.video_id, count, video.source_index_K, video.pts_seconds_K, 25.0,
            250, 10.0, height, width, 0, "h264", "pyav",
        )  # fmt: skip
        frames = tuple(codec.encode(frame) for frame in video.frames_KHWC)
        writer.add(EncodedVideo(info, record.video_id, 1, "digest", frames))
    writer.commit()

    choice = FrameChoice(NUM_FRAMES)
    source = CacheFrames(FrameReader(layout, "pool"), choice)
    found = source.frames(records[0])
    whole = pool.frames(records[0])
    # Uniform frames of the pool: its first, its last and two between.
    assert found.source_index_K[[0, -1]].tolist() == whole.source_index_K[[0, -1]].tolist()
    assert np.array_equal(found.frames_KHWC[0], whole.frames_KHWC[0])
    settings = AskSettings(template="short", max_new_tokens=4, batch_size=8)
    metrics = held_out_metrics(policy, records, source, settings=settings, choice=choice)
    cached = sum(r.video_id in source.reader for r in records)
    assert metrics["num_questions"] == cached and metrics["num_failed"] == len(records) - cached
    assert 0 <= metrics["accuracy"] <= 1


def own(world: Path, out: Path, data: Path, **changes: object) -> EvaluateOptions:
    asked = replace(options(world, out), data=(data,))
    return replace(asked, **changes)  # type: ignore[arg-type]


def some_records(world: Path, path: Path, count: int = 3, **changes: object) -> Path:
    records = read_benchmark("lab", world, "test")[:count]
    write_records(path, [replace(record, **changes) for record in records])  # type: ignore[arg-type]
    return path


def test_own_records_are_asked_by_their_file(world: Path, tmp_path: Path, policy: Policy) -> None:
    data = some_records(world, tmp_path / "elsewhere" / "mine.jsonl")
    results = evaluate(own(world, tmp_path / "out", data), policy=policy)
    assert [row.benchmark for row in results.benchmarks] == ["own"]
    assert results.benchmark("own").overall.num_questions == 3
    console = Console(width=100, record=True, file=io.StringIO())
    print_results(results, console)
    text = console.export_text()
    assert "your own records: " in text and "mine.jsonl" in text and "\nlab\n" not in text
    # The same records under another name are the same questions.
    moved = data.rename(tmp_path / "moved.jsonl")
    assert evaluate(own(world, tmp_path / "out", moved), policy=policy).num_resumed == 3


def test_nothing_to_ask_is_an_error_and_leaves_no_folder(
    world: Path, tmp_path: Path, policy: Policy
) -> None:
    out = tmp_path / "evaluations" / "one"
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(RecordsError, match=r"nothing to ask: no video record in .*empty.jsonl"):
        evaluate(own(world, out, empty), policy=policy)
    absent = some_records(world, tmp_path / "absent.jsonl", video_id="nowhere/a.mp4")
    with pytest.raises(MissingInputError, match=r"none of the videos of 3 .*--video-root"):
        evaluate(own(world, out, absent))  # no model is opened
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = some_records(world, tmp_path / "broken.jsonl", video_id="broken.mp4")
    with pytest.raises(TooManyFailuresError, match=r"none of 3 questions .*not_a_video") as caught:
        evaluate(own(tmp_path, out, broken), policy=policy)
    assert caught.value.exit_code == 1
    good = some_records(world, tmp_path / "good.jsonl")
    with pytest.raises(MissingInputError, match="no model folder"):
        evaluate(own(world, out, good, model="./nowhere"))
    assert not out.parent.exists()


def test_a_failed_call_leaves_earlier_answers_alone(
    world: Path, tmp_path: Path, policy: Policy
) -> None:
    out = tmp_path / "out"
    evaluate(own(world, out, some_records(world, tmp_path / "good.jsonl")), policy=policy)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = some_records(world, tmp_path / "broken.jsonl", video_id="broken.mp4")
    with pytest.raises(TooManyFailuresError):
        evaluate(own(tmp_path, out, broken, overwrite=True), policy=policy)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_answers_that_cannot_be_read_and_solutions_that_none_can_earn_are_warned_of(
    world: Path, tmp_path: Path, policy: Policy, capsys: pytest.CaptureFixture[str]
) -> None:
    data = some_records(
        world, tmp_path / "a.jsonl", problem_type="numerical", options=(), solution="3 rings"
    )
    # Six tokens under a prompt that asks for a letter: no answer is a number.
    evaluate(own(world, tmp_path / "out", data, prompt_template="video_r1"), policy=policy)
    lines = capsys.readouterr().err.splitlines()
    [unmatched] = [line for line in lines if "earned" in line]
    assert unmatched.startswith("warning: 3 of 3 solutions") and "strive-cli rescore" in unmatched
    [unread] = [line for line in lines if "can be read" in line]
    assert "none of the first 3 answers can be read as one (3 were cut at --max-new-to" in unread
    assert "'video_r1'" in unread
    assert "--prompt-template (short for the lab's models)" in unread
    good = some_records(world, tmp_path / "b.jsonl")
    evaluate(own(world, tmp_path / "known", good, max_new_tokens=24), policy=policy)
    assert "warning" not in capsys.readouterr().err
