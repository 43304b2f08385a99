"""The whole offline stage against a straightforward script: 200 clips of 10 s 720p, two contenders.

Both run as whole processes, imports included, on the same cores with the same model (the lab's
SigLIP2) and the same 64 frames of each clip. Ours also keeps the frames; the script does not.

    python -m bench.precompute [--clips 200] [--repeats 2]
"""

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.clips import make_clip
from bench.harness import BUILD, time_in_turns, write_result
from strive.cache.layout import open_cache
from strive.cache.scores import ScoreReader
from strive.lab.models import lab_model_path

NUM_CONTENTS = 40
SECONDS = 10


def make_folder(num_clips: int) -> tuple[Path, Path]:
    """Make the clips (40 encodings, each under several names) and a records file."""
    folder = BUILD / "precompute"
    rows = []
    for number in range(num_clips):
        content = number % NUM_CONTENTS
        source = make_clip(
            folder / f"content{content:02d}.mp4",
            seconds=SECONDS,
            start_seconds=content / 2 * 0.25,
            mirrored=content % 2 == 1,
        )
        clip = folder / "videos" / f"clip{number:03d}.mp4"
        clip.parent.mkdir(exist_ok=True)
        if not clip.is_file():
            shutil.copyfile(source, clip)
        rows.append(
            {
                "problem_id": number,
                "problem": f"How often does the rabbit turn its head in part {number}?",
                "data_type": "video",
                "problem_type": "numerical",
                "options": [],
                "solution": "<answer>1</answer>",
                "path": clip.name,
            }
        )
    records = folder / f"records-{num_clips}.jsonl"
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return records, folder / "videos"


class BusyShare:
    """The share of short intervals in which every core of the machine was busy."""

    INTERVAL_SECONDS = 0.1
    BUSY = 0.9

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._busy: list[bool] = []
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "BusyShare":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return float(np.mean(self._busy)) if self._busy else 0.0

    def _watch(self) -> None:
        before = self._ticks()
        while not self._stop.wait(self.INTERVAL_SECONDS):
            now = self._ticks()
            idle, total = (a - b for a, b in zip(now, before, strict=True))
            before = now
            self._busy.append(total > 0 and idle / total < 1 - self.BUSY)

    @staticmethod
    def _ticks() -> tuple[int, int]:
        fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return fields[3] + fields[4], sum(fields)


def measure(num_clips: int, repeats: int) -> dict:
    """Time both contenders in turns and compare their scores."""
    records, root = make_folder(num_clips)
    model = lab_model_path("siglip2")
    cache, out = BUILD / "precompute" / "cache", BUILD / "precompute" / "scores.npz"
    shares: dict[str, list[float]] = {"ours": [], "script": []}

    def ours() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        command = ["precompute", "--data", records, "--video-root", root, "--cache", cache]
        run(["-m", "strive.cli", *command, "--scorer", "siglip2", "--scorer-model", model])

    def script() -> None:
        run(["-m", "bench.straightforward", records, root, model, out])

    def watched(name: str, contender: Callable[[], None]) -> Callable[[], None]:
        def timed() -> None:
            with BusyShare() as busy:
                contender()
            shares[name].append(busy.share)

        return timed

    timings = time_in_turns(
        {"ours": watched("ours", ours), "script": watched("script", script)}, repeats=repeats
    )
    differences = compare(cache, out)
    return {
        "clips": num_clips,
        "repeats": repeats,
        "seconds": {name: timing.wall for name, timing in timings.items()},
        "cpu_seconds": {name: timing.cpu for name, timing in timings.items()},
        "seconds_per_video": {n: t.wall_seconds / num_clips for n, t in timings.items()},
        "all_cores_busy_share": {name: float(np.median(s)) for name, s in shares.items()},
        "ratio": timings["script"].wall_seconds / timings["ours"].wall_seconds,
        "score_difference_max": differences,
    }


def run(arguments: list) -> None:
    """Run Python with these arguments; its own output is shown only if it fails."""
    done = subprocess.run(
        [sys.executable, *(str(a) for a in arguments)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])


def compare(cache: Path, out: Path) -> float:
    """Return the largest difference of a score: the resize and JPEG differ, the rest must not."""
    layout = open_cache(cache)
    ours = ScoreReader(layout, layout.scorer_keys()[0])
    theirs = np.load(out)
    return max(float(np.abs(ours.get(name).scores_F - theirs[name]).max()) for name in theirs.files)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    started = time.monotonic()
    figures = measure(arguments.clips, arguments.repeats)
    for name, seconds in figures["seconds_per_video"].items():
        busy = figures["all_cores_busy_share"][name]
        print(f"{name:8} {seconds:6.3f} s per video, all cores busy {busy:.0%} of the time")
    print(f"ratio    {figures['ratio']:6.2f} (at least 1.5 is wanted)")
    print(f"largest score difference {figures['score_difference_max']:.4f}")
    path = write_result(
        "precompute", figures, packages=("av", "decord2", "torch", "open_clip_torch")
    )
    print(f"wrote {path} after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
