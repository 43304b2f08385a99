"""A clip of a variable rate, from its file to what Qwen3-VL reads about its times."""

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from strive.configs.schema import EvaluateConfig
from strive.evaluate.frames import FileFrames
from strive.lab.models import lab_model_path
from strive.models.inputs import prepare_prompt
from strive.models.loading import Policy, load_policy, make_policy
from strive.models.positions import POSITION_RULES
from strive.records import Record

# Milliseconds: 4 pictures a second, then one in 0.8 to 3 seconds; 7 / 9.12 s on average.
TIMES_MS = (0, 240, 480, 720, 2720, 3520, 6520, 9120)
RECORD = Record("1", "clip.mkv", "?", "OCR", (), "<answer>x</answer>", "", None)


def write_uneven(path: Path, start_ms: int) -> None:
    """Write eight pictures, each brighter than the one before it, at `start_ms` + `TIMES_MS`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time_ms in enumerate(TIMES_MS):
            picture = np.full((64, 96, 3), 30 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = start_ms + time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(lab_model_path("qwen3_vl"))


@pytest.mark.parametrize("rule", POSITION_RULES)
@pytest.mark.parametrize("start_ms", [0, 5000])
@pytest.mark.parametrize(
    ("num_frames", "numbers", "stamps"),
    [
        # (0 + 0.24) / 2 = 0.12; (0.48 + 0.72) / 2 = 0.6; (2.72 + 3.52) / 2 = 3.12;
        # (6.52 + 9.12) / 2 = 7.82. By number in the file at the mean rate: 0.7, 3.3, 5.9, 8.5.
        (8, [0, 1, 2, 3, 4, 5, 6, 7], ["0.1", "0.6", "3.1", "7.8"]),
        # The middles of five parts: floor((k + 0.5) x 8 / 5). (0 + 0.48) / 2 = 0.24;
        # (2.72 + 3.52) / 2 = 3.12; and 9.12 alone, twice.
        (5, [0, 2, 4, 5, 7], ["0.2", "3.1", "9.1"]),
        (1, [4], ["2.7"]),
    ],
)
def test_the_prompt_shows_when_each_picture_is_shown(
    tmp_path: Path,
    policy: Policy,
    rule: str,
    start_ms: int,
    num_frames: int,
    numbers: list[int],
    stamps: list[str],
) -> None:
    """Times count from the file's first picture, whenever that is."""
    write_uneven(tmp_path / "clip.mkv", start_ms)
    video = FileFrames(EvaluateConfig(data_root=tmp_path, num_frames=num_frames)).frames(RECORD)
    brightness_K = video.frames_KHWC.mean(axis=(1, 2, 3))
    assert np.rint(brightness_K / 30).tolist() == numbers  # each picture has its own time
    assert video.pts_seconds_K.tolist() == [TIMES_MS[number] / 1000 for number in numbers]
    policy = make_policy(policy.model, policy.processor, position_rule=rule)  # type: ignore[arg-type]
    prompt = prepare_prompt(policy, "When?", video)
    text = policy.tokenizer.decode(prompt.input_ids_P)
    assert re.findall(r"<(\d+\.\d) seconds><\|vision_start\|>", text) == stamps
    assert text.count("<|vision_start|>") == len(stamps) + (rule == "transformers")
