import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pytest

from strive.cache.commit import (
    commit_json,
    commit_parquet,
    list_parts,
    new_part_path,
    part_number,
    read_json,
    read_part,
    read_parts,
)
from strive.errors import CacheDamageError, DiskError
from strive.files import atomic_file

SCHEMA = pa.schema([("x", pa.int64())])


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    commit_json(path, {"x": 1})
    with pytest.raises(RuntimeError, match="midway"), atomic_file(path) as temporary:
        temporary.write_text("half a fi")
        raise RuntimeError("midway")
    assert read_json(path) == {"x": 1}
    assert os.listdir(tmp_path) == ["value.json"]


def test_a_killed_write_is_invisible(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from strive.files import atomic_file
        with atomic_file(Path({str(tmp_path)!r}) / "part-1.parquet") as temporary:
            temporary.write_bytes(b"x" * 1000)
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    assert list_parts(tmp_path, "part") == []
    assert read_parts(tmp_path, "part", SCHEMA).num_rows == 0


def test_parts_sort_by_the_time_of_their_making(tmp_path: Path) -> None:
    paths = [new_part_path(tmp_path, "part", ".parquet", "s0of1") for _ in range(20)]
    assert sorted(paths) == paths
    assert len(set(paths)) == 20


def test_a_part_comes_after_all_that_the_cache_holds_whatever_the_clock_says(
    tmp_path: Path,
) -> None:
    frames, failures = tmp_path / "frames" / "uniform", tmp_path / "failures.parquet"
    for folder in (frames, failures):
        folder.mkdir(parents=True)
    (tmp_path / "cache.json").touch()
    ahead = 8 * 10**18  # in the year 2223
    # Of equal numbers the names decide, and zz comes after w.
    (frames / f"videos-{ahead:019d}-zz-0.parquet").touch()
    paths = []
    for folder in (frames, failures, frames):
        paths.append(new_part_path(folder, "videos", ".parquet", "w"))
        paths[-1].touch()
    assert [part_number(path) - ahead for path in paths] == [1, 2, 3]
    assert list_parts(frames, "videos")[1:] == [paths[0], paths[2]]


def test_parts_are_read_as_one_table(tmp_path: Path) -> None:
    for value in (3, 1, 2):
        path = new_part_path(tmp_path, "part", ".parquet", "w")
        commit_parquet(path, pa.table({"x": [value]}, schema=SCHEMA))
    assert read_parts(tmp_path, "part", SCHEMA).column("x").to_pylist() == [3, 1, 2]


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "part-1.parquet"
    commit_parquet(path, pa.table({"x": list(range(1000))}, schema=SCHEMA))
    for content in (b"", b"PAR1", path.read_bytes()[:-9]):
        path.write_bytes(content)
        with pytest.raises(CacheDamageError, match=r"part-1\.parquet is damaged"):
            read_part(path)
    commit_parquet(path, pa.table({"y": ["text"]}))
    with pytest.raises(CacheDamageError):
        read_parts(tmp_path, "part", SCHEMA)


def test_a_file_in_the_way_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"a file stands where a folder is needed.*--cache"):
        commit_json(tmp_path / "file" / "cache.json", {})


def test_a_folder_that_takes_no_writes_is_a_disk_error() -> None:
    if not Path("/sys/kernel").is_dir():
        pytest.skip("needs a file system that refuses writes even to root")
    with pytest.raises(DiskError, match="cannot write /sys/kernel/strive"):
        commit_json(Path("/sys/kernel/strive/cache.json"), {})


def test_a_write_that_runs_out_of_room_is_a_disk_error(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import resource, signal
        from pathlib import Path
        import numpy as np, pyarrow as pa
        from strive.cache.commit import commit_parquet
        from strive.errors import DiskError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        noise = np.random.default_rng(0).integers(0, 2**62, 20_000)
        try:
            commit_parquet(Path({str(tmp_path)!r}) / "part-1.parquet", pa.table({{"x": noise}}))
        except DiskError as error:
            print(error)
    """)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "cannot write" in run.stdout and "committed before is intact" in run.stdout
    assert os.listdir(tmp_path) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 50_000
