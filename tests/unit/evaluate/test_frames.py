from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from video import coded_clips as clips

from strive.configs.load import build_config
from strive.configs.schema import EvaluateConfig
from strive.errors import ConfigError
from strive.evaluate.frames import FileFrames, choose_frames
from strive.evaluate.items import Item
from strive.records import Record


def choice(num_frames: int, mode: str = "uniform") -> EvaluateConfig:
    return build_config(EvaluateConfig, {"num_frames": num_frames, "frames_mode": mode})


def record(spans: tuple[tuple[float, float], ...] | None) -> Record:
    return Record("1", "a.mp4", "?", "OCR", (), "<answer>x</answer>", "", spans)


def test_uniform_and_blank_see_the_whole_video() -> None:
    pts = np.arange(64) * 0.5
    for mode in ("uniform", "blank"):
        chosen = choose_frames(choice(16, mode), record(((3.0, 3.6),)), pts)
        assert len(chosen) == 16 and chosen[0] == 0 and chosen[-1] == 63


def test_evidence_by_hand() -> None:
    # 8 frames a second apart, evidence at 2 and 3; the other two of four are the ends of the rest.
    chosen = choose_frames(choice(4, "evidence"), record(((2.0, 4.0),)), np.arange(8.0))
    assert chosen.tolist() == [0, 2, 3, 7]


@given(
    num_pool=st.integers(1, 80),
    num_frames=st.integers(1, 40),
    start=st.floats(0, 30),
    length=st.floats(0.1, 20),
)
def test_evidence_frames_are_all_there(
    num_pool: int, num_frames: int, start: float, length: float
) -> None:
    pts = np.arange(num_pool) * 0.5
    chosen = choose_frames(choice(num_frames, "evidence"), record(((start, start + length),)), pts)
    inside = set(np.flatnonzero((pts >= start) & (pts < start + length)).tolist())
    assert len(chosen) == min(num_frames, num_pool)
    assert (np.diff(chosen) > 0).all() and chosen[0] >= 0 and chosen[-1] < num_pool
    if len(inside) <= num_frames:
        assert inside <= set(chosen.tolist())
    else:
        assert set(chosen.tolist()) <= inside


def test_questions_without_spans_get_uniform_frames() -> None:
    pts = np.arange(10.0)
    for spans in (None, ()):
        evidence = choose_frames(choice(4, "evidence"), record(spans), pts)
        assert evidence.tolist() == choose_frames(choice(4), record(spans), pts).tolist()


def test_frames_of_a_cut_are_kept_beside_those_of_the_whole_video(tmp_path: Path) -> None:
    clips.write_clip(tmp_path / "a.mp4", 40)
    values = {"data_root": tmp_path, "frames_cache": tmp_path / "frames", "num_frames": 4}
    config = build_config(EvaluateConfig, values)
    about = ("1", "a.mp4", "?", "OCR", (), "<answer>x</answer>")
    # The midpoints of four parts of 40 frames, and of the 8 that the second question may see.
    wanted = [(Item(*about), [5, 15, 25, 35]), (Item(*about, end_frame=8), [1, 3, 5, 7])]
    for num_decoded in (2, 0):
        source = FileFrames(config)
        for item, indices in wanted:
            assert source.read(item).source_index_K.tolist() == indices
        source.close()
        assert source.num_decoded == num_decoded


def test_choices_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"--frames-mode\) is 'grey': .*'evidence' or 'blank'"):
        choice(4, "grey")
    with pytest.raises(ConfigError, match=r"--frames\) is 0: .*greater than or equal to 1"):
        choice(0)
