import os
from pathlib import Path

import pytest
from clip_world import World

from strive.cache.verify import check_videos
from strive.errors import MissingInputError
from strive.pipeline.run import precompute


def test_changed_and_missing_videos_are_told_apart(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    precompute(world.options(cache))
    assert check_videos(cache, world.root).num_same == 4
    touched = world.root / "clip0.mp4"
    touched.write_bytes(touched.read_bytes())  # another time, the same content
    changed = world.root / "clip1.mp4"
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1  # the same size
    changed.write_bytes(data)
    (world.root / "clip2.mp4").unlink()
    (world.root / "clip3.mp4").unlink()
    (world.root / "clip3.mp4").symlink_to(tmp_path / "records.jsonl")  # leaves the root
    check = check_videos(cache, world.root)
    assert (check.num_same, check.changed) == (1, ("clip1.mp4",))
    assert check.missing == ("clip2.mp4", "clip3.mp4")
    (world.root / "clip2.mp4").symlink_to("clip2.mp4")
    touched.unlink()
    os.mkfifo(touched)  # reading it would wait for ever
    missing = check_videos(cache, world.root).missing
    assert sorted(missing) == ["clip0.mp4", "clip2.mp4", "clip3.mp4"]
    with pytest.raises(MissingInputError, match="no folder at --video-root"):
        check_videos(cache, tmp_path / "nowhere")
