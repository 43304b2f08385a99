"""Commands as typed, in real processes: what is printed, where, and with which exit code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from video import coded_clips as clips

ENCODINGS = ("latin-1", "ascii:strict", "utf-8:strict")
CLI = [sys.executable, "-m", "strive.cli"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with clips, one that is none, and records of both; a cache of them."""
    root = tmp_path_factory.mktemp("home")
    (root / "videos").mkdir()
    clips.write_clip(root / "videos" / "good.mp4", 12)
    (root / "videos" / "b\x1b[31mad.mp4").write_text("no video")
    write(root / "r.jsonl", [row("1", "W\x1b[2Jhat?\x9b1m"), row("x\x1b]0;y\x07", "", "good.mp4")])
    write(root / "all.jsonl", [row("1", "W\x1b[2Jhat?\x9b1m"), row("2", "?", "b\x1b[31mad.mp4")])
    result = run(root, *precompute("all.jsonl", "--max-failure-fraction=1"))
    assert result.returncode == 0, result.stderr
    return root


def row(name: str, text: str, path: str = "good.mp4") -> dict[str, str]:
    kind = {"problem_type": "free-form", "solution": "x", "data_source": "s\x1bt"}
    return {"problem_id": name, "problem": text, "path": path, **kind}


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def precompute(data: str, *more: str, cache: str = "cache") -> list[str]:
    common = ["--video-root=videos", "--workers=1", "--scorer=random", "--frames=4"]
    return ["precompute", f"--data={data}", f"--cache={cache}", *common, *more]


def run(
    root: Path, *arguments: str, before: str = "", after: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell, with redirections after it."""
    return subprocess.run(
        ["bash", "-c", f'{before} "$@" {after}', "--", *CLI, *arguments],
        capture_output=True,
        cwd=root,
        env={**os.environ, "HOME": str(root), "COLUMNS": "200", **environment},
        text=True,
        errors="surrogateescape",
        timeout=120,
    )


@pytest.mark.long
def test_no_control_character_of_data_is_printed(place: Path) -> None:
    commands = (
        ["inspect-scores", "--cache=cache"],
        ["inspect-scores", "--cache=cache", "--question=1"],
        ["inspect-scores", "--cache=cache", "--question=x\x1b[2J"],
        ["cache", "failures", "--cache=cache"],
        precompute("gone\x1b[2J.jsonl"),
    )
    shown = ""
    for arguments in commands:
        result = run(place, *arguments)
        assert "Traceback" not in result.stderr, result.stderr
        text = result.stdout + result.stderr
        assert not any(sign in text for sign in ("\x1b", "\x07", "\x7f", "\x9b")), arguments
        shown += text
    assert "W\u241b[2Jhat?" in shown and "b\u241b[31mad.mp4" in shown


def test_failures_are_listed_with_what_to_do(place: Path) -> None:
    listed = json.loads(run(place, "cache", "failures", "--cache=cache", "--json").stdout)
    (failure,) = listed["failures"]
    assert failure["video"] == "b\x1b[31mad.mp4" and failure["question"] is None
    assert (failure["stage"], failure["kind"]) == ("decode", "not_a_video")
    assert failure["reason"] and "--repair" in failure["what_to_do"]
    table = run(place, "cache", "failures", "--cache=cache").stdout
    for word in ("not_a_video", "decode", "What to do", "--repair --retry-failed"):
        assert word in table
    run(place, *precompute("r.jsonl", cache="other"))
    texts = json.loads(run(place, "cache", "failures", "--cache=other", "--json").stdout)
    assert [(f["question"], f["kind"]) for f in texts["failures"]] == [("x\x1b]0;y\x07", "no_text")]
    assert "no failures" in run(place, *precompute("r.jsonl", cache="third"), after=(
        "> /dev/null && rm third/failures.parquet/* && "
        f"{sys.executable} -m strive.cli cache failures --cache third"
    )).stdout  # fmt: skip


def test_nothing_to_do_is_not_said_of_what_failed(place: Path) -> None:
    result = run(place, *precompute("all.jsonl"))
    assert result.returncode == 1 and "nothing to do" not in result.stdout
    assert "--retry-failed" in result.stdout and "strive-cli cache failures" in result.stdout
    assert result.stderr.splitlines()[-1].startswith("error: 1 of 2 videos failed (1 not_a_video)")
    assert "--repair" in result.stderr.splitlines()[-1]
    write(place / "one.jsonl", [row("1", "W\x1b[2Jhat?\x9b1m")])
    assert "nothing to do" in run(place, *precompute("one.jsonl")).stdout


@pytest.mark.parametrize(
    "streams",
    [
        "2>&-",
        *(
            pytest.param(text, marks=pytest.mark.long)
            for text in ("<&- 2>&-", ">&- 2>&-", "2> /dev/full")
        ),
    ],
)
def test_a_closed_or_full_stderr_stops_no_work(place: Path, tmp_path: Path, streams: str) -> None:
    result = run(place, *precompute("r.jsonl", cache=str(tmp_path / "c")), after=streams)
    assert result.returncode == 0
    info = run(place, "cache", "info", "--cache", str(tmp_path / "c"), "--json")
    assert json.loads(info.stdout)["frames"][0]["num_videos"] == 1
    assert run(place, "cache", "verify", "--cache", str(tmp_path / "c")).returncode == 0


@pytest.mark.long
def test_a_stderr_whose_reader_has_gone_stops_no_work(place: Path, tmp_path: Path) -> None:
    arguments = precompute("r.jsonl", cache=str(tmp_path / "c"))
    result = run(place, *arguments, after="2> >(exec 0<&-; sleep 0)")
    assert result.returncode == 0 and "1 decoded" in result.stdout


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["ascii", *ENCODINGS])
def test_what_an_encoding_lacks_is_no_traceback(place: Path, encoding: str) -> None:
    if not (place / "unicode").exists():
        write(place / "u.jsonl", [row("1", "\u8bf4 \u00fc \U0001f600?")])
        run(place, *precompute("u.jsonl", cache="unicode"))
    for arguments in (
        ["inspect-scores", "--cache=unicode", "--question=1"],
        ["inspect-scores", "--cache=\u8bf4\udcff"],
    ):
        result = run(place, *arguments, PYTHONIOENCODING=encoding)
        assert result.returncode == (2 if "\u8bf4" in arguments[-1] else 0), result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["precompute", "--decoder", "ffmpeg"], ["'--decoder'", "'ffmpeg'", "'torchcodec'"]),
        (["precompute", "--datta", "x"], ["--datta", "--data"]),
        (["precompute", "--frames", "0"], ["--frames", "1"]),
        (["precomptue"], ["precomptue"]),
        (["cache", "fialures"], ["fialures"]),
        (["precompute", "--decoder", "a\nerror: \x1b[2J"], ["'--decoder'"]),
        (["report"], ["RUN_DIR"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_choice_is_one_line_like_all_other_errors(
    place: Path, arguments: list[str], words: list[str]
) -> None:
    result = run(place, *arguments)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2 and line.startswith("error: ")
    assert all(word.lower() in line.lower() for word in words) and "\x1b" not in line


def test_calls_without_a_word_show_the_help(place: Path) -> None:
    for arguments in ([], ["cache"]):
        result = run(place, *arguments)
        assert "Usage" in result.stdout + result.stderr and "error" not in result.stderr


@pytest.mark.long
def test_paths_of_commands_begin_with_a_tilde(place: Path) -> None:
    common = ["--scorer=random", "--workers=1", "--frames=4"]
    files = ["--data=~/r.jsonl", "--video-root=~/videos", "--cache=~/tilde"]
    assert run(place, "precompute", *files, *common).returncode == 0
    assert (place / "tilde" / "cache.json").is_file() and not (place / "~").exists()
    page = ["--question=1", "--html=~/page.html"]
    assert run(place, "inspect-scores", "--cache=~/tilde", *page).returncode == 0
    assert (place / "page.html").is_file()
    assert run(place, "cache", "failures", "--cache=~/tilde").returncode == 0
    missing = run(place, "report", "~/no-run")
    assert str(place / "no-run") in missing.stderr


@pytest.mark.long
def test_links_into_blobs_are_met_by_a_message_that_names_the_option(
    place: Path, tmp_path: Path
) -> None:
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "f00"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    shutil.copy(place / "videos" / "good.mp4", blobs / "9c4e")
    (snapshot / "good.mp4").symlink_to("../../blobs/9c4e")
    options = ["--video-root", str(snapshot), "--cache", str(tmp_path / "cache"), "--workers=1"]
    arguments = ["precompute", "--data=all.jsonl", *options, "--scorer=random"]
    arguments.append("--max-failure-fraction=0.5")
    result = run(place, *arguments)
    assert result.returncode == 1 and "--allow-outside-root" in result.stderr.splitlines()[-1]
    failures = run(place, "cache", "failures", "--cache", str(tmp_path / "cache"), "--json")
    reasons = {f["video"]: f["reason"] for f in json.loads(failures.stdout)["failures"]}
    assert "blobs" in reasons["good.mp4"] and "--allow-outside-root" in reasons["good.mp4"]
    assert run(place, *arguments, "--allow-outside-root").returncode == 0


@pytest.mark.long
def test_bad_records_are_counted_and_left_out_when_asked(place: Path, tmp_path: Path) -> None:
    rows = [row(str(n), f"Question {n}?") for n in range(2)]
    bad = [{**row(str(n), "?"), "problem_type": "open-ended"} for n in range(2, 32)]
    write(tmp_path / "b.jsonl", [*rows, *bad])
    data = str(tmp_path / "b.jsonl")
    cache = str(tmp_path / "c")
    result = run(place, *precompute(data, cache=cache))
    lines = result.stderr.splitlines()
    assert result.returncode == 2 and len(lines) == 11 and "30 bad rows" in lines[0]
    result = run(place, *precompute(data, "--skip-bad-records", cache=cache))
    assert result.returncode == 0 and "30 left out" in result.stdout
    filtered = precompute(data, "--filter=problem_type=free-form", cache=cache)
    assert "nothing to do" in run(place, *filtered).stdout
    write(tmp_path / "i.jsonl", [{**r, "data_type": "Image"} for r in rows])
    result = run(place, *precompute(str(tmp_path / "i.jsonl"), cache=cache))
    assert result.returncode == 2 and "2 image rows passed over" in result.stderr
