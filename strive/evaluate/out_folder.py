"""An evaluation's folder: `settings.json`, `samples.jsonl` and, written last, `results.json`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strive.errors import ConfigError, DiskError, MissingInputError, RecordsError
from strive.evaluate.results import (
    EvaluationResults,
    Failure,
    results_to_json,
    summarise_samples,
)
from strive.evaluate.samples import (
    Sample,
    read_samples,
    rewrite_samples,
)
from strive.evaluate.versions import installed_versions
from strive.files import drop_torn_line, write_atomically

QuestionKey = tuple[str, str]


def read_json_object(path: Path) -> dict[str, Any]:
    """Read one of the folder's JSON files.

    Raises:
        RecordsError: it is damaged.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordsError(f"{path} is damaged: not valid JSON ({error})") from None
    return found


def read_results(out: Path) -> dict[str, Any]:
    """Read `results.json` of an evaluation's folder."""
    path = out / "results.json"
    if not path.is_file():
        raise MissingInputError(f"no results at {path}; make them with strive-cli evaluate --out")
    return read_json_object(path)


def write_results(out: Path, results: EvaluationResults) -> None:
    """Write `results.json` as a whole."""
    text = json.dumps(results_to_json(results), indent=2, ensure_ascii=False) + "\n"
    write_atomically(out / "results.json", text, knob="--out")


@dataclass(frozen=True, slots=True)
class OutFolder:
    """An evaluation's folder, opened for one call."""

    root: Path
    settings: dict[str, Any]

    @property
    def samples_file(self) -> Path:
        """Where answers are appended."""
        return self.root / "samples.jsonl"

    def current_samples(self, hashes: Mapping[QuestionKey, str]) -> dict[QuestionKey, Sample]:
        """Return stored answers, save those whose question or video has changed since."""
        if not self.samples_file.is_file():
            return {}
        found = {(s.benchmark, s.question_id): s for s in read_samples(self.samples_file)}
        named = {benchmark for benchmark, _ in hashes}
        return {
            key: sample
            for key, sample in found.items()
            if key[0] not in named or hashes.get(key) == sample.prompt_hash
        }

    def finish(
        self,
        samples: Sequence[Sample],
        failures: Sequence[Failure],
        *,
        benchmarks: Sequence[str],
        grading: str,
        num_resumed: int,
        seconds: float | None,
    ) -> EvaluationResults:
        """Write graded samples and results; `seconds` is None where nothing was generated."""
        versions = installed_versions()
        if seconds is None and (self.root / "results.json").is_file():
            # What generated the answers, and how long it took, is still true.
            before = read_results(self.root)
            seconds, versions = before["seconds"], before["versions"]
        others = sorted({s.benchmark for s in samples} - set(benchmarks))
        results = summarise_samples(
            [*benchmarks, *others],
            samples,
            failures,
            settings=self.settings,
            versions=versions,
            grading=grading,
            num_resumed=num_resumed,
            seconds=seconds or 0.0,
        )
        rewrite_samples(self.samples_file, samples)
        write_results(self.root, results)
        return results


def open_out(out: Path, settings: dict[str, Any], *, overwrite: bool) -> OutFolder:
    """Open a folder afresh, or to go on with answers of the same settings.

    Raises:
        ConfigError: it holds answers made with other settings.
        DiskError: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for name in ("settings.json", "samples.jsonl", "results.json"):
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"cannot use {out}: {error.strerror}; give another --out") from None
    settings_file = out / "settings.json"
    if settings_file.is_file():
        _require_same(out, read_json_object(settings_file), settings)
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    write_atomically(settings_file, text, knob="--out")
    folder = OutFolder(out, settings)
    drop_torn_line(folder.samples_file)
    return folder


def _require_same(out: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    # The same questions under another path, or the same weights, are no other settings: prompts are
    # told apart by their text and video, models by their digest.
    elsewhere = {"data_root"} | ({"model"} if settings.get("model_digest") else set())
    differing = sorted(n for n in settings if n not in elsewhere and found.get(n) != settings[n])
    if differing:
        shown = "; ".join(
            f"{name}: there {found.get(name)!r}, here {settings[name]!r}" for name in differing
        )
        raise ConfigError(
            f"{out} holds answers made with other settings ({shown}); give another folder with "
            "--out, or --overwrite"
        )
