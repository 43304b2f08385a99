"""The examples of docs/add-a-benchmark.md, taken from the page and run on clips of the lab."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from strive.configs.schema import EvaluateConfig
from strive.errors import MissingInputError, RecordsError
from strive.evaluate.benchmarks import load_benchmark, parse_spec, read_benchmark
from strive.evaluate.results import rescore
from strive.evaluate.runner import evaluate
from strive.evaluate.samples import read_samples, rewrite_samples
from strive.lab.models import lab_model_path
from strive.lab.world import build_world

PAGE = Path(__file__).parents[2] / "docs" / "add-a-benchmark.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files in the working directory, which is on no path; a small world beside them."""
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert [name for name, _ in blocks] == ["shapes.py", "counting.py"]
    for name, code in blocks:
        (tmp_path / name).write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    build_world(tmp_path / "world", num_clips=2, seed=3)
    return tmp_path


def example_row() -> dict[str, Any]:
    (text,) = re.findall(r"```json\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    row: dict[str, Any] = json.loads(text)
    return row


def config(folder: Path, benchmark: str, **changes: Any) -> EvaluateConfig:
    return EvaluateConfig(
        model=str(lab_model_path("qwen2_5_vl")),
        data_root=folder / "world",
        benchmarks=(benchmark,),
        num_frames=2,
        max_new_tokens=4,
        **changes,
    )


def test_the_class_reads_words_grades_and_averages(folder: Path) -> None:
    clip = next((folder / "world").rglob("*.mp4")).relative_to(folder / "world").as_posix()
    row = {**example_row(), "clip": clip}
    rows = [
        row,
        {**row, "id": 2, "room": "hall"},
        {**row, "id": 3, "room": "hall", "clip": "gone.mp4"},
        {**row, "id": 4, "count": None},
    ]
    path = folder / "world" / "counting-val.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "out"
    results = evaluate(config(folder, "counting:Counting", protocol="direct"), out=out)
    [counting] = results.benchmarks
    assert counting.overall.num_questions == 4 and counting.num_failed == 2
    assert {f.question_id: f.error for f in results.failures} == {"3": "missing", "4": "bad_row"}
    samples = read_samples(out / "samples.jsonl")
    asked = "How many cups are there?\nCount carefully, and end with the number."
    assert [sample.prompt for sample in samples] == [asked, asked]
    # From the first frame to the very last: the lab's clips are longer than two frames.
    assert samples[0].source_index[0] == 0 and samples[0].source_index[1] > 10

    # Other answers graded by the page's rule: 3 is right, 2 is off by one.
    rewrite_samples(
        out / "samples.jsonl",
        [
            replace(sample, output=output)
            for sample, output in zip(samples, ("1, 2, 3: it is 3", "2"), strict=True)
        ],
    )
    [counting] = rescore(out).benchmarks
    # (1 + 0.5 + 0 + 0) / 4; by room: kitchen (1 + 0) / 2, hall (0.5 + 0) / 2, their mean.
    assert counting.totals["accuracy"].accuracy_percent == pytest.approx(37.5)
    assert counting.totals["mean over rooms"].accuracy_percent == pytest.approx(37.5)
    by_room = counting.by_dimension["room"]
    assert by_room["kitchen"].accuracy_percent == pytest.approx(50)
    assert by_room["hall"].accuracy_percent == pytest.approx(25)
    assert [s.rule for s in read_samples(out / "samples.jsonl")] == ["last number"] * 2
    # By Video-R1's rules the whole of "1, 2, 3: it is 3" is no number, and 2 is not 3.
    assert rescore(out, grading="video_r1").benchmarks[0].overall.accuracy_percent == 0


def test_missing_and_other_files_are_one_line(folder: Path) -> None:
    spec = parse_spec("counting:Counting")
    benchmark = load_benchmark(spec)
    with pytest.raises(MissingInputError, match="they are on our file server"):
        read_benchmark(spec.name, benchmark, folder)
    (folder / "counting-val.jsonl").write_text('{"id": 1, "clip": "a.mp4"}\n')
    with pytest.raises(RecordsError, match="no column 'ask'; there are: id, clip"):
        read_benchmark(spec.name, benchmark, folder)


def test_the_function_gives_questions(folder: Path) -> None:
    row = {"id": "q", "file": "a.mp4", "question": "Which?", "options": ["A. x", "B. y"]}
    (folder / "shapes-test.json").write_text(json.dumps([{**row, "letter": "B"}]))
    spec = parse_spec("shapes:questions")
    [item] = read_benchmark(spec.name, load_benchmark(spec), folder).items
    assert (item.question_id, item.video_id, item.solution) == ("q", "a.mp4", "B")
