"""`evaluate` with a real tiny policy on real clips: resume, faults, frames, grading again."""

import io
import json
import shutil
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from strive.cache.frames import EncodedVideo, FrameCodec, FrameReader, FrameWriter
from strive.cache.layout import create_cache, ensure_settings
from strive.choices import FramesMode
from strive.cli import app
from strive.commands.evaluating import print_results
from strive.configs.schema import EvaluateConfig
from strive.errors import (
    ConfigError,
    MissingInputError,
    RecordsError,
    StriveError,
    TooManyFailuresError,
)
from strive.evaluate import runner
from strive.evaluate.asking import Asking, choose_part, open_benchmark, specs_of
from strive.evaluate.benchmarks import BENCHMARKS, read_benchmark
from strive.evaluate.benchmarks.base import PlainRecords
from strive.evaluate.compare import compare
from strive.evaluate.frames import GREY, CacheFrames, FileFrames
from strive.evaluate.items import Failure, Item
from strive.evaluate.results import EvaluationResults, rescore
from strive.evaluate.runner import evaluate, evaluate_policy, held_out_metrics
from strive.evaluate.samples import Sample, append_samples, read_samples
from strive.evaluate.shards import start_shard
from strive.files import plain_json
from strive.lab.models import lab_model_path
from strive.lab.world import build_world
from strive.models.loading import Policy, load_policy
from strive.records import VideoFacts, VideoFrames, write_records

NUM_FRAMES = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    build_world(root, num_clips=10, seed=3)
    return root


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(lab_model_path("qwen2_5_vl"))


def asking(world: Path, **changes: Any) -> EvaluateConfig:
    """A few frames and tokens of the lab's model."""
    values: dict[str, Any] = {
        "model": str(lab_model_path("qwen2_5_vl")),
        "data_root": world,
        "prompt_template": "short",
        "num_frames": NUM_FRAMES,
        "max_new_tokens": 6,
        "batch_size": 3,
    }
    return EvaluateConfig(**{**values, **changes})


def chosen(world: Path, num_frames: int, mode: FramesMode = "uniform") -> FileFrames:
    return FileFrames(EvaluateConfig(data_root=world, num_frames=num_frames, frames_mode=mode))


def lab_questions(world: Path) -> tuple[Item, ...]:
    return read_benchmark("lab", BENCHMARKS["lab"], world).items


def opened(config: EvaluateConfig) -> Asking:
    [spec] = specs_of(config)
    return open_benchmark(spec, config)


def scores_of(results: EvaluationResults) -> object:
    """Scores with null for NaN, which is unequal to itself."""
    return plain_json(results)["benchmarks"]


def test_evaluate_resume_and_rescore(world: Path, tmp_path: Path, policy: Policy) -> None:
    config, whole, killed = asking(world), tmp_path / "whole", tmp_path / "killed"
    # Opens the model by itself, as the command does.
    first = evaluate(config, out=whole)
    records = lab_questions(world)
    assert first.benchmark("lab").overall.num_questions == len(records) == 8
    assert first.failures == () and first.num_resumed == 0
    samples = read_samples(whole / "samples.jsonl")
    assert [s.question_id for s in samples] == [r.question_id for r in records]
    assert all(len(s.source_index) == NUM_FRAMES and s.num_tokens <= 6 for s in samples)
    stored = json.loads((whole / "results.json").read_text())
    assert stored["settings"]["model_digest"] and stored["versions"]["torch"]

    again = evaluate(config, out=whole, policy=policy)
    assert again.num_resumed == 8 and scores_of(again) == scores_of(first)

    # A run killed in its second batch: three whole lines and a torn one.
    shutil.copytree(whole, killed)
    lines = (whole / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (killed / "samples.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:40])
    (killed / "results.json").unlink()
    resumed = evaluate(config, out=killed, policy=policy)
    assert resumed.num_resumed == 3 and scores_of(resumed) == scores_of(first)
    assert (killed / "samples.jsonl").read_bytes() == b"".join(lines)

    assert scores_of(rescore(whole)) == scores_of(first)
    assert compare(whole, killed).overall.difference == 0


def test_other_settings_are_refused(world: Path, tmp_path: Path, policy: Policy) -> None:
    out = tmp_path / "out"
    evaluate(asking(world, limit=1), out=out, policy=policy)
    first = asking(world, limit=1, num_frames=8)
    with pytest.raises(ConfigError, match="num_frames: there 4, here 8"):
        evaluate(first, out=out, policy=policy)
    assert evaluate(first, out=out, overwrite=True, policy=policy).num_resumed == 0
    told = asking(world, limit=1, system_prompt="Watch to the end.")
    with pytest.raises(ConfigError, match="system_prompt: there None, here 'Watch"):
        evaluate(told, out=out, policy=policy)
    question = opened(told).items[0]
    [frames] = runner.read_batch(opened(told), [question])
    batch = runner.open_batch(policy, [(question, frames)], opened(told))
    assert batch.prompts[0].text.startswith("<|im_start|>system\nWatch to the end.<|im_end|>")
    assert opened(told).prompt_hash(question) != opened(asking(world)).prompt_hash(question)
    # More questions and another grading are no other settings.
    config = asking(world, num_frames=8, limit=3, grading="tolerant")
    more = evaluate(config, out=out, policy=policy)
    assert more.num_resumed == 1 and more.grading == "tolerant"
    # A smaller limit than before loses no answer.
    fewer = evaluate(asking(world, num_frames=8, limit=2), out=out, policy=policy)
    assert fewer.benchmark("lab").overall.num_questions == 3 and fewer.num_resumed == 2
    assert fewer.seconds == more.seconds


def test_a_question_that_changed_is_asked_again(
    world: Path, tmp_path: Path, policy: Policy
) -> None:
    root = tmp_path / "world"
    shutil.copytree(world, root)
    asked, out = asking(root), tmp_path / "out"
    evaluate(asked, out=out, policy=policy)
    lines = (root / "test.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    lines[0] = json.dumps({**row, "problem": "Is it so?"})
    (root / "test.jsonl").write_text("\n".join(lines) + "\n")
    again = evaluate(asked, out=out, policy=policy)
    assert again.num_resumed == 7 and again.benchmark("lab").overall.num_questions == 8
    stored = read_samples(out / "samples.jsonl")
    assert [s.prompt.startswith("Is it so?") for s in stored] == [True] + 7 * [False]


def test_a_limit_chooses_whole_videos_and_a_larger_one_holds_a_smaller(world: Path) -> None:
    everything = opened(asking(world))

    def chosen_ids(limit: int) -> list[str]:
        config = everything.config.model_copy(update={"limit": limit})
        return [item.question_id for item in choose_part(replace(everything, config=config)).items]

    first = [item.question_id for item in everything.items]
    by_limit = [set(chosen_ids(limit)) for limit in range(1, 9)]
    assert [len(ids) for ids in by_limit] == list(range(1, 9))
    assert all(small < large for small, large in pairwise(by_limit))
    assert chosen_ids(3) == chosen_ids(3) and chosen_ids(100) == first
    # Not the first ones of the file, whatever the limit.
    assert any(by_limit[n] != set(first[: n + 1]) for n in range(7))


def test_shards_join_to_the_same_results(world: Path, tmp_path: Path, policy: Policy) -> None:
    root = tmp_path / "world"
    shutil.copytree(world, root)
    records = lab_questions(root)
    (root / records[-1].video_id).write_bytes(b"no video")
    whole = evaluate(asking(root), out=tmp_path / "whole", policy=policy)
    out = tmp_path / "parts"
    part = evaluate(asking(root, shard=(1, 2)), out=out, policy=policy)
    assert not (out / "results.json").exists()
    assert part.benchmark("lab").overall.num_questions == len(records) / 2  # one of two videos
    joined = evaluate(asking(root, shard=(0, 2)), out=out, policy=policy)
    assert scores_of(joined) == scores_of(whole) and len(joined.failures) == len(whole.failures) > 0
    outputs = [
        sorted((s.question_id, s.output) for s in read_samples(folder / "samples.jsonl"))
        for folder in (out, tmp_path / "whole")
    ]
    assert outputs[0] == outputs[1]
    assert scores_of(rescore(out)) == scores_of(joined)
    # A part that was asked less than the others is waited for.
    evaluate(asking(root, shard=(1, 2), limit=5), out=out, policy=policy)
    assert scores_of(rescore(out)) == scores_of(joined)


def test_torchrun_parts_the_work(
    world: Path, tmp_path: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        evaluate(asking(world), out=tmp_path / "out", policy=policy)
    assert len(read_samples(tmp_path / "out" / "samples.jsonl")) == 8


def test_a_video_is_decoded_once_and_kept_for_the_next_model(
    world: Path, tmp_path: Path, policy: Policy
) -> None:
    root = tmp_path / "world"
    shutil.copytree(world, root)
    records = lab_questions(root)
    config = asking(root, frames_cache=tmp_path / "frames")

    def ask(config: EvaluateConfig, name: str) -> tuple[int, list[str]]:
        asked = opened(config)
        source = asked.source
        assert isinstance(source, FileFrames)
        batches = list(evaluate_policy(policy, choose_part(asked)))
        source.close()
        return source.num_decoded, [s.output for b in batches for s in b if isinstance(s, Sample)]

    num_videos = len({record.video_id for record in records})
    assert num_videos < len(records)
    decoded, outputs = ask(config, "first")
    assert decoded == num_videos and len(outputs) == len(records)
    assert ask(config, "second") == (0, outputs)
    assert ask(asking(root), "unkept") == (num_videos, outputs)
    # What is damaged in the cache is decoded again, and kept anew.
    [part] = (tmp_path / "frames").rglob("frames-*.arrow")
    part.write_bytes(part.read_bytes()[:1000])
    assert ask(config, "damaged") == (num_videos, outputs)
    assert ask(config, "mended") == (0, outputs)
    # A file that is another one now is decoded again; so is another rule of frames.
    (root / records[0].video_id).write_bytes((root / records[-1].video_id).read_bytes() + b"\0")
    assert ask(config, "replaced")[0] == 1
    assert ask(config.model_copy(update={"num_frames": 5}), "other")[0] == num_videos


def test_the_first_videos_are_decoded_while_the_model_loads(
    world: Path, tmp_path: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding, decode = threading.Event(), FileFrames._decode

    def noted(self: FileFrames, *args: Any) -> VideoFrames:
        decoding.set()
        return decode(self, *args)

    def load(config: EvaluateConfig) -> Policy:
        assert decoding.wait(30)  # without an end if decoding waited for the model
        return policy

    monkeypatch.setattr(FileFrames, "_decode", noted)
    monkeypatch.setattr(runner, "_load_policy", load)
    assert evaluate(asking(world), out=tmp_path / "out").failures == ()


def change_rows(root: Path, **changes: object) -> None:
    """Rewrite the first question of the world."""
    lines = (root / "test.jsonl").read_text().splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), **changes})
    (root / "test.jsonl").write_text("\n".join(lines) + "\n")


def test_shards_of_other_settings_or_questions_are_not_joined(
    world: Path, tmp_path: Path, policy: Policy
) -> None:
    root, out = tmp_path / "world", tmp_path / "out"
    shutil.copytree(world, root)
    evaluate(asking(root, shard=(0, 2)), out=out, policy=policy)
    other = asking(root, shard=(1, 2), max_pixels=20_000)
    with pytest.raises(ConfigError, match=r"0of2 holds answers .*max_pixels: there 200704, here 2"):
        evaluate(other, out=out, policy=policy)
    evaluate(asking(root, shard=(1, 2)), out=out, overwrite=True, policy=policy)
    joined = (out / "results.json").read_bytes()
    # A question changed: both parts must be asked again before they are joined.
    change_rows(root, problem="Is it so?")
    evaluate(asking(root, shard=(1, 2)), out=out, policy=policy)
    assert (out / "results.json").read_bytes() == joined
    again = evaluate(asking(root, shard=(0, 2)), out=out, policy=policy)
    assert again.benchmark("lab").overall.num_questions == 8
    # A part that is asked again and killed is not done.
    start_shard(out, (0, 2))
    joined = (out / "results.json").read_bytes()
    evaluate(asking(root, shard=(1, 2)), out=out, overwrite=True, policy=policy)
    assert (out / "results.json").read_bytes() == joined


def test_a_corrected_solution_is_taken_over_without_asking(
    world: Path, tmp_path: Path, policy: Policy
) -> None:
    root, out = tmp_path / "world", tmp_path / "out"
    shutil.copytree(world, root)
    evaluate(asking(root), out=out, policy=policy)
    first = read_samples(out / "samples.jsonl")[0]
    change_rows(root, solution=f"<answer>{first.answer}</answer>")
    again = evaluate(asking(root), out=out, policy=policy)
    assert again.num_resumed == 8 and read_samples(out / "samples.jsonl")[0].score == 1.0


def test_answers_outlive_an_absent_video_and_other_questions(
    world: Path, tmp_path: Path, policy: Policy, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "world", tmp_path / "out"
    shutil.copytree(world, root)
    whole = evaluate(asking(root), out=out, policy=policy)
    video = root / lab_questions(root)[0].video_id
    video.rename(tmp_path / "elsewhere.mp4")
    assert scores_of(evaluate(asking(root), out=out, policy=policy)) == scores_of(whole)
    (tmp_path / "elsewhere.mp4").rename(video)
    # Another file of questions under the same name: its answers alone count, the others are kept.
    lines = (root / "test.jsonl").read_text().splitlines()
    (root / "test.jsonl").write_text("\n".join(lines[:3]) + "\n")
    fewer = evaluate(asking(root), out=out, policy=policy)
    assert fewer.benchmark("lab").overall.num_questions == 3
    assert len(read_samples(out / "left_out.jsonl")) == 5
    assert "5 answers in" in capsys.readouterr().err
    (out / "settings.json").unlink()
    with pytest.raises(ConfigError, match="how they were asked"):
        evaluate(asking(root), out=out, policy=policy)


def test_rescore_after_an_interrupted_call_counts_a_question_once(
    world: Path, tmp_path: Path, policy: Policy
) -> None:
    out = tmp_path / "out"
    evaluate(asking(world), out=out, policy=policy)
    rows = read_samples(out / "samples.jsonl")
    append_samples(out / "samples.jsonl", [replace(rows[0], prompt_hash="new", output="B")])
    assert rescore(out).benchmark("lab").overall.num_questions == 8
    assert [s.output for s in read_samples(out / "samples.jsonl")].count("B") == 1


def test_a_row_that_is_gone_from_the_file_no_longer_counts(
    world: Path, tmp_path: Path, policy: Policy
) -> None:
    root, out = tmp_path / "world", tmp_path / "out"
    shutil.copytree(world, root)
    change_rows(root, path="nowhere.mp4")
    assert len(evaluate(asking(root), out=out, policy=policy).failures) == 1
    lines = (root / "test.jsonl").read_text().splitlines()
    (root / "test.jsonl").write_text("\n".join(lines[1:]) + "\n")
    again = evaluate(asking(root), out=out, policy=policy)
    assert again.failures == () and again.benchmark("lab").overall.num_questions == 7


def test_a_benchmark_is_named_once(world: Path, tmp_path: Path, policy: Policy) -> None:
    twice = asking(world, benchmarks=("lab", f"lab:{tmp_path}"))
    with pytest.raises(ConfigError, match="'lab' is named twice"):
        evaluate(twice, out=tmp_path / "out", policy=policy)


def test_check_looks_and_opens_no_model(world: Path, tmp_path: Path) -> None:
    root = tmp_path / "world"
    shutil.copytree(world, root)
    record = lab_questions(root)[0]
    command = ["evaluate", "--check", "--data-root", str(root), "--benchmark", "lab@3"]
    nowhere = ["--model", str(tmp_path)]
    whole = CliRunner().invoke(app, [*command, *nowhere])
    assert whole.exit_code == 0 and "8 questions, 3 asked; 2 videos, 0 of them" in whole.stdout
    assert record.problem in whole.stdout
    (root / record.video_id).unlink()
    result = CliRunner().invoke(app, [*command, *nowhere, "--json"])
    [found] = json.loads(result.stdout)
    assert result.exit_code == 1 and found["missing_videos"] == [record.video_id]
    elsewhere = ["evaluate", "--check", *nowhere, "--benchmark", f"lab:{tmp_path / 'absent'}"]
    result = CliRunner().invoke(app, elsewhere)
    assert result.exit_code == 1 and "no 'test' questions at" in result.stdout


def test_check_of_records_whose_videos_lie_elsewhere(world: Path, tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    shutil.copy(world / "test.jsonl", data)
    command = ["evaluate", "--check", "--benchmark", f"records:{data}@3"]
    found = CliRunner().invoke(app, [*command, "--video-root", str(world)])
    assert found.exit_code == 0 and "0 of them missing" in found.stdout
    # No model is named, and the prompt is the protocol's; the lab's models know a shorter one.
    assert "<think>" in found.stdout
    of_lab = CliRunner().invoke(
        app, [*command, "--video-root", str(world), "--model", "lab:qwen2_5_vl"]
    )
    assert of_lab.exit_code == 0 and "<think>" not in of_lab.stdout
    assert CliRunner().invoke(app, command).exit_code == 1  # beside the file there are none


def test_failures_of_an_earlier_call_still_count(
    world: Path, tmp_path: Path, policy: Policy
) -> None:
    root = tmp_path / "world"
    shutil.copytree(world, root)
    everything = opened(asking(root))
    config = everything.config.model_copy(update={"limit": 1})
    [kept] = choose_part(replace(everything, config=config)).items
    others = [record for record in everything.items if record.video_id != kept.video_id]
    (root / others[0].video_id).write_bytes(b"no video")
    first = evaluate(asking(root), out=tmp_path / "out", policy=policy)
    again = evaluate(asking(root, limit=1), out=tmp_path / "out", policy=policy)
    assert first.failures and scores_of(again) == scores_of(first)


def test_a_corrupt_video_costs_its_questions_only(
    world: Path, tmp_path: Path, policy: Policy
) -> None:
    root = tmp_path / "world"
    shutil.copytree(world, root)
    records = lab_questions(root)
    broken = records[0].video_id
    good = (root / broken).read_bytes()
    (root / broken).write_bytes(b"not a video at all")
    asked, out = asking(root), tmp_path / "out"
    results = evaluate(asked, out=out, policy=policy)
    num_broken = sum(r.video_id == broken for r in records)
    assert results.benchmark("lab").num_failed == num_broken == len(results.failures)
    assert results.benchmark("lab").overall.num_questions == len(records)  # wrong, not left out
    assert {f.video_id for f in results.failures} == {broken}
    # Mended, the same call asks what is missing.
    (root / broken).write_bytes(good)
    mended = evaluate(asked, out=out, policy=policy)
    assert mended.failures == () and mended.num_resumed == len(records) - num_broken
    assert mended.benchmark("lab").overall.num_questions == len(records)


def test_frames_of_each_mode(world: Path) -> None:
    record = next(r for r in lab_questions(world) if r.data_source == "lab/colour")
    assert record.evidence_spans_seconds
    seen = chosen(world, 16, "evidence").frames(record)
    (start, end) = record.evidence_spans_seconds[0]
    inside = (seen.pts_seconds_K >= start) & (seen.pts_seconds_K < end)
    assert inside.any() and len(seen.frames_KHWC) == 16
    assert (np.diff(seen.source_index_K) > 0).all()
    uniform = chosen(world, 16).frames(record)
    blank = chosen(world, 16, "blank").frames(record)
    assert (blank.frames_KHWC == GREY).all()
    assert blank.frames_KHWC.shape == uniform.frames_KHWC.shape
    assert np.array_equal(blank.source_index_K, uniform.source_index_K)


def test_frames_from_a_cache_and_held_out_metrics(
    world: Path, tmp_path: Path, policy: Policy
) -> None:
    records = lab_questions(world)
    pool = chosen(world, 32)
    layout = create_cache(tmp_path / "cache")
    codec = FrameCodec("raw")
    ensure_settings(layout.frames("pool"), {"fields": {"codec": codec.fields}})
    writer = FrameWriter(layout, "pool", writer="s0of1")
    for record in {r.video_id: r for r in records[:4]}.values():
        video = pool.frames(record)
        _, height, width, _ = video.frames_KHWC.shape
        facts = VideoFacts(
            video.source_index_K, video.pts_seconds_K, 25.0, 250, 10.0, height, width, 1,
            codec="h264", decoder="pyav",
        )  # fmt: skip
        frames = tuple(codec.encode(frame) for frame in video.frames_KHWC)
        writer.add(EncodedVideo(record.video_id, facts, 1, "digest", frames))
    writer.commit()

    config = EvaluateConfig(
        num_frames=NUM_FRAMES,
        prompt_template="short",
        max_new_tokens=4,
        batch_size=8,
        max_pixels=None,
    )
    source = CacheFrames(FrameReader(layout, "pool"), config)
    found = source.frames(records[0])
    whole = pool.frames(records[0])
    # Uniform frames of the pool: its first, its last and two between.
    assert found.source_index_K[[0, -1]].tolist() == whole.source_index_K[[0, -1]].tolist()
    assert np.array_equal(found.frames_KHWC[0], whole.frames_KHWC[0])
    asked = Asking("held_out", PlainRecords(), records, source, config)
    metrics = held_out_metrics(policy, [asked])
    cached = sum(r.video_id in source.reader for r in records)
    assert metrics["num_questions"] == len(records)
    assert metrics["num_failed"] == len(records) - cached
    assert 0 <= metrics["accuracy"] <= 1
    # Two processes: each has a half, and both know everything.
    halves = [held_out_rows(policy, asked.part(rank, 2)) for rank in (0, 1)]
    both = held_out_metrics(policy, [asked.part(0, 2)], lambda own: halves)
    assert both == metrics


def held_out_rows(policy: Policy, asked: Asking) -> list[Sample | Failure]:
    return [row for batch in evaluate_policy(policy, asked) for row in batch]


def own(world: Path, data: Path, **changes: Any) -> EvaluateConfig:
    return asking(world, data=(data,), **changes)


def some_records(world: Path, path: Path, count: int = 3, **changes: object) -> Path:
    records = lab_questions(world)[:count]
    write_records(path, [replace(record, **changes) for record in records])  # type: ignore[arg-type]
    return path


def test_own_records_are_asked_by_their_file(world: Path, tmp_path: Path, policy: Policy) -> None:
    data = some_records(world, tmp_path / "elsewhere" / "mine.jsonl")
    results = evaluate(own(world, data), out=tmp_path / "out", policy=policy)
    assert [row.benchmark for row in results.benchmarks] == ["own"]
    assert results.benchmark("own").overall.num_questions == 3
    console = Console(width=100, record=True, file=io.StringIO())
    print_results(results, console)
    text = console.export_text()
    assert "your own records: " in text and "mine.jsonl" in text and "\nlab\n" not in text
    # The same records under another name are the same questions.
    moved = data.rename(tmp_path / "moved.jsonl")
    assert evaluate(own(world, moved), out=tmp_path / "out", policy=policy).num_resumed == 3


def test_nothing_to_ask_is_an_error_and_leaves_no_folder(
    world: Path, tmp_path: Path, policy: Policy
) -> None:
    out = tmp_path / "evaluations" / "one"
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(RecordsError, match=r"nothing to ask: no video record in .*empty.jsonl"):
        evaluate(own(world, empty), out=out, policy=policy)
    absent = some_records(world, tmp_path / "absent.jsonl", video_id="nowhere/a.mp4")
    with pytest.raises(MissingInputError, match=r"none of the videos of 3 .*--video-root"):
        evaluate(own(world, absent), out=out)  # no model is opened
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = some_records(world, tmp_path / "broken.jsonl", video_id="broken.mp4")
    with pytest.raises(TooManyFailuresError, match=r"none of 3 questions .*not_a_video") as caught:
        evaluate(own(tmp_path, broken), out=out, policy=policy)
    assert caught.value.exit_code == 1
    good = some_records(world, tmp_path / "good.jsonl")
    with pytest.raises(MissingInputError, match="no model folder"):
        evaluate(own(world, good, model="./nowhere"), out=out)
    assert not out.parent.exists()


def test_a_failed_call_leaves_earlier_answers_alone(
    world: Path, tmp_path: Path, policy: Policy
) -> None:
    out = tmp_path / "out"
    evaluate(own(world, some_records(world, tmp_path / "good.jsonl")), out=out, policy=policy)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = some_records(world, tmp_path / "broken.jsonl", video_id="broken.mp4")
    with pytest.raises(TooManyFailuresError):
        evaluate(own(tmp_path, broken), out=out, overwrite=True, policy=policy)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_answers_that_cannot_be_read_and_solutions_that_none_can_earn_are_warned_of(
    world: Path, tmp_path: Path, policy: Policy, capsys: pytest.CaptureFixture[str]
) -> None:
    data = some_records(
        world, tmp_path / "a.jsonl", problem_type="numerical", options=(), solution="3 rings"
    )
    # Six tokens under a prompt that asks for a letter: no answer is a number.
    evaluate(own(world, data, prompt_template="video_r1"), out=tmp_path / "out", policy=policy)
    lines = capsys.readouterr().err.splitlines()
    [unmatched] = [line for line in lines if "earned" in line]
    assert unmatched.startswith("warning: 3 of 3 solutions") and "strive-cli rescore" in unmatched
    [unread] = [line for line in lines if "can be read" in line]
    assert "none of the first 3 answers can be read as one (3 were cut at --max-new-to" in unread
    assert "'video_r1'" in unread
    assert "--prompt-template (short for the lab's models)" in unread
    good = some_records(world, tmp_path / "b.jsonl")
    evaluate(own(world, good, max_new_tokens=24), out=tmp_path / "known", policy=policy)
    assert "warning" not in capsys.readouterr().err


BENCHMARK = """
from strive.records import read_records

def make(data_root, split):
    return [r for r in read_records([data_root / f"{split}.jsonl"]).records][:2]

def wrong(data_root, split):
    return ["a question"]

def broken(data_root, split):
    return {}[split]

def none(data_root, split):
    pass

def twice(data_root, split):
    return 2 * make(data_root, split)
"""


def test_a_benchmark_of_ones_own(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_bench.py").write_text(BENCHMARK)
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", "--benchmark", "my_bench:make", "--data-root", str(world)]
    settings = ["--frames", "4", "--max-new-tokens", "4", "--out", "out", "--json"]
    result = CliRunner().invoke(app, [*arguments, *settings], catch_exceptions=False)
    [row] = json.loads(result.stdout)["benchmarks"]
    assert row["benchmark"] == "my_bench:make" and row["overall"]["num_questions"] == 2
    for name, words in (
        ("my_bench:wrong", r"'my_bench:wrong' gives a str; a list of strive.records.Record"),
        ("my_bench:broken", r"'my_bench:broken' raised KeyError: 'test' \(.*my_bench.py, line 11"),
        ("my_bench:absent", "has no 'absent'"),
        ("my_bench:none", "gives a NoneType; a list of"),
        ("my_bench:twice", r"gives question_id '\d+' twice; ids must be unique"),
        ("my_bench", "unknown benchmark 'my_bench'.*known: lab.*records:FILE"),
    ):
        with pytest.raises(StriveError, match=words):
            CliRunner().invoke(
                app, [*arguments[:1], "--benchmark", name, *arguments[3:]], catch_exceptions=False
            )
    with pytest.raises(ConfigError, match="no question to evaluate"):
        nothing = ["evaluate", "--set", "benchmarks=[]", "--data-root", str(world)]
        CliRunner().invoke(app, nothing, catch_exceptions=False)
    with pytest.raises(ConfigError, match=r"--benchmark my_bench:make is your own.*--data-root"):
        CliRunner().invoke(app, arguments[:3], catch_exceptions=False)
