"""The embed loop against the model's own forward rate: SO400M SigLIP2 with random weights on a GPU.

The loop is what `precompute` runs: one thread prepares uint8 frames of many videos and gathers them
into full batches across videos, another embeds the batches and brings them back as float32. The
forward rate is the same tower on one batch that lies ready on the device.

On a machine without a GPU a small tower takes the place of SO400M. The ratio says little then:
preparing and embedding share the cores.

    python -m bench.embed [--videos 24] [--repeats 3]
"""

import argparse
import functools
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import numpy as np
import torch

from bench.harness import BUILD, time_in_turns, write_result
from strive.cache.layout import CacheLayout
from strive.lab.models import lab_model_path
from strive.pipeline.embed import Batch, Batcher, EmbedRequest, VideoProgress
from strive.scorers import ScorerRequest
from strive.scorers.session import ScorerSession
from strive.scorers.siglip2 import OpenClipScorer

FRAMES_PER_VIDEO = 64
POOL_SIZE = (237, 422)
"""Height and width of 16:9 frames within the default budget of 128*28*28 pixels."""
BATCH_SIZE = 64
GPU_TOWER = "ViT-SO400M-16-SigLIP2-384"
CPU_TOWER = {"image_size": 112, "patch_size": 16, "width": 192, "layers": 6, "head_width": 64}


def make_model(on_gpu: bool) -> tuple[str, Path]:
    """Write an open_clip folder with random weights: name of its vision tower, and the folder.

    The text side is the lab's (its tokenizer needs no hub); only the vision tower is measured.
    """
    import open_clip
    from safetensors.torch import save_file

    lab = lab_model_path("siglip2")
    config = json.loads((lab / "open_clip_config.json").read_text())
    model_config = config["model_cfg"]
    if on_gpu:
        published = open_clip.get_model_config(GPU_TOWER)
        model_config["vision_cfg"] = published["vision_cfg"]
        model_config["embed_dim"] = published["embed_dim"]
    else:
        model_config["vision_cfg"] = dict(CPU_TOWER)
    name = GPU_TOWER if on_gpu else "ViT of 6 layers, width 192, 112 pixels"
    folder = BUILD / ("embed-gpu" if on_gpu else "embed-cpu")
    folder.mkdir(parents=True, exist_ok=True)
    for path in lab.glob("tokenizer*.json"):
        shutil.copyfile(path, folder / path.name)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    arguments = {key: value for key, value in model_config.items() if key != "custom_text"}
    model = open_clip.CustomTextCLIP(**arguments)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return name, folder


@functools.cache
def _whole_pool() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (FRAMES_PER_VIDEO, *POOL_SIZE, 3), dtype=np.uint8)


def videos(count: int) -> Iterator[np.ndarray]:
    """Yield uint8 pools; some are shorter than 64 frames, as clips are."""
    for number in range(count):
        yield _whole_pool()[: FRAMES_PER_VIDEO - 7 * (number % 4)]


def count_frames(count: int) -> int:
    """Frames of `videos(count)`."""
    return sum(FRAMES_PER_VIDEO - 7 * (number % 4) for number in range(count))


def prepare_all(scorer: OpenClipScorer, count: int, queue: Queue[Batch | None]) -> None:
    """Prepare all videos and put their batches, the last one padded by the scorer."""
    session = ScorerSession("siglip2", ScorerRequest(), CacheLayout(BUILD / "none"), "bench")
    batcher = Batcher(scorer.batch_size, pinned=scorer.device.type == "cuda")
    for number, frames in enumerate(videos(count)):
        request = EmbedRequest(session, VideoProgress(str(number), len(frames)), ())
        for batch in batcher.add(request, scorer.prepare_frames(frames)):
            queue.put(batch)
    for batch in batcher.flush():
        queue.put(batch)
    queue.put(None)


def embed_all(scorer: OpenClipScorer, count: int) -> None:
    """Embed all videos in batches that are filled across them, while the next are prepared."""
    queue: Queue[Batch | None] = Queue(maxsize=2)
    feeder = Thread(target=prepare_all, args=(scorer, count, queue))
    feeder.start()
    num_done = 0
    while (batch := queue.get()) is not None:
        num_done += len(scorer.embed_prepared(batch.prepared))
    feeder.join()
    assert num_done == count_frames(count)


def embed_one_by_one(scorer: OpenClipScorer, count: int) -> None:
    """Embed one video after another, each with batches of its own."""
    for frames in videos(count):
        scorer.embed_frames(frames)


@torch.inference_mode()
def forward_only(scorer: OpenClipScorer, pixels: torch.Tensor, num_batches: int) -> None:
    """Run the tower alone over a batch that lies on the device."""
    for _ in range(num_batches):
        scorer.model.encode_image(pixels)
    if pixels.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    name, folder = make_model(on_gpu)
    scorer = OpenClipScorer(ScorerRequest(model=str(folder), batch_size=BATCH_SIZE))
    frames = next(videos(1))
    pixels = scorer.prepare_frames(frames)[:BATCH_SIZE]
    num_frames = count_frames(asked.videos)
    num_batches = max(1, num_frames // BATCH_SIZE)
    forward_only(scorer, pixels, 2)
    embed_all(scorer, 2)
    contenders: dict[str, Callable[[], Any]] = {
        "tower alone": lambda: forward_only(scorer, pixels, num_batches),
        "embed loop": lambda: embed_all(scorer, asked.videos),
        "video by video": lambda: embed_one_by_one(scorer, asked.videos),
    }
    timings = time_in_turns(contenders, repeats=asked.repeats)
    rates = {
        which: (num_batches * BATCH_SIZE if which == "tower alone" else num_frames) / t.wall_seconds
        for which, t in timings.items()
    }
    figures = {
        "tower": name,
        "on_gpu": on_gpu,
        "dtype": scorer.dtype_name,
        "batch_size": BATCH_SIZE,
        "frames": num_frames,
        "frames_per_second": {which: round(rate, 2) for which, rate in rates.items()},
        "embed_loop_over_tower": round(rates["embed loop"] / rates["tower alone"], 3),
        "video_by_video_over_tower": round(rates["video by video"] / rates["tower alone"], 3),
    }
    path = write_result("embed", figures, packages=("torch", "open_clip_torch"))
    for which, rate in rates.items():
        print(f"{which:16s} {rate:10.1f} frames/s  {rate / rates['tower alone']:.3f}")
    if not on_gpu:
        print(f"no GPU here: {name} on the CPU, not {GPU_TOWER}", file=sys.stderr)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
