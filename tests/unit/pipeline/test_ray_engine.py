import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from clip_world import TOY, World, question
from ray.cluster_utils import Cluster

from pipeline.test_run import decodes, scores_of
from strive.cache.failures import read_failures
from strive.cache.layout import open_cache
from strive.cache.verify import verify_cache
from strive.errors import ConfigError, ModelError, StriveError
from strive.lab.models import lab_model_path
from strive.pipeline.prepare import next_decoder, prepare_video
from strive.pipeline.ray_cluster import Cluster as ClusterFacts
from strive.pipeline.ray_cluster import refusal
from strive.pipeline.ray_engine import DecodedItem
from strive.pipeline.run import precompute
from strive.pipeline.work import WorkItem, prepare_rule
from strive.records import shard_of, write_records
from strive.video.worker import Job, Worker, run_job

FAULTY = "pipeline.faulty_scorer"


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """Two nodes of one CPU each inside this machine."""
    cluster = Cluster()
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=150 << 20, include_dashboard=False)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def on_two_nodes(two_nodes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", two_nodes)


@pytest.fixture
def many(world: World) -> World:
    """Ten good clips with two questions each, one that is no video, one that is missing."""
    clips = [f"clip{n}.mp4" for n in range(9)]
    clips += [name for name in (f"d{n}.mp4" for n in range(99)) if shard_of(name, 4) == 2][:1]
    for number, name in enumerate(clips[4:]):
        shutil.copy(world.root / f"clip{number % 3}.mp4", world.root / name)
    (world.root / "text.mp4").write_text("not a video")
    names = [*(clips[n // 2] for n in range(20)), "text.mp4", "gone.mp4"]
    write_records(world.data, [question(n, name) for n, name in enumerate(names)])
    return world


def failures_of(cache: Path) -> dict[tuple[str, str], str]:
    failures = read_failures(open_cache(cache))
    return {(failure.video_id, failure.stage): failure.error for failure in failures}


@pytest.mark.long
@pytest.mark.parametrize("scorer", [TOY, "siglip2"])
def test_shards_ray_and_the_plain_run_give_equal_scores(
    many: World, tmp_path: Path, on_two_nodes: None, scorer: str
) -> None:
    models = {"siglip2": str(lab_model_path("siglip2"))} if scorer == "siglip2" else {}
    options = many.options(tmp_path / "plain", scorers=(scorer,), scorer_models=models)
    plain = precompute(options)
    for index in range(4):
        shard = precompute(
            options.model_copy(update={"cache": tmp_path / "shards", "shard": (index, 4)})
        )
        assert shard.num_decoded > 0
    summary = precompute(options.model_copy(update={"cache": tmp_path / "ray", "engine": "ray"}))
    assert not ray.is_initialized()
    expected = scores_of(tmp_path / "plain")
    assert len(expected) == 20
    assert scores_of(tmp_path / "shards") == expected
    assert scores_of(tmp_path / "ray") == expected
    assert summary.num_nodes_used == 2 and "nodes 2, CPUs 2" in summary.engine
    for name in ("num_videos", "num_ok", "num_decoded", "num_embedded", "num_scored", "num_frames"):
        assert getattr(summary, name) == getattr(plain, name), name
    assert summary.failed_by_error == plain.failed_by_error == {"not_a_video": 1, "missing": 1}
    assert failures_of(tmp_path / "ray") == failures_of(tmp_path / "plain")
    assert summary.num_parts <= 8  # two batches: frames, embeddings, scores, failures of each
    assert summary.decode_seconds > 0 and summary.bytes_written > 0
    assert verify_cache(tmp_path / "ray") == []
    assert not list((tmp_path / "ray").rglob(".tmp-*"))


@pytest.mark.long
def test_only_what_is_missing_is_done(many: World, tmp_path: Path, on_two_nodes: None) -> None:
    weights, cache = "pipeline.toy_scorer:make_weights", tmp_path / "cache"
    first = tmp_path / "first.jsonl"
    write_records(first, [question(n, f"clip{n // 2}.mp4") for n in range(12)])
    precompute(many.options(cache, data=(first,)))
    # Four clips are new. Of the others one scorer has seen nothing and one misses a question.
    more = tmp_path / "more.jsonl"
    write_records(more, [question(100, "clip0.mp4", "Something new?")])
    data = (many.data, more)
    summary = precompute(many.options(cache, data=data, scorers=(TOY, weights), engine="ray"))
    assert (summary.num_decoded, decodes(cache)) == (4, 10)
    assert summary.num_embedded == 4 + 10
    assert summary.num_scored == 2 * 21 - 12
    again = many.options(cache, data=data, scorers=(TOY, weights))
    assert precompute(again).num_scored == 0
    precompute(again.model_copy(update={"cache": tmp_path / "plain"}))
    for scorer in (TOY, weights):
        assert scores_of(cache, scorer) == scores_of(tmp_path / "plain", scorer)
    assert verify_cache(cache) == []
    (many.root / "gone.mp4").write_text("not a video either")
    precompute(again)
    nothing = precompute(again.model_copy(update={"engine": "ray"}))
    assert nothing.nothing_to_do and nothing.engine == "local"  # Ray is not even started


@pytest.mark.long
@pytest.mark.parametrize("name", ["make_raising", "make_batched"])
def test_a_fault_of_a_scorer_costs_its_video_alone(
    many: World, tmp_path: Path, on_two_nodes: None, name: str
) -> None:
    cache = tmp_path / "cache"
    summary = precompute(many.options(cache, scorers=(f"{FAULTY}:{name}",), engine="ray"))
    assert summary.num_failed == 3 and len(scores_of(cache)) == 18
    assert ("clip3.mp4", "score") in failures_of(cache)
    assert "ValueError: a fault" in str(read_failures(open_cache(cache)))
    assert verify_cache(cache) == []


@pytest.mark.long
def test_a_video_that_ends_the_process_costs_itself_alone(
    many: World, tmp_path: Path, on_two_nodes: None
) -> None:
    cache = tmp_path / "cache"
    summary = precompute(many.options(cache, scorers=(f"{FAULTY}:make_killing",), engine="ray"))
    assert summary.failed_by_error["crashed"] == 1 and summary.num_failed == 3
    assert set(scores_of(cache)) == {str(n) for n in range(20) if n // 2 != 3}
    assert verify_cache(cache) == []


@pytest.mark.long
def test_a_fault_that_ends_the_run_is_raised_as_it_is(
    many: World, tmp_path: Path, on_two_nodes: None
) -> None:
    options = many.options(tmp_path / "c", scorers=("pipeline.toy_scorer:make_wrong",))
    with pytest.raises(ModelError, match=r"shape \(3, 4\)"):
        precompute(options.model_copy(update={"engine": "ray"}))
    assert not ray.is_initialized()


@pytest.mark.long
def test_a_cache_that_a_node_does_not_see_is_refused(
    world: World, tmp_path: Path, on_two_nodes: None
) -> None:
    # A path that means something in this process alone, as a local disk does to one machine.
    folder = os.open(tmp_path, os.O_RDONLY)
    here = Path(f"/proc/self/fd/{folder}")
    message = r"node .* does not see the cache folder .*--cache and --video-root must lie on"
    with pytest.raises(ConfigError, match=message):
        precompute(world.options(here / "cache", engine="ray"))
    os.close(folder)
    assert not list(tmp_path.rglob(".tmp-*"))


def test_an_address_without_a_cluster_is_named(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in ("127.0.0.1:9", "nowhere"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConfigError, match=f"RAY_ADDRESS is {address}, where no Ray cluster"):
            precompute(world.options(tmp_path / "cache", engine="ray"))


def test_a_refused_connection_is_one_line() -> None:
    error = ConnectionError("Failed to connect to Ray cluster at h:1\nand more")
    assert "(Failed to connect to Ray cluster at h:1)" in refusal("h:1", error)
    error.__cause__ = RuntimeError("Failed to connect to GCS. InvalidAuthToken: token is missing")
    message = refusal("h:1", error)
    assert "asks for a token" in message and "RAY_ADDRESS=local" in message
    assert "\n" not in message


def test_without_ray_the_command_to_install_it_is_named(world: World, tmp_path: Path) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "ray.py").write_text("raise ImportError('no ray here')")
    done = run_script(world, tmp_path / "cache", "--absent", str(tmp_path / "path"))
    assert done.returncode == 2, done.stderr
    assert "no ray here" in done.stdout and "pip install -e '.[ray]'" in done.stdout


def test_encoded_frames_travel_not_pixels(world: World, tmp_path: Path) -> None:
    rule = prepare_rule(world.options(tmp_path / "cache"))
    job = Job("clip0.mp4", {"video_id": "clip0.mp4", "rule": rule})
    worker = Worker()
    outcome = run_job(worker, prepare_video, job, 60.0, next_decoder)
    worker.close()
    video = outcome.value
    pixels = video.facts.num_frames * video.facts.height * video.facts.width * 3
    item = WorkItem("video clip0.mp4", ("clip0.mp4",), {}, decode=True)
    num_bytes = len(pickle.dumps(DecodedItem(item, outcome, "node")))
    assert num_bytes < 1.2 * video.num_bytes + 4000 < pixels / 2


def test_processors_are_divided() -> None:
    facts = ClusterFacts("Ray", {}, 1, 0)
    assert (facts.num_actors, facts.actor_resources) == (1, {"num_cpus": 0})
    facts = ClusterFacts("Ray", {}, 9, 0)
    assert (facts.num_actors, facts.actor_resources) == (4, {"num_cpus": 1})
    facts = ClusterFacts("Ray", {}, 64, 8)
    assert (facts.num_actors, facts.actor_resources) == (8, {"num_gpus": 1, "num_cpus": 0})


SCRIPT = """
import sys
from pathlib import Path
if sys.argv[4] == "--absent":
    sys.path.insert(0, sys.argv[5])
sys.path.append(sys.argv[1])
from strive.errors import StriveError
from strive.configs.schema import PrecomputeConfig
from strive.pipeline.run import precompute
root, cache = Path(sys.argv[2]), Path(sys.argv[3])
try:
    precompute(PrecomputeConfig(
        data=(root.parent / "records.jsonl",), video_root=root, cache=cache, frames=12,
        scorers=("pipeline.faulty_scorer:make_slow",), max_failure_fraction=1.0, engine="ray",
        workers=1,
    ))
except StriveError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


def start_script(world: World, cache: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-c", SCRIPT, str(tests), str(world.root), str(cache)]
    return subprocess.Popen(
        [*command, *(arguments or ("",))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        process_group=0,
    )


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def run_script(world: World, cache: Path, *arguments: str, **env: str) -> Done:
    process = start_script(world, cache, *arguments, **env)
    out, err = process.communicate(timeout=120)
    return Done(process.returncode, out, err)


def marked_processes(marker: str) -> list[int]:
    """Living processes that have inherited a variable with this value."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with suppress(OSError):
                if marker.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
    return found


@pytest.mark.long
@pytest.mark.parametrize("where", ["local", "two nodes"])
def test_ctrl_c_stops_and_the_same_command_goes_on(
    many: World, tmp_path: Path, two_nodes: str, where: str
) -> None:
    """Local: Ray with one CPU is started by the call, and ended."""
    address = "local" if where == "local" else two_nodes
    cache, marker = tmp_path / "cache", f"test-{os.getpid()}-{where[:5]}"
    process = start_script(many, cache, RAY_ADDRESS=address, MARKER=marker)
    deadline = time.monotonic() + 90
    while not list(cache.glob("scores/*/part-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    stopped = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "the same command goes on" in out and "Traceback" not in err
    assert time.monotonic() - stopped < 10
    deadline = time.monotonic() + 10
    while marked_processes(marker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert marked_processes(marker) == []
    kept = len(scores_of(cache))
    assert 0 < kept < 20
    assert verify_cache(cache) == []
    done = run_script(many, cache, RAY_ADDRESS=address)
    assert done.returncode == 0, done
    precompute(many.options(tmp_path / "plain", scorers=(f"{FAULTY}:make_slow",)))
    assert scores_of(cache) == scores_of(tmp_path / "plain")


def test_errors_survive_the_way_to_the_driver() -> None:
    for kind in StriveError.__subclasses__():
        error = pickle.loads(pickle.dumps(kind("a kind", "and a text")))
        assert type(error) is kind and error.args == ("a kind", "and a text")
