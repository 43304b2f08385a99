"""An evaluation's folder: `settings.json`, `samples.jsonl` and, written last, `results.json`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
    append_samples,
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


@dataclass(slots=True)
class OutFolder:
    """An evaluation's folder, opened for one call: nothing in it changes before the first answer.

    With `is_afresh`, what an earlier call left is in the way of this one's answers.
    """

    root: Path
    settings: dict[str, Any]
    is_afresh: bool

    @property
    def samples_file(self) -> Path:
        """Where answers are appended."""
        return self.root / "samples.jsonl"

    def current_samples(self, hashes: Mapping[QuestionKey, str]) -> dict[QuestionKey, Sample]:
        """Return stored answers, save those whose question or video has changed since."""
        if self.is_afresh or not self.samples_file.is_file():
            return {}
        found = {(s.benchmark, s.question_id): s for s in read_samples(self.samples_file)}
        named = {benchmark for benchmark, _ in hashes}
        return {
            key: sample
            for key, sample in found.items()
            if key[0] not in named or hashes.get(key) == sample.prompt_hash
        }

    def append(self, samples: Sequence[Sample]) -> None:
        """Add answers, the first ones with the settings that they were made with.

        Raises:
            DiskError: the disk refused; answers of earlier batches are intact.
        """
        settings_file = self.root / "settings.json"
        if self.is_afresh:
            for name in ("settings.json", "samples.jsonl", "results.json"):
                (self.root / name).unlink(missing_ok=True)
            self.is_afresh = False
        if not settings_file.is_file():
            text = json.dumps(self.settings, indent=2, ensure_ascii=False) + "\n"
            write_atomically(settings_file, text, knob="--out")
        append_samples(self.samples_file, samples)

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


@contextmanager
def open_out(out: Path, settings: dict[str, Any], *, overwrite: bool) -> Iterator[OutFolder]:
    """Open a folder afresh, or to go on with answers of the same settings.

    A folder that was made for a call that then brought no answer goes with it.

    Raises:
        ConfigError: it holds answers made with other settings.
        DiskError: it cannot be made.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot use {out}: {error.strerror}; give another --out") from None
    try:
        settings_file = out / "settings.json"
        if settings_file.is_file() and not overwrite:
            _require_same(out, read_json_object(settings_file), settings)
        folder = OutFolder(out, settings, is_afresh=overwrite)
        drop_torn_line(folder.samples_file)
        yield folder
    finally:
        for folder_made in made:
            with suppress(OSError):  # it holds something
                folder_made.rmdir()


def _require_same(out: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    # The same questions under another path, or the same weights, are no other settings: prompts are
    # told apart by their text and video, models by their digest.
    elsewhere = {"data_root", "data"} | ({"model"} if settings.get("model_digest") else set())
    differing = sorted(n for n in settings if n not in elsewhere and found.get(n) != settings[n])
    if differing:
        shown = "; ".join(
            f"{name}: there {found.get(name)!r}, here {settings[name]!r}" for name in differing
        )
        raise ConfigError(
            f"{out} holds answers made with other settings ({shown}); give another folder with "
            "--out, or --overwrite"
        )
