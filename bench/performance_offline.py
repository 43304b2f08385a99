"""Sections of docs/performance.md on the offline stage: decode, precompute, scale, embed, jpeg."""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

Result = Mapping[str, Any]

CLIPS = {"a": "one minute, groups of 250", "b": "ten minutes, groups of 60"}
PROCESSES = {"ours": "`strive-cli precompute`", "script": "straightforward script"}


def decode_lines(result: Result) -> Iterator[str]:
    """Tables of bench/decode."""
    figures = result["figures"]
    yield (
        "64 frames of a clip of 1280x720 camera content, H.264 with x264's defaults, from opening "
        "the file to RGB frames. `ffmpeg` decodes the whole file and drops it. Ours uses one "
        "thread, as a worker of the offline stage does; the others their own number."
    )
    yield ""
    yield "| reader | " + " | ".join(f"{CLIPS[clip]}: s (CPU s)" for clip in figures) + " |"
    yield "|---|" + "---|" * len(figures)
    for reader in next(iter(figures.values()))["seconds"]:
        cells = [
            f"{statistics.median(clip['seconds'][reader]):.2f} "
            f"({statistics.median(clip['cpu_seconds'][reader]):.2f})"
            for clip in figures.values()
        ]
        yield f"| {reader} | {' | '.join(cells)} |"
    yield ""
    yield "| ratio | " + " | ".join(CLIPS[clip] for clip in figures) + " |"
    yield "|---|" + "---|" * len(figures)
    for pair in next(iter(figures.values()))["ratios"]:
        if "2 threads" in pair or "(cpu)" in pair:
            continue  # the seconds above say it
        cells = [f"{clip['ratios'][pair]:.2f}" for clip in figures.values()]
        yield f"| {pair} | {' | '.join(cells)} |"
    wrong = ", ".join(
        f"{clip['wrong_pictures_of_decord']} ({CLIPS[name]})" for name, clip in figures.items()
    )
    yield ""
    yield (
        "Here a ratio is the other's seconds over ours. Wanted: uniform over FFmpeg's one thread "
        "at least 0.85 on the first clip, keyframes over the fastest other reader at least 5 on "
        f"the second. Pictures of 64 that decord's `get_batch` got wrong: {wrong}."
    )


def precompute_lines(result: Result) -> Iterator[str]:
    """Table of bench/precompute."""
    figures = result["figures"]
    yield (
        f"{figures['clips']} clips of 10 s 1280x720, 64 frames each, the lab's SigLIP2: whole "
        "processes, imports included, against what one writes in an hour with decord and "
        "open_clip. Ours also keeps the frames."
    )
    yield ""
    yield "| process | s per video | time in which all cores were busy |"
    yield "|---|---|---|"
    for name, seconds in figures["seconds_per_video"].items():
        busy = figures["all_cores_busy_share"][name]
        yield f"| {PROCESSES[name]} | {seconds:.3f} | {busy:.0%} |"
    yield ""
    yield (
        f"Ratio {figures['ratio']:.2f}; at least 1.5 is wanted. Largest difference of a score: "
        f"{figures['score_difference_max']:.4f}."
    )


def scale_lines(result: Result) -> Iterator[str]:
    """Table of bench/scale."""
    figures = result["figures"]
    yield (
        "`strive-cli precompute` on lab clips, a fresh process each time; memory is the main "
        "process's peak."
    )
    yield ""
    yield "| clips | s per video | peak memory, MiB |"
    yield "|---|---|---|"
    for name, clips in figures["clips"].items():
        seconds, peak = figures["seconds_per_video"][name], figures["peak_mib"][name]
        yield f"| {clips:,} | {seconds:.4f} | {peak:.0f} |"
    yield ""
    yield (
        f"Large over small: time per video {figures['seconds_per_video_ratio']:.2f}, memory "
        f"{figures['peak_ratio']:.2f}. The same call over the complete cache takes "
        f"{statistics.median(figures['again_seconds']):.1f} s."
    )


def evaluate_lines(result: Result) -> Iterator[str]:
    """Table of bench/evaluate."""
    figures = result["figures"]
    versions = ", ".join(f"{name} {version}" for name, version in figures["peer_versions"].items())
    yield (
        f"{figures['questions']} questions, three about each clip of 60 s at 1280x720, 32 frames, "
        "answers of one length from one tiny Qwen2.5-VL in float32: whole processes in turns, ours "
        f"and lmms-eval's wrapper ({versions}), which answered "
        f"{figures['same_answers']} of {figures['questions']} alike. What makes the difference: a "
        "clip is decoded once and in worker processes while earlier questions are answered, its "
        "frames pass the tower once for its three questions, and questions are answered together."
    )
    yield ""
    yield "| | questions a second | the same after starting | starting, s | decodes |"
    yield "|---|---|---|---|---|"
    for name, side in figures["sides"].items():
        yield (
            f"| {name} | {side['questions_per_second']:.3f} | "
            f"{side['questions_per_second_of_work']:.3f} | {side['startup_seconds']:.1f} | "
            f"{side['decodes']} |"
        )
    yield ""
    for name, ratios in figures["ratios"].items():
        told = ", ".join(f"{way} {ratio:.2f}" for way, ratio in ratios.items())
        yield f"lmms-eval over {name}: {told}."


def embed_lines(result: Result) -> Iterator[str]:
    """Table of bench/embed."""
    figures = result["figures"]
    where = "on the GPU" if figures["on_gpu"] else "on the CPU"
    yield (
        f"{figures['tower']} {where}, {figures['dtype']}, batches of {figures['batch_size']}: the "
        "loop that `precompute` runs, against the tower alone on a batch that lies ready."
    )
    yield ""
    yield "| what runs | frames/s |"
    yield "|---|---|"
    for name, rate in figures["frames_per_second"].items():
        yield f"| {name} | {rate:.1f} |"
    yield ""
    yield (
        f"The loop reaches {figures['embed_loop_over_tower']:.2f} of the tower's own rate; video "
        f"by video it would be {figures['video_by_video_over_tower']:.2f}."
    )
    if not figures["on_gpu"]:
        yield ""
        yield (
            "On a CPU this says little: preparing frames and embedding them share the cores, and "
            "the tower is a small one."
        )


def jpeg_lines(result: Result) -> Iterator[str]:
    """Name the worst change and where the tables are."""
    changes = {
        scorer: max(found[clips]["q92"]["mean_abs_over_spread"] for clips in ("lab", "camera"))
        for scorer, found in result["figures"]["scorers"].items()
    }
    worst = max(changes, key=lambda scorer: changes[scorer])
    yield (
        "Frames are cached as JPEG 92. The mean change of a score, against raw frames, is at most "
        f"{changes[worst]:.3f} of the scores' spread in a video (`{worst}`). The tables, and what "
        "it does to probabilities and to the policy, are in [Scorers](scorers.md)."
    )
