"""A step's frames from the cache against decoding them in the step, on 60 s clips of 720p.

ours     `TrainingData.read` for the 4 questions of a step: M=2 variants of K=16 frames each, drawn
         by importance from a cache that `strive-cli precompute` made of these clips;
decode   as Video-R1 does it: `fetch_video` of qwen-vl-utils in the training process, its default
         backend, 2 frames a second and at most 16 of at most 128*28*28 pixels. One decode a
         question: the same 16 frames for all completions, half of what ours reads.

Both end with uint8 frames or their floats in memory; neither includes the model's processor. The
share of a step is against `bench/results/step.json` (this machine, one question a step) and
against the 54 s that a step of 4 questions took Video-R1's authors on 4 GPUs
(https://github.com/tulerfeng/Video-R1/issues/41).

    python -m bench.data [--repeats 7] [--quick]
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from qwen_vl_utils import vision_process

from bench.clips import make_clip
from bench.harness import BUILD, RESULTS, OtherLoad, Timing, time_in_turns, write_result
from bench.precompute import run
from strive.configs.schema import TrainConfig
from strive.lab.models import lab_model_path
from strive.train.data import TrainingData

QUESTIONS_PER_STEP, NUM_VARIANTS, NUM_FRAMES = 4, 2, 16
PIXELS = 128 * 28 * 28
VIDEO_R1_STEP_SECONDS = 54.0
CHEAPER, SHARE = 20.0, 0.02
"""What is wanted: so many times cheaper at least, and at most this share of a step."""


def make_cache(seconds: float) -> tuple[Path, Path]:
    """Make the clips and their cache; returns the folders of both."""
    folder = BUILD / f"data-{seconds:g}"
    rows = []
    for number in range(QUESTIONS_PER_STEP):
        make_clip(
            folder / "videos" / f"clip{number}.mp4",
            seconds=seconds,
            start_seconds=0.5 * (number // 2),
            mirrored=number % 2 == 1,
        )
        rows.append(
            {
                "problem_id": number,
                "problem": f"How often does the rabbit turn its head in part {number}?",
                "data_type": "video",
                "problem_type": "numerical",
                "options": [],
                "solution": "<answer>1</answer>",
                "path": f"clip{number}.mp4",
            }
        )
    records = folder / "records.jsonl"
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    command = ["precompute", "--data", records, "--video-root", folder / "videos"]
    scorer = ["--scorer", "siglip2", "--scorer-model", lab_model_path("siglip2")]
    run(["-m", "strive.cli", *command, "--cache", cache, *scorer])
    return folder / "videos", cache


class Reading:
    """Reads the frames of one step after another, as the training loop's reading thread does."""

    def __init__(self, cache: Path, *, spatial: bool) -> None:
        config = TrainConfig(
            cache=cache,
            variants="importance",
            spatial=spatial,
            num_variants=NUM_VARIANTS,
            num_frames=NUM_FRAMES,
            questions_per_step=QUESTIONS_PER_STEP,
        )
        self.data = TrainingData(config)
        self.step = 0

    def __call__(self) -> int:
        """Read the next step; returns the number of frames."""
        questions = [self.data.read(r, self.step) for r in self.data.questions_of(self.step)]
        self.step += 1
        return sum(len(video.frames_KHWC) for q in questions for video in q.videos)


def decode_step(videos: Path) -> int:
    """Decode and resize the frames of a step's questions; returns their number."""
    total = 0
    for path in sorted(videos.glob("*.mp4")):
        asked = {"video": str(path), "fps": 2.0, "max_frames": NUM_FRAMES, "max_pixels": PIXELS}
        total += len(vision_process.fetch_video(asked))
    return total


def measure(seconds: float, repeats: int) -> dict[str, Any]:
    """Time a step's frames in turns."""
    videos, cache = make_cache(seconds)
    plain, spatial = Reading(cache, spatial=False), Reading(cache, spatial=True)
    contenders = {
        "ours": plain,
        "ours, spatial augmentation": spatial,
        "decode": lambda: decode_step(videos),
    }
    frames = {name: run_once() for name, run_once in contenders.items()}
    with OtherLoad() as others:
        timings = time_in_turns(contenders, repeats=repeats)
    return {
        "clip_seconds": seconds,
        "questions_per_step": QUESTIONS_PER_STEP,
        "num_variants": NUM_VARIANTS,
        "num_frames": NUM_FRAMES,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "cpu_share_of_others": others.share,
        "backend": vision_process.get_video_reader_backend(),
        "frames": frames,
        "seconds": {name: timing.wall for name, timing in timings.items()},
        "median_seconds": {name: timing.wall_seconds for name, timing in timings.items()},
        "cpu_seconds": {name: timing.cpu_seconds for name, timing in timings.items()},
        "ratios": ratios(timings),
        "share_of_step": shares(timings),
        "video_r1_step_seconds": VIDEO_R1_STEP_SECONDS,
        "floors": {"ratio": CHEAPER, "share_of_step": SHARE},
    }


def ratios(timings: dict[str, Timing]) -> dict[str, float]:
    """How many times cheaper than decoding, by wall clock and by CPU seconds."""
    found = {}
    for name in list(timings)[:-1]:
        decode, mine = timings["decode"], timings[name]
        found[f"{name} (wall)"] = decode.wall_seconds / mine.wall_seconds
        found[f"{name} (CPU)"] = decode.cpu_seconds / mine.cpu_seconds
    return found


def shares(timings: dict[str, Timing]) -> dict[str, dict[str, float]]:
    """Seconds of a step's frames over seconds of the step, for the steps that are known."""
    found = {}
    measured = RESULTS / "step.json"
    if measured.is_file():
        # That step has one question, this one four; both are of the same M, G and K.
        case = json.loads(measured.read_text())["figures"]["cases"]["8192 language"]
        seconds = QUESTIONS_PER_STEP * case["median_seconds"]["ours"]["step"]
        found["the 30 M model's step, this machine"] = seconds
    found["Video-R1's 7B step, 4 GPUs"] = VIDEO_R1_STEP_SECONDS
    return {
        which: {name: timing.wall_seconds / seconds for name, timing in timings.items()}
        for which, seconds in found.items()
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="clips of 6 s, once; no result")
    asked = parser.parse_args()
    torch.set_num_threads(2)
    figures = measure(6.0 if asked.quick else 60.0, 1 if asked.quick else asked.repeats)
    for name, seconds in figures["median_seconds"].items():
        print(f"{name:28} {seconds:8.3f} s for {figures['frames'][name]} frames")
    for name, ratio in figures["ratios"].items():
        print(f"{name:40} {ratio:6.1f} times cheaper (at least {CHEAPER:g} is wanted)")
    print(f"{figures['cpu_share_of_others']:.1%} of the CPU time went to other processes")
    for which, by_name in figures["share_of_step"].items():
        for name, share in by_name.items():
            print(f"{which:36} {name:28} {share:8.2%} (at most {SHARE:.0%} is wanted)")
    if "the 30 M model's step, this machine" not in figures["share_of_step"]:
        print("no bench/results/step.json: run `python -m bench.step` for its share of that step")
    if not asked.quick:
        packages = ("torch", "av", "pillow", "qwen-vl-utils", "torchcodec", "decord2")
        print(f"wrote {write_result('data', figures, packages=packages)}", file=sys.stderr)


if __name__ == "__main__":
    main()
