"""How the offline stage grows: 200 clips against 2,000, and a second call over a complete cache.

Lab clips, the lab's SigLIP2. Peak memory is that of the main process (VmHWM); every run is a fresh
process, imports included.

    python -m bench.scale [--small 200] [--large 2000]
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bench.harness import BUILD, write_result
from strive.lab.models import lab_model_path
from strive.lab.world import build_world

SPLITS = ("train", "held_out", "test")
POLL_SECONDS = 0.05


def precompute(world: Path, cache: Path, num_clips: int) -> tuple[float, float]:
    """Run the command on the first clips and return (seconds, peak MiB of the main process)."""
    command = [sys.executable, "-m", "strive.cli", "precompute", "--video-root", str(world)]
    for split in SPLITS:
        command += ["--data", str(world / f"{split}.jsonl")]
    command += ["--limit", str(num_clips), "--cache", str(cache), "--scorer", "siglip2"]
    command += ["--scorer-model", str(lab_model_path("siglip2"))]
    started, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, _peak_mib(process.pid))
        time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"precompute ended with {process.returncode}: {' '.join(command)}")
    return seconds, peak


def _peak_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    found = [line for line in lines if line.startswith("VmHWM")]
    return int(found[0].split()[1]) / 1024 if found else 0.0


def measure(small: int, large: int, repeats: int) -> dict:
    """Run small and large in turns, then the large one again on its complete cache."""
    world = BUILD / f"world-{large}"
    build_world(world, num_clips=large, seed=0)
    runs: dict[str, list[tuple[float, float]]] = {"small": [], "large": []}
    cache = BUILD / "scale-cache"
    for _ in range(repeats):
        for name, num_clips in (("small", small), ("large", large)):
            shutil.rmtree(cache, ignore_errors=True)
            runs[name].append(precompute(world, cache, num_clips))
    again = [precompute(world, cache, large) for _ in range(3)]
    per_video = {
        name: min(seconds for seconds, _ in runs[name]) / count
        for name, count in (("small", small), ("large", large))
    }
    peak = {name: max(peak for _, peak in values) for name, values in runs.items()}
    return {
        "clips": {"small": small, "large": large},
        "seconds": {name: [seconds for seconds, _ in values] for name, values in runs.items()},
        "seconds_per_video": per_video,
        "seconds_per_video_ratio": per_video["large"] / per_video["small"],
        "peak_mib": peak,
        "peak_ratio": peak["large"] / peak["small"],
        "again_seconds": [seconds for seconds, _ in again],
        "again_peak_mib": max(peak for _, peak in again),
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=200)
    parser.add_argument("--large", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    figures = measure(arguments.small, arguments.large, arguments.repeats)
    for name, count in figures["clips"].items():
        print(
            f"{count:5} clips: {figures['seconds_per_video'][name]:.4f} s per video, "
            f"peak {figures['peak_mib'][name]:.0f} MiB"
        )
    print(f"seconds per video, large over small: {figures['seconds_per_video_ratio']:.3f}")
    print(f"peak memory, large over small:       {figures['peak_ratio']:.3f}")
    print(f"again over a complete cache:         {max(figures['again_seconds']):.2f} s")
    print(f"wrote {write_result('scale', figures, packages=('torch', 'av'))}")


if __name__ == "__main__":
    main()
