import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from strive.choices import EvaluationGrading
from strive.commands.comparing import print_comparisons
from strive.commands.evaluating import print_results
from strive.configs.load import build_config
from strive.configs.schema import EvaluateConfig
from strive.errors import ConfigError, MissingInputError, RecordsError, UnknownNameError
from strive.evaluate.benchmarks import BENCHMARKS, BenchmarkSpec, parse_spec, read_benchmark
from strive.evaluate.benchmarks.base import PlainRecords
from strive.evaluate.compare import compare, compare_seeds
from strive.evaluate.items import MICRO, Failure, Grade, Graded, Total
from strive.evaluate.results import (
    grade_sample,
    model_digest,
    read_results,
    rescore,
    score_of,
    summarise_benchmark,
    summarise_samples,
    total_of,
    write_results,
)
from strive.evaluate.runner import evaluate
from strive.evaluate.samples import (
    Sample,
    append_samples,
    read_samples,
    rewrite_samples,
)
from strive.files import drop_torn_line, plain_json


def sample(question_id: str, output: str, *, video: str = "a.mp4", **other: object) -> Sample:
    made = Sample(
        benchmark="lab",
        question_id=question_id,
        prompt_hash="p" + question_id,
        video_id=video,
        problem_type="multiple choice",
        kind="lab/colour",
        prompt="Which?",
        solution="<answer>B</answer>",
        source_index=(0, 4),
        evidence_seen=None,
        output=output,
        num_tokens=3,
        truncated=False,
    )
    return replace(made, **other)  # type: ignore[arg-type]


OUTPUTS = (
    ("1", "<think>x</think><answer>B</answer>"),  # right, well formed
    ("2", "<answer>A</answer>"),  # wrong
    ("3", "B."),  # strict: wrong; tolerant: right
    ("4", ""),  # empty
)
SETTINGS = {"model": "m", "num_frames": 32, "frames_mode": "uniform", "prompt_template": "short"}


def test_an_interval_is_read_where_its_reward_reads_it() -> None:
    """Time-R1 reads the last answer block; of all other types the first counts."""
    text = "<answer>0 to 5</answer> No: <answer>10 to 20</answer>"
    asked = sample("1", text, problem_type="grounding", solution="<answer>10 to 20</answer>")
    graded = grade_sample(asked, PlainRecords(), "video_r1")
    assert (graded.score, graded.rule) == (1, "answer tag")
    untagged = replace(asked, output="from 10 to 15 seconds")
    graded = grade_sample(untagged, PlainRecords(), "video_r1")
    assert (graded.score, graded.rule) == (0.5, "whole text")


def write_evaluation(out: Path, samples: list[Sample]) -> None:
    out.mkdir(parents=True)
    graded = [grade_sample(s, PlainRecords(), "video_r1") for s in samples]
    append_samples(out / "samples.jsonl", graded)
    failure = Failure("lab", "9", "broken.mp4", "not_a_video", "no [header]")
    results = summarise_samples(
        {"lab": BENCHMARKS["lab"]}, graded, [failure],
        settings=SETTINGS, versions={"strive": "0"}, grading="video_r1", num_resumed=0, seconds=1.5,
    )  # fmt: skip
    write_results(out, results)


def standard(tmp_path: Path, name: str = "out") -> Path:
    videos = ("a.mp4", "a.mp4", "b.mp4", "c.mp4")
    samples = [
        sample(q, text, video=v, evidence_seen=q in "12", truncated=q == "4")
        for (q, text), v in zip(OUTPUTS, videos, strict=True)
    ]
    write_evaluation(tmp_path / name, samples)
    return tmp_path / name


def test_samples_round_trip_and_survive_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    first, second = sample("1", 'a "quoted"\nline é'), sample("2", "b")
    append_samples(path, [first])
    append_samples(path, [second])
    assert read_samples(path) == [first, second]
    with path.open("a") as out:
        out.write('{"benchmark": "la')
    assert read_samples(path) == [first, second]
    drop_torn_line(path)
    append_samples(path, [replace(first, output="again")])
    assert [s.output for s in read_samples(path)] == ["again", "b"]
    path.write_text("nonsense\n")
    with pytest.raises(RecordsError, match="line 1"):
        read_samples(path)
    with pytest.raises(MissingInputError, match="evaluate --out"):
        read_samples(tmp_path / "absent.jsonl")


def test_results_by_hand(tmp_path: Path) -> None:
    stored = read_results(standard(tmp_path))
    (row,) = stored["benchmarks"]
    # One of five is right: the question that failed is wrong.
    assert row["overall"]["accuracy_percent"] == 20.0
    assert (row["overall"]["num_questions"], row["overall"]["num_videos"]) == (5, 4)
    # Deviations by video: a: 80 - 20 = 60, b, c and the broken one: -20; 4/3 * 4800 / 25.
    assert row["overall"]["standard_error"] == pytest.approx(math.sqrt(4 / 3 * 4800 / 25))
    assert row["headline"] == "accuracy" and row["totals"]["accuracy"] == row["overall"]
    assert row["unparsed_percent"] == 25.0  # only the empty one: "B." can be read
    assert row["empty_percent"] == 25.0 and row["truncated_percent"] == 25.0
    assert row["well_formed_percent"] == 25.0
    assert row["evidence_seen_percent"] == 50.0
    assert row["by_evidence_seen"]["seen"]["accuracy_percent"] == 50.0
    assert row["num_failed"] == 1 and stored["failures"][0]["video_id"] == "broken.mp4"
    # One video alone has no clustered error.
    assert row["by_evidence_seen"]["seen"]["standard_error"] is None


def test_rescore_is_idempotent_and_changes_rules(tmp_path: Path) -> None:
    out = standard(tmp_path)
    before = {name: (out / name).read_bytes() for name in ("samples.jsonl", "results.json")}
    rescore(out)
    assert {name: (out / name).read_bytes() for name in before} == before
    tolerant = rescore(out, grading="tolerant")
    assert tolerant.benchmark("lab").overall.accuracy_percent == 40.0
    assert rescore(out).grading == "tolerant"
    rescore(out, grading="video_r1")
    assert {name: (out / name).read_bytes() for name in before} == before


def test_rescore_reads_a_hand_edited_answer(tmp_path: Path) -> None:
    out = standard(tmp_path)
    rows = [replace(s, output="<answer>B</answer>") for s in read_samples(out / "samples.jsonl")]
    rewrite_samples(out / "samples.jsonl", rows)
    assert rescore(out).benchmark("lab").overall.accuracy_percent == 80.0  # the fifth failed


class Odd(PlainRecords):
    """A benchmark of one's own whose grades are no grades."""

    def __init__(self, grade: object) -> None:
        super().__init__()
        self.given = grade

    def grade(self, sample: Sample, grading: str) -> Grade:
        if isinstance(self.given, Exception):
            raise self.given
        return self.given  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Grade(7.0, "B", "mine", parsed=True), r"'lab' graded question '1' with Grade\(score=7.0"),
        (Grade(math.nan, "B", "mine", parsed=True), "a score from 0 to 1 is wanted"),
        (None, "with None; a Grade"),
        (ValueError("boom"), r"'lab' raised ValueError: boom .* when it graded question '1'"),
    ],
)
def test_a_grade_of_ones_own_is_checked(given: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        grade_sample(sample("1", "B"), Odd(given), "video_r1")


def test_damaged_files_are_told_in_one_line(tmp_path: Path) -> None:
    for text, words in (
        ("[]", "an object is wanted, not a list"),
        ("{}", "has no benchmarks, fai"),
    ):
        out = standard(tmp_path, f"damaged{len(words)}")
        (out / "results.json").write_text(text)
        with pytest.raises(RecordsError, match=words):
            rescore(out)
    out = standard(tmp_path)
    line = json.loads((out / "samples.jsonl").read_text().splitlines()[0])
    for change in ({"dimensions": None}, {"output": None}, {"score": "abc"}):
        (out / "samples.jsonl").write_text(json.dumps({**line, **change}) + "\n")
        with pytest.raises(
            RecordsError, match=f"line 1: not an evaluation sample .{next(iter(change))}"
        ):
            rescore(out)
    (out / "samples.jsonl").write_text(json.dumps({**line, "benchmark": "mine"}) + "\n")
    with pytest.raises(RecordsError, match="holds answers of mine, which"):
        rescore(out)


def test_rescore_misses_answers_that_are_gone(tmp_path: Path) -> None:
    out = standard(tmp_path)
    before = (out / "results.json").read_bytes()
    rows = read_samples(out / "samples.jsonl")
    rewrite_samples(out / "samples.jsonl", rows[1:])
    with pytest.raises(
        RecordsError, match=f"holds {len(rows) - 1} answers, .* counts {len(rows)};"
    ):
        rescore(out)
    assert (out / "results.json").read_bytes() == before


def test_compare_says_what_differs_besides_the_policy(tmp_path: Path) -> None:
    a, b = standard(tmp_path, "a"), standard(tmp_path, "b")
    rows = read_samples(b / "samples.jsonl")
    other = [replace(rows[0], prompt_hash="another", solution="Z"), *rows[1:]]
    rewrite_samples(b / "samples.jsonl", other)
    for out, template in ((a, "short"), (b, "direct")):
        (out / "settings.json").write_text(json.dumps({"prompt_template": template}))
    comparison = compare(a, b)
    assert comparison.other_settings == {"prompt_template": ("short", "direct")}
    text = io.StringIO()
    print_comparisons([comparison], Console(file=text, width=80))
    first, second, *_ = text.getvalue().splitlines()
    [overall] = [line for line in text.getvalue().splitlines() if line.startswith("│ all")]
    assert first.startswith(f"warning: 1 of {len(rows)} questions were asked with another text")
    assert "(prompt_template short / direct)" in first
    assert second.startswith(f"warning: 1 of {len(rows)} questions were graded by another solution")
    # Of fewer than five videos there is no interval and no p; JSON has no NaN either.
    assert comparison.overall.num_units < 5
    assert [cell.strip() for cell in overall.split("│")[3:5]] == ["–", "–"]
    assert "NaN" not in json.dumps(plain_json(comparison))


def test_compare(tmp_path: Path) -> None:
    a = standard(tmp_path, "a")
    right = "<answer>B</answer>"
    others = [
        sample("1", "no"),
        sample("2", right),
        sample("3", right, video="b.mp4", prompt_hash="x"),
    ]
    write_evaluation(tmp_path / "b", others)
    got = compare(a, tmp_path / "b")
    # Over questions 1 to 3: +100, -100, -100.
    assert got.overall.difference == pytest.approx(-100 / 3)
    assert (got.num_gained, got.num_lost) == (1, 2)
    assert (got.num_only_a, got.num_only_b, got.num_other_prompts) == (1, 0, 1)
    assert got.overall.num_units == 2
    same = compare(a, a)
    assert same.overall.difference == 0 and same.overall.p_value == 1
    write_evaluation(tmp_path / "c", [sample("77", right)])
    with pytest.raises(RecordsError, match="no answered question in common"):
        compare(a, tmp_path / "c")


def test_compare_seeds(tmp_path: Path) -> None:
    right, wrong = "<answer>B</answer>", "<answer>A</answer>"

    def evaluation(name: str, outputs: str) -> Path:
        samples = [
            sample(str(i), right if mark == "+" else wrong, video="ab"[i // 2])
            for i, mark in enumerate(outputs)
        ]
        write_evaluation(tmp_path / name, samples)
        return tmp_path / name

    # Questions 0 and 1 are of video a, 2 and 3 of b. Seed 1 gains one, seed 2 gains three.
    start = evaluation("start", "+---")
    got = compare_seeds([(evaluation("s1", "++--"), start), (evaluation("s2", "++++"), start)])
    assert [d.difference for d in got.per_seed] == [25.0, 75.0]
    # By question 0, 100, 50, 50; by video the same mean: no error from videos.
    assert got.over_questions.difference == 50.0 and got.over_questions.num_units == 2
    assert got.over_questions.standard_error == pytest.approx(0.0)
    # 25 and 75: deviation 35.36 over the root of 2.
    assert got.over_seeds.standard_error == pytest.approx(25.0)
    assert got.over_seeds.num_pairs == 2
    with pytest.raises(RecordsError, match="one pair of folders a seed"):
        compare_seeds([])


@pytest.mark.parametrize("width", [80, 160])
def test_tables_fit(tmp_path: Path, width: int) -> None:
    out = standard(tmp_path)
    console = Console(width=width, record=True, file=io.StringIO())
    print_results(rescore(out), console)
    print_comparisons([compare(out, out)], console)
    text = console.export_text()
    assert "train several seeds of each" in text  # what a comparison does not say
    assert "20.0" in text and "no [header]" in text and "unparsed 25.0 %" in text
    tables = [line for line in text.splitlines() if line.startswith(("│", "┃"))]
    assert max(map(len, tables)) <= width


def test_empty_groups_are_not_numbers() -> None:
    score = score_of([])
    assert math.isnan(score.accuracy_percent) and score.num_questions == 0


def test_benchmarks_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'lab'"):
        parse_spec("labs")
    with pytest.raises(MissingInputError, match="--data-root"):
        read_benchmark("lab", BENCHMARKS["lab"], tmp_path)


def test_a_benchmark_is_named_with_its_folder_and_limit() -> None:
    assert parse_spec("lab") == BenchmarkSpec("lab")
    assert parse_spec("lab:a/b@200") == BenchmarkSpec("lab", Path("a/b"), 200)
    assert parse_spec("lab:a@b/c") == BenchmarkSpec("lab", Path("a@b/c"))
    assert parse_spec("records:x.json@3") == BenchmarkSpec("records:x.json", Path("x.json"), 3)
    assert parse_spec("mine:make@4") == BenchmarkSpec("mine:make", None, 4)
    for wrong, words in (
        ("lab@0", "@0 is no number"),
        ("lab@x", "@x is no"),
        ("lab:", "no folder"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_spec(wrong)


def test_a_mean_of_means_has_an_error_of_its_own() -> None:
    # 40 videos with one question of each type: all counts are right, half of the directions.
    rows = [
        sample(f"{kind}{video}", "", video=f"{video}", kind=kind, score=score)
        for video in range(40)
        for kind, score in (("count", 1.0), ("easy", video % 2), ("hard", video % 2))
    ]
    paths = {"count": ("count",), "easy": ("direction", "easy"), "hard": ("direction", "hard")}
    total = Total("official", lambda row: paths[row.kind])
    got = total_of(total, rows)
    # (100 + (50 + 50) / 2) / 2; its error is half of that of 40 coins, sqrt(2500 / 39).
    assert got.accuracy_percent == 75.0
    assert got.standard_error == pytest.approx(math.sqrt(2500 / 39) / 2, rel=0.07)
    assert (got.num_questions, got.num_videos) == (120, 40)
    assert got == total_of(total, rows)
    # Files cut from one video are one cluster, whatever they are called.
    of_cuts = [replace(r, video_id=f"{r.kind}/{r.video_id}", cluster=r.video_id) for r in rows]
    assert got == total_of(total, of_cuts)
    counts = total_of(Total("count", lambda row: None if row.kind != "count" else ()), rows)
    assert (counts.accuracy_percent, counts.num_questions) == (100.0, 40)


class Halves(PlainRecords):
    """Two averages: one by a dimension that files may lack, and the plain one."""

    def totals(self, grading: EvaluationGrading) -> tuple[Total, ...]:
        def half(row: Graded) -> tuple[str, ...] | None:
            return (row.dimensions["half"],) if "half" in row.dimensions else None

        return (Total("halves", half, groups=("left", "right")), MICRO)


def test_an_average_names_what_it_lacks() -> None:
    right = {"answer": "B", "score": 1.0}
    rows = [sample("1", "B", **right, dimensions={"half": "left"}), sample("2", "A")]
    known = summarise_benchmark("own", Halves(), rows, [], "video_r1")
    # "2" is of no half: (100) / 1 and (100 + 0) / 2.
    assert known.headline == "halves" and known.totals["halves"].accuracy_percent == 100
    assert known.totals["accuracy"].accuracy_percent == 50
    assert known.absent == {"halves": ("right",)}
    # Files that name no halves have no such average: it is no headline and lacks nothing.
    unknown = summarise_benchmark("own", Halves(), rows[1:], [], "video_r1")
    assert unknown.headline == "accuracy" and unknown.absent == {}
    assert unknown.totals["halves"].num_questions == 0


def test_options_are_checked(tmp_path: Path) -> None:
    def config(**values: object) -> EvaluateConfig:
        return build_config(EvaluateConfig, {"model": "m", "data_root": tmp_path, **values})

    for wrong in (
        {"protocol": "video_r2"}, {"num_frames": 0}, {"limit": 0}, {"frames_mode": "best"},
        {"batch_size": 0}, {"max_new_tokens": 0},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            config(**wrong)
    with pytest.raises(UnknownNameError, match="prompt_template 'long'"):
        evaluate(config(prompt_template="long"), out=tmp_path / "out")


def test_model_digest_sees_new_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"one")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "recipe.json").write_text("{}")
    first = model_digest(str(tmp_path))
    (tmp_path / "recipe.json").write_text('{"metric": 1}')
    assert model_digest(str(tmp_path)) == first
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert model_digest(str(tmp_path)) != first
    assert model_digest("some/hub-id") is None


def test_samples_are_json_lines(tmp_path: Path) -> None:
    out = standard(tmp_path)
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows] == [1.0, 0.0, 0.0, 0.0]
    assert rows[0]["answer"] == "B"
