"""`evaluate --check`: what a call would ask, seen from the files alone; no model, no decoding."""

from dataclasses import dataclass
from pathlib import Path

from strive.configs.schema import EvaluateConfig
from strive.errors import StriveError
from strive.evaluate.asking import Asking, choose_part, open_benchmark, specs_of
from strive.evaluate.benchmarks.files import describe_videos
from strive.evaluate.items import Failure
from strive.files import has_video


@dataclass(frozen=True, slots=True)
class BenchmarkCheck:
    """What one benchmark's files hold."""

    benchmark: str
    error: str = ""
    """Why its questions cannot be read; all else is empty then."""
    files: tuple[Path, ...] = ()
    num_questions: int = 0
    num_asked: int = 0
    """After the limit."""
    num_videos: int = 0
    missing_videos: tuple[str, ...] = ()
    archives: tuple[str, ...] = ()
    """Zips whose videos are not all on disk, a line each."""
    failures: tuple[Failure, ...] = ()
    """Rows that no policy can be asked."""
    frames_mode: str = ""
    example_prompt: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether every question can be asked."""
        return not (self.error or self.missing_videos or self.failures)


def check_benchmarks(config: EvaluateConfig) -> list[BenchmarkCheck]:
    """Look for the files and videos of every benchmark that a call names; nothing is written."""
    config = config.model_copy(update={"frames_cache": None})
    checks = []
    for spec in specs_of(config):
        try:
            asking = open_benchmark(spec, config)
        except StriveError as error:
            checks.append(BenchmarkCheck(spec.name, error=str(error)))
            continue
        checks.append(_check(asking))
        asking.source.close()
    return checks


def _check(asking: Asking) -> BenchmarkCheck:
    root = asking.config.data_root
    videos = sorted({item.video_id for item in asking.items})
    archives: tuple[str, ...] = ()
    if asking.benchmark.layout is not None:
        report = describe_videos(root, asking.benchmark.layout, videos)
        missing, archives = report.missing, report.archives
    elif asking.config.cache is not None:
        absent = {i.video_id for i in asking.items if asking.source.identity(i) == "absent"}
        missing = tuple(sorted(absent))
    else:
        missing = tuple(v for v in videos if not has_video(root, v))
    return BenchmarkCheck(
        benchmark=asking.name,
        files=asking.files,
        num_questions=asking.num_questions,
        num_asked=choose_part(asking, whole=True).num_questions,
        num_videos=len(videos),
        missing_videos=missing,
        archives=archives,
        failures=asking.failures,
        frames_mode=asking.source.frames_mode,
        example_prompt=asking.prompt(asking.items[0]) if asking.items else "",
    )
