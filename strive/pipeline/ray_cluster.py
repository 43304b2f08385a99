"""Ray itself: finding or starting a cluster, its resources, whether its nodes share the cache."""

import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strive import __version__
from strive.errors import ConfigError, first_line
from strive.files import TEMPORARY_PREFIX, disk_error

PROBE_SECONDS = 120.0
CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """The processors of a cluster, and how they are divided.

    Actors embed, score and commit: one on each GPU, else on half of the CPUs (at least one). Decode
    tasks take one CPU each of what is left.
    """

    description: str
    nodes: dict[str, str]  # {node id: address}
    num_cpus: int
    num_gpus: int

    @property
    def num_actors(self) -> int:
        """How many actors embed."""
        return self.num_gpus or max(1, self.num_cpus // 2)

    @property
    def actor_resources(self) -> dict[str, float]:
        """Resources that Ray reserves for one actor; a lone CPU is shared with the decode task."""
        if self.num_gpus:
            return {"num_gpus": 1, "num_cpus": 0}
        return {"num_cpus": 1 if self.num_cpus > 1 else 0}

    def __str__(self) -> str:
        return (
            f"{self.description}: nodes {len(self.nodes)}, CPUs {self.num_cpus}, "
            f"GPUs {self.num_gpus}, embedding actors {self.num_actors}"
        )


def import_ray() -> Any:
    """Return the module `ray`, with `ray.data`.

    Raises:
        ConfigError: it is not installed.
    """
    # Nothing is reported to anyone, and Ray's own log lines stay in its log files.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Only `connected` connects: what is left of a run must not, when it is collected after its end.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(
            f"--engine ray needs Ray Data ({error}); install it with `pip install -e '.[ray]'` in "
            "the checkout, or use --engine local with --shard i/n"
        ) from None
    return ray


@contextmanager
def connected(ray: Any, num_cpus: int | None) -> Iterator[Cluster]:
    """Connect to the cluster of RAY_ADDRESS or of this machine, else start one here and end it.

    A connection that the process already has is used and kept. `num_cpus` limits a cluster that is
    started here.

    Raises:
        ConfigError: RAY_ADDRESS names a cluster that does not answer, or the cluster refuses.
    """
    if ray.is_initialized():
        address = ray.get_runtime_context().gcs_address
        yield _look_at(ray, f"Ray cluster {address}")
        return
    address = _find_cluster()
    description = f"Ray cluster {address}"
    settings: dict[str, Any] = {"address": address}
    if address is None:
        description = "Ray on this machine"
        settings = {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
    try:
        try:
            with _own_stderr_kept():
                ray.init(**settings, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ray.exceptions.RayError) as error:
            if address is None:
                raise
            raise ConfigError(refusal(address, error)) from None
        yield _look_at(ray, description)
    finally:
        ray.shutdown()


def refusal(address: str, error: BaseException) -> str:
    """Say why a cluster that answers does not let this program in, and what can be done."""
    reason, cause = first_line(error), error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if "InvalidAuthToken" in str(cause):
        reason = "it asks for a token; Ray's RAY_AUTH_MODE=token is how its owner gives one"
    return (
        f"no connection to the Ray cluster at {address} ({reason}); name another with RAY_ADDRESS, "
        "or start one for this call with RAY_ADDRESS=local"
    )


@contextmanager
def _own_stderr_kept() -> Iterator[None]:
    """Keep what Ray's C++ part writes to descriptor 2 as it starts off the user's terminal."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _find_cluster() -> str | None:
    """Return the address of a cluster that answers: RAY_ADDRESS, else the one on this machine.

    Ray itself would try for minutes to reach a cluster that has ended.
    """
    asked = os.environ.get("RAY_ADDRESS", "")
    if asked == "local":
        return None
    if asked and asked != "auto":
        if not _answers(asked):
            raise ConfigError(
                f"RAY_ADDRESS is {asked}, where no Ray cluster answers; give HOST:PORT of one that "
                "`ray start --head` has started, or unset it"
            )
        return asked
    left_by_ray = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    try:
        found = left_by_ray.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return found if _answers(found) else None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return False
    try:
        with socket.create_connection((host, int(port)), CONNECT_SECONDS):
            return True
    except OSError:
        return False


def _look_at(ray: Any, description: str) -> Cluster:
    resources = ray.cluster_resources()
    return Cluster(
        description,
        {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]},
        int(resources.get("CPU", 0)),
        int(resources.get("GPU", 0)),
    )


def check_nodes(ray: Any, cluster: Cluster, *, cache: Path, video_root: Path) -> None:
    """Check on every node that it sees the cache folder and the videos, and has this version.

    Raises:
        ConfigError: a node does not; the message names it and what it lacks.
        DiskError: the cache folder cannot be written.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = secrets.token_hex(8)
    probe = cache / f"{TEMPORARY_PREFIX}probe-{token}"
    try:
        probe.write_text(token, encoding="utf-8")
    except OSError as error:
        raise disk_error(probe, error) from error
    look = ray.remote(_look_from_node)
    try:
        answers = [
            look.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
            ).remote(str(probe), token, str(video_root), __version__)
            for node_id in cluster.nodes
        ]
        for address, answer in zip(cluster.nodes.values(), answers, strict=True):
            try:
                problem = ray.get(answer, timeout=PROBE_SECONDS)
            except (ray.exceptions.RayError, TimeoutError) as error:
                problem = f"does not run this program ({first_line(error)})"
            if problem:
                raise ConfigError(
                    f"node {address} of the {cluster.description} {problem}; --cache and "
                    "--video-root must lie on storage that all nodes share, under the same path"
                )
    finally:
        probe.unlink(missing_ok=True)


def _look_from_node(probe: str, token: str, video_root: str, version: str) -> str:
    """Say what this node lacks, or nothing."""
    if not Path(probe).is_file() or Path(probe).read_text(encoding="utf-8") != token:
        return f"does not see the cache folder {Path(probe).parent} of the machine that asks"
    if not os.access(Path(probe).parent, os.W_OK):
        return f"may not write to the cache folder {Path(probe).parent}"
    if not Path(video_root).is_dir():
        return f"does not see the video root {video_root}"
    return "" if version == __version__ else f"has strive {__version__}, not {version}"
