"""The lab's world: short clips as real video files, and questions in Video-R1's schema.

A folder holds `clips/`, `train.jsonl`, `held_out.jsonl`, `test.jsonl` and, written last,
`world.json` (the parameters and a hash of what was built). Everything about clip `i` is drawn from
`(seed, i)`, so it does not depend on how many clips there are. No torch here.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from strive.errors import ConfigError, DiskError
from strive.files import file_digest, write_atomically
from strive.lab.questions import draw_questions, to_record
from strive.lab.render import render_slots
from strive.lab.scene import Difficulty, Scene, draw_scene
from strive.progress import show_progress
from strive.records import Record, write_records
from strive.seeding import derive_rng

WORLD_VERSION = 1
SPLITS = ("train", "held_out", "test")
_SPLIT_CYCLE = ("train",) * 3 + ("held_out", "test")
_ID_STRIDE = 100

_CODEC_ARGUMENTS: dict[str, dict[str, str | int]] = {
    "h264": {"vcodec": "libx264", "preset": "veryfast", "crf": 18, "g": 48},
    "hevc": {
        "vcodec": "libx265",
        "preset": "ultrafast",
        "crf": 18,
        "tag:v": "hvc1",
        "x265-params": "log-level=none:pools=none:frame-threads=1",
    },
    "vp9": {"vcodec": "libvpx-vp9", "crf": 24, "b:v": 0, "deadline": "realtime", "cpu-used": 8},
    "av1": {"vcodec": "libsvtav1", "preset": 12, "crf": 24, "svtav1-params": "lp=1"},
}
_SUFFIX = {"h264": ".mp4", "hevc": ".mp4", "vp9": ".webm", "av1": ".mp4"}


@dataclass(frozen=True, slots=True)
class WorldSummary:
    """Content of a built folder.

    Args:
        root: the folder; also the video root of its records.
        num_clips: clips in all.
        seed: of the whole world.
        difficulty: of the whole world.
        num_questions: questions of each split.
        content_hash: SHA-256 over records and clip files.
        was_built: False if the folder was complete already.
    """

    root: Path
    num_clips: int
    seed: int
    difficulty: Difficulty
    num_questions: dict[str, int] = field(default_factory=dict)
    content_hash: str = ""
    was_built: bool = True

    def records_file(self, split: str) -> Path:
        """Return the records file of `train`, `held_out` or `test`."""
        return self.root / f"{split}.jsonl"


def split_of_clip(clip: int) -> str:
    """Return the split of a clip: of every five clips three train, one is held out, one tests."""
    return _SPLIT_CYCLE[clip % len(_SPLIT_CYCLE)]


def clip_records(scene: Scene, seed: int) -> list[Record]:
    """Return the records of one clip; ids are unique in the whole world."""
    rng = derive_rng("lab-questions", seed, scene.clip)
    video_id = f"clips/{clip_file_name(scene)}"
    return [
        to_record(scene, question, problem_id=scene.clip * _ID_STRIDE + number, video_id=video_id)
        for number, question in enumerate(draw_questions(scene, rng))
    ]


def build_world(
    root: Path | str,
    *,
    num_clips: int,
    seed: int,
    difficulty: Difficulty | None = None,
    workers: int = 2,
) -> WorldSummary:
    """Build the world into `root`, or return at once if it is there already; shows progress.

    A build that was interrupted goes on where it stopped.

    Args:
        root: folder to fill.
        num_clips: how many clips; each has four questions.
        seed: decides everything that is drawn.
        difficulty: see `Difficulty`.
        workers: clips encoded at a time.

    Raises:
        ConfigError: a parameter is out of range, or the folder holds a world of other parameters.
        DiskError: a file could not be written.
    """
    root = Path(root)
    difficulty = difficulty or Difficulty()
    if num_clips < 1 or workers < 1:
        raise ConfigError(
            f"lab world: num_clips={num_clips} and workers={workers} must be at least 1"
        )
    parameters = {
        "world_version": WORLD_VERSION,
        "num_clips": num_clips,
        "seed": seed,
        "difficulty": asdict(difficulty),
    }
    done = _read_json(root / "world.json")
    if done is not None:
        _require_equal(root, done["parameters"], parameters)
        return _summary(root, done, was_built=False)
    started = _read_json(root / "building.json")
    if started is not None:
        _require_equal(root, started, parameters)
    (root / "clips").mkdir(parents=True, exist_ok=True)
    write_atomically(root / "building.json", json.dumps(parameters, indent=1), knob="--workspace")

    scenes = [draw_scene(seed, clip, difficulty) for clip in range(num_clips)]
    digests = _encode_all(scenes, root / "clips", workers)
    records: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for scene in scenes:
        records[split_of_clip(scene.clip)].extend(clip_records(scene, seed))
    content = hashlib.sha256("".join(digests).encode())
    for split in SPLITS:
        write_records(root / f"{split}.jsonl", records[split])
        content.update((root / f"{split}.jsonl").read_bytes())
    world = {
        "parameters": parameters,
        "num_questions": {split: len(records[split]) for split in SPLITS},
        "content_hash": content.hexdigest(),
    }
    write_atomically(root / "world.json", json.dumps(world, indent=1), knob="--workspace")
    (root / "building.json").unlink()
    return _summary(root, world, was_built=True)


def read_world(root: Path | str) -> WorldSummary | None:
    """Return the summary of a complete world folder, or None if there is none."""
    done = _read_json(Path(root) / "world.json")
    return None if done is None else _summary(Path(root), done, was_built=False)


def clip_file_name(scene: Scene) -> str:
    """Return the clip's file name, such as `000012.mp4`; VP9 clips are WebM files."""
    return f"{scene.clip:06d}{_SUFFIX[scene.codec]}"


def encode_clip(scene: Scene, path: Path) -> None:
    """Render the scene frame by frame and encode it to `path`, atomically.

    Raises:
        DiskError: FFmpeg could not write the file.
    """
    # Here, so that training on a world that is there needs no encoder.
    import ffmpeg
    import imageio_ffmpeg

    slots_N = scene.slot_of_frames()
    shown, look_N = np.unique(slots_N, return_inverse=True)
    looks_U = render_slots(scene, shown, height=scene.height, width=scene.width)
    pixels = looks_U[look_N].tobytes()
    # As FFmpeg writes a rate exactly: `25` or `30000/1001`.
    rate = f"{scene.fps:g}" if scene.fps.is_integer() else f"{round(scene.fps * 1001)}/1001"
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    stream = ffmpeg.input(
        "pipe:",
        format="rawvideo",
        pix_fmt="rgb24",
        s=f"{scene.width}x{scene.height}",
        framerate=rate,
    )
    stream = stream.output(
        str(temporary),
        pix_fmt="yuv420p",
        threads=1,
        map_metadata=-1,
        fflags="+bitexact",
        **{"flags:v": "+bitexact", **_CODEC_ARGUMENTS[scene.codec]},
    )
    stream = stream.global_args("-hide_banner", "-loglevel", "error")
    try:
        stream.run(
            cmd=imageio_ffmpeg.get_ffmpeg_exe(),
            input=pixels,
            capture_stdout=True,
            capture_stderr=True,
            overwrite_output=True,
        )
    except ffmpeg.Error as error:
        detail = (error.stderr or b"").decode(errors="replace").strip().splitlines()[-1:]
        temporary.unlink(missing_ok=True)
        raise DiskError(f"cannot encode {path}: {' '.join(detail) or error}") from None
    os.replace(temporary, path)


def _encode_all(scenes: list[Scene], folder: Path, workers: int) -> list[str]:
    """Encode what is missing; returns the SHA-256 of every clip file, in clip order."""

    def encode_one(scene: Scene) -> str:
        path = folder / clip_file_name(scene)
        if not path.is_file():
            encode_clip(scene, path)
        return file_digest(path).hex()

    digests: list[str] = []
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        with show_progress("lab clips", len(scenes), "clips") as progress:
            for digest in pool.map(encode_one, scenes):
                digests.append(digest)
                progress.advance()
    finally:
        pool.shutdown(cancel_futures=True)
    return digests


def _require_equal(root: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    if found == wanted:
        return
    differing = [
        f"{name} is {found.get(name)!r} there and {wanted.get(name)!r} here"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]
    raise ConfigError(
        f"{root} holds a lab world of other parameters ({'; '.join(differing)}); "
        "give another folder or remove this one"
    )


def _summary(root: Path, world: dict[str, Any], *, was_built: bool) -> WorldSummary:
    parameters = world["parameters"]
    return WorldSummary(
        root=root,
        num_clips=parameters["num_clips"],
        seed=parameters["seed"],
        difficulty=Difficulty(**parameters["difficulty"]),
        num_questions=dict(world["num_questions"]),
        content_hash=world["content_hash"],
        was_built=was_built,
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
