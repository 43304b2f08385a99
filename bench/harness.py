"""What every measurement shares: timing in turns, and a result file that says where it is from."""

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
BUILD = Path(__file__).parents[1] / "build" / "bench"
"""What a measurement makes for itself and keeps: clips, models without weights."""


@dataclass(slots=True)
class Timing:
    """Seconds of each repetition of one contender, wall clock and CPU (children included)."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def wall_seconds(self) -> float:
        """Median wall-clock seconds."""
        return statistics.median(self.wall)

    @property
    def cpu_seconds(self) -> float:
        """Median CPU seconds; processes that were waited for are included."""
        return statistics.median(self.cpu)


def time_in_turns(
    contenders: Mapping[str, Callable[[], Any]], *, repeats: int = 3
) -> dict[str, Timing]:
    """Run all contenders one after another, `repeats` times over.

    In turns, not one contender's repetitions in a row: a machine that slows down for a minute then
    slows all of them.
    """
    timings = {name: Timing() for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            wall, cpu = time.perf_counter(), _cpu_seconds()
            run()
            timings[name].wall.append(time.perf_counter() - wall)
            timings[name].cpu.append(_cpu_seconds() - cpu)
    return timings


def _cpu_seconds() -> float:
    """CPU seconds of this process and of the children that it has waited for."""
    mine = resource.getrusage(resource.RUSAGE_SELF)
    theirs = resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime


class OtherLoad:
    """The share of the machine's CPU time that went to processes other than this and its children.

    Children must have been waited for by the end. On a quiet machine it is under a percent or two;
    where it is not, the timings are of a busy machine.
    """

    def __enter__(self) -> "OtherLoad":
        self._started = time.perf_counter(), _machine_seconds(), _cpu_seconds()
        self.share = 0.0
        return self

    def __exit__(self, *_: object) -> None:
        wall, busy, mine = self._started
        available = (time.perf_counter() - wall) * (os.cpu_count() or 1)
        others = _machine_seconds() - busy - (_cpu_seconds() - mine)
        self.share = max(0.0, others) / available


def _machine_seconds() -> float:
    """Seconds that all processors together have been busy since the machine started."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def write_result(
    name: str,
    figures: Mapping[str, Any],
    *,
    packages: Sequence[str] = (),
    path: Path | None = None,
) -> Path:
    """Write `bench/results/NAME.json`: the figures, the machine, versions and the command."""
    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "name": name,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": f"python -m bench.{name}" + "".join(f" {word}" for word in sys.argv[1:]),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **_versions(packages)},
        "figures": dict(figures),
    }
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def machine() -> dict[str, Any]:
    """Describe the processor and memory of this machine, and its GPU if torch is loaded."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for package in ("strive-rl", "numpy", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every single figure of nested ones, with its path as its name."""
    for name, value in figures.items():
        path = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from flat(value, f"{path}: ")
        elif isinstance(value, list):
            yield path, ", ".join(_text(item) for item in value) or "none"
        else:
            yield path, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
