"""Good files with a few bytes changed, from a seed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from video.coded_clips import write_clip

HEAD_BYTES = 600
FRAGMENTS = "frag_keyframe+empty_moov+default_base_moof"


@dataclass(frozen=True)
class Mutation:
    """A changed copy of a good file of `num_frames` frames; `how` says what was done to it."""

    video_id: str
    num_frames: int
    how: str


def build_mutations(root: Path, workshop: Path, count: int, seed: int) -> list[Mutation]:
    """Write `count` mutations of eight good files under `root`/mutations."""
    folder = root / "mutations"
    folder.mkdir()
    originals = _originals(workshop)
    rng = np.random.default_rng(seed)
    mutations = []
    for number in range(count):
        path, num_frames = originals[number % len(originals)]
        change = CHANGES[int(rng.integers(len(CHANGES)))]
        data = path.read_bytes()
        changed = change(bytearray(data), rng)
        if changed == data:  # a run of zeros that was zero before
            changed = _flipped(bytearray(data), rng)
        name = f"mutations/{number:03d}{path.suffix}"
        (root / name).write_bytes(changed)
        mutations.append(Mutation(name, num_frames, f"{path.name} {change.__name__}"))
    return mutations


def _originals(folder: Path) -> list[tuple[Path, int]]:
    b_frames = {"preset": "medium", "bf": 3, "g": 30}
    return [
        (write_clip(folder / "base.mp4", 90, **b_frames), 90),
        (write_clip(folder / "base_front.mp4", 60, movflags="+faststart", g=20), 60),
        (write_clip(folder / "base_pieces.mp4", 60, movflags=FRAGMENTS, g=12), 60),
        (write_clip(folder / "base.mkv", 80, **b_frames), 80),
        (write_clip(folder / "base.avi", 60, codec="mpeg4", qscale=2), 60),
        (write_clip(folder / "base.ts", 80, **b_frames), 80),
        (write_clip(folder / "base.webm", 60, codec="libvpx-vp9", deadline="realtime"), 60),
        (write_clip(folder / "base.mov", 40, codec="mjpeg", qscale=3, pix_fmt="yuvj420p"), 40),
    ]


def _flipped(data: bytearray, rng: np.random.Generator) -> bytes:
    for position in rng.integers(len(data), size=int(rng.integers(1, 9))):
        data[position] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _head_flipped(data: bytearray, rng: np.random.Generator) -> bytes:
    for position in rng.integers(min(HEAD_BYTES, len(data)), size=int(rng.integers(1, 4))):
        data[position] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _tail_flipped(data: bytearray, rng: np.random.Generator) -> bytes:
    for position in rng.integers(min(HEAD_BYTES, len(data)), size=int(rng.integers(1, 4))):
        data[-1 - position] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _overwritten(data: bytearray, rng: np.random.Generator) -> bytes:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 200))
    end = min(start + length, len(data))
    data[start:end] = rng.integers(0, 256, end - start, np.uint8).tobytes()
    return bytes(data)


def _zeroed(data: bytearray, rng: np.random.Generator) -> bytes:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 200))
    end = min(start + length, len(data))
    data[start:end] = bytes(end - start)
    return bytes(data)


def _cut(data: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(data[: int(rng.integers(1, len(data)))])


def _piece_lost(data: bytearray, rng: np.random.Generator) -> bytes:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 500))
    return bytes(data[:start] + data[start + length :])


def _spliced(data: bytearray, rng: np.random.Generator) -> bytes:
    source, length = int(rng.integers(len(data))), int(rng.integers(1, 500))
    at = int(rng.integers(len(data)))
    return bytes(data[:at] + data[source : source + length] + data[at:])


CHANGES: tuple[Callable[[bytearray, np.random.Generator], bytes], ...] = (
    *(_flipped, _head_flipped, _tail_flipped, _overwritten),
    *(_zeroed, _cut, _piece_lost, _spliced),
)
