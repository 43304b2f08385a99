"""The six benchmarks from end to end: published files, a tiny policy, both protocols, results.

A golden file that no longer holds is replaced by hand by the one that the failure names.
"""

import json
import sys
from pathlib import Path
from typing import Any

import av
import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "unit")]

from six_benchmarks import Made, make_six, shown

from strive.choices import EvaluationProtocol
from strive.configs.schema import EvaluateConfig
from strive.evaluate.results import EvaluationResults, rescore
from strive.evaluate.runner import evaluate
from strive.evaluate.samples import Sample, read_samples
from strive.files import plain_json
from strive.lab.models import lab_model_path
from strive.models.loading import Policy, load_policy

GOLDEN = HERE / "golden"
NUM_FRAMES = 4
SETTINGS = (
    "protocol", "prompt_template", "num_frames", "frames_mode", "max_pixels", "max_new_tokens",
    "split", "decoding",
)  # fmt: skip


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(lab_model_path("qwen2_5_vl"))


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    return make_six(tmp_path_factory.mktemp("six"))


def golden_form(results: EvaluationResults, name: str, root: Path) -> dict[str, Any]:
    """Return `results.json` of one benchmark without times, versions and this machine's paths."""
    whole = plain_json(results)
    settings = {setting: whole["settings"][setting] for setting in SETTINGS}
    failures = [
        # What a decoder says of a broken file is the decoder's own.
        {k: v for k, v in row.items() if k != "message" or row["error"] == "bad_row"}
        for row in whole["failures"]
        if row["benchmark"] == name
    ]
    [benchmark] = [row for row in whole["benchmarks"] if row["benchmark"] == name]
    found = {
        "benchmarks": [benchmark],
        "failures": failures,
        "settings": settings,
        "grading": whole["grading"],
        "num_resumed": whole["num_resumed"],
    }
    text = json.dumps(shown(found), ensure_ascii=False, indent=1, sort_keys=True)
    return json.loads(text.replace(str(root), "ROOT"))


@pytest.mark.parametrize("protocol", ["video_r1", pytest.param("direct", marks=pytest.mark.long)])
def test_six_benchmarks(
    six: dict[str, Made], protocol: EvaluationProtocol, tmp_path: Path, policy: Policy
) -> None:
    config = EvaluateConfig(
        model=str(lab_model_path("qwen2_5_vl")),
        benchmarks=tuple(f"{name}:{made.root}" for name, made in six.items()),
        protocol=protocol,
        num_frames=NUM_FRAMES,
        max_new_tokens=14,
        max_pixels=64 * 28 * 28,
        dtype="float32",
        device="cpu",
    )
    results = evaluate(config, out=tmp_path, policy=policy)
    samples = read_samples(tmp_path / "samples.jsonl")
    for name, made in six.items():
        check_counts(results, name, made, protocol)
        own = [sample for sample in samples if sample.benchmark == name]
        check_frames(own, made.root)
    again = plain_json(rescore(tmp_path))
    assert again["benchmarks"] == plain_json(results)["benchmarks"]
    # A call for one of them asks nothing again, and counts what failed once.
    one = config.model_copy(update={"benchmarks": config.benchmarks[:1]})
    resumed = evaluate(one, out=tmp_path, policy=policy)
    assert resumed.num_resumed == sum(sample.benchmark == "videomme" for sample in samples)
    rows = {row["benchmark"]: row for row in plain_json(resumed)["benchmarks"]}
    assert rows == {row["benchmark"]: row for row in again["benchmarks"]}
    found = {name: golden_form(results, name, made.root) for name, made in six.items()}
    (tmp_path / "found").mkdir()
    for name, form in found.items():
        text = json.dumps(form, ensure_ascii=False, indent=1) + "\n"
        (tmp_path / "found" / f"{name}_{protocol}.json").write_text(text)
    for name, form in found.items():
        wanted = json.loads((GOLDEN / f"{name}_{protocol}.json").read_text())
        assert form == wanted, f"{tmp_path}/found has what was found"


def check_counts(
    results: EvaluationResults, name: str, made: Made, protocol: EvaluationProtocol
) -> None:
    """Every row is answered or listed as failed, and counts; only captions are left out."""
    num_left_out = int(name == "tempcompass" and protocol == "direct")
    found = results.benchmark(name)
    assert found.overall.num_questions == made.num_rows - num_left_out
    kinds = [row.error for row in results.failures if row.benchmark == name]
    assert sorted(kinds) == ["bad_row", "missing", "not_a_video"]
    assert found.num_failed == 3


def check_frames(samples: list[Sample], root: Path) -> None:
    """Frames go from the first to the very last one; of a clip of two both are shown."""
    shown_of = {sample.video_id: sample.source_index for sample in samples}
    assert len(shown_of) == 3
    for video_id, source_index in shown_of.items():
        with av.open(str(root / video_id)) as container:
            num_frames = sum(1 for _ in container.decode(video=0))
        assert (source_index[0], source_index[-1]) == (0, num_frames - 1)
        assert len(source_index) == min(NUM_FRAMES, num_frames)
