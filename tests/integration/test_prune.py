"""Prune beside a running precompute: nothing of it is harmed, however young leftovers may be."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from strive.cache.care import apply_prune, walk_cache
from strive.cache.layout import CacheLayout, live_writers, open_cache
from strive.cache.scores import ScoreReader
from strive.cache.verify import verify_cache
from strive.lab.world import build_world

UNIT = Path(__file__).parents[1] / "unit"
SCRIPT = """
import sys
from pathlib import Path
from strive.pipeline import part
from strive.configs.schema import PrecomputeConfig
from strive.pipeline.run import precompute

part.MAX_VIDEOS = 1  # many commits
root, cache = Path(sys.argv[1]), Path(sys.argv[2])
precompute(PrecomputeConfig(
    data=tuple(sorted(root.glob("*.jsonl"))), video_root=root, cache=cache,
    scorers=("pipeline.toy_scorer:make",), workers=1,
))
"""


@pytest.mark.long
def test_prune_beside_a_running_precompute(tmp_path: Path) -> None:
    build_world(tmp_path / "world", num_clips=12, seed=4)
    cache = tmp_path / "cache"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "world"), str(cache)],
        env={**os.environ, "PYTHONPATH": str(UNIT)},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    num_prunes = num_spared = 0
    while process.poll() is None:
        # Without an age to go by, the lock is what tells that a writer is at work.
        if (cache / "cache.json").is_file() and live_writers(CacheLayout(cache)):
            plan = walk_cache(cache, superseded=True, safe_age_seconds=0.0)
            assert plan.removals == ()
            apply_prune(plan)
            num_prunes += 1
            num_spared += plan.num_young
        time.sleep(0.01)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert num_prunes > 20 and num_spared > 0  # it looked while there was something to harm
    assert verify_cache(cache) == []
    layout = open_cache(cache)
    assert len(ScoreReader(layout, layout.scorer_keys()[0]).question_ids) == 48
    assert walk_cache(cache, superseded=True, safe_age_seconds=0.0).removals == ()
