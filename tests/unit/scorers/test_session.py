"""A scorer in a call: known again without loading it, and only then."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from strive.cache.layout import CacheLayout, create_cache
from strive.errors import CacheDamageError
from strive.records import Record
from strive.scorers import ScorerRequest
from strive.scorers.session import ScorerSession

MODULE = """
from pathlib import Path
import numpy as np
from strive.scorers import FrameFreeScorer, JointScorer

LOADED = []

class Early(JointScorer):
    kind = "weight"
    files = (Path(__file__).with_name("weights.bin"),)
    def __init__(self, request): LOADED.append(request)
    def identity(self): return {"model": "early", "weights": self.files[0].read_text()}
    def score(self, frames_FHWC, question, *, pts_seconds_F): return 10 - pts_seconds_F

class Duck:
    kind = "weight"
    wants_times = True
    files = Early.files
    __init__, identity, score = Early.__init__, Early.identity, Early.score
"""
RECORD = Record("1", "a.mp4", "What?", "free-form", (), "<answer>a</answer>")


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CacheLayout:
    (tmp_path / "early_scorers.py").write_text(MODULE)
    (tmp_path / "weights.bin").write_text("1")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "early_scorers", raising=False)
    return create_cache(tmp_path / "cache")


def session(layout: CacheLayout, name: str = "Early", **request: str) -> ScorerSession:
    asked = ScorerRequest(**request)  # type: ignore[arg-type]
    return ScorerSession(f"early_scorers:{name}", asked, layout, "frames")


def num_loaded() -> int:
    import early_scorers  # type: ignore[import-not-found]

    return len(early_scorers.LOADED)


def test_a_scorer_is_known_again_until_what_it_depends_on_changes(layout: CacheLayout) -> None:
    first = session(layout)
    first.commit_settings()  # writes nothing: it is not loaded
    assert layout.scorer_keys() == []
    key = first.key
    first.commit_settings()
    assert layout.scorer_keys() == [key] and num_loaded() == 1
    again = session(layout)
    found = (again.key, again.settings["split"], again.settings["needs_spans"])
    assert found == (key, False, False)
    assert again.digest_of(RECORD) == first.digest_of(RECORD) and num_loaded() == 1
    # Another call, and other weights behind the same call.
    assert session(layout, device="cpu").key == key and num_loaded() == 2
    weights = layout.root.parent / "weights.bin"
    weights.write_text("22")
    assert session(layout).key != key and num_loaded() == 3
    # The same weights with another time stamp: the scorer is loaded once more and then known.
    weights.write_text("1")
    os.utime(weights, (1, 1))
    touched = session(layout)
    assert touched.key == key and num_loaded() == 4
    touched.commit_settings()
    assert session(layout).key == key and num_loaded() == 4


def test_what_earlier_versions_kept_in_a_file_of_its_own_is_read(layout: CacheLayout) -> None:
    first = session(layout)
    key = first.key
    first.commit_settings()
    folder = layout.scores(key)
    settings = json.loads((folder / "settings.json").read_text())
    recall = settings.pop("recall")
    (folder / "settings.json").write_text(json.dumps(settings))
    assert session(layout).key == key and num_loaded() == 2
    (folder / "recall.json").write_text(json.dumps(recall))
    assert session(layout).key == key and num_loaded() == 2
    # One that makes no sense is none.
    for text in ("{", "[]", '{"asked": 1}'):
        (folder / "recall.json").write_text(text)
        assert session(layout).key == key
    assert num_loaded() == 5


def test_damaged_settings_are_named(layout: CacheLayout) -> None:
    first = session(layout)
    first.key  # noqa: B018
    first.commit_settings()
    (layout.scores(first.key) / "settings.json").write_text("{")
    again = session(layout)
    again.key  # noqa: B018
    with pytest.raises(CacheDamageError, match=r"settings.json"):
        again.commit_settings()


def test_a_duck_typed_scorer_and_one_of_the_base_class_are_alike(layout: CacheLayout) -> None:
    times_F = np.array([0.0, 1.0, 2.5])
    frames_FHWC = np.zeros((3, 2, 2, 3), np.uint8)
    rows = []
    for name in ("Early", "Duck"):
        made = session(layout, name)
        row = made.score_one(RECORD, frames_FHWC, times_F, "sum")
        assert row is not None and made.scorer.mode == "joint" and made.scorer.device_type == "cpu"
        rows.append((row.scores_F.tolist(), row.num_text_tokens, row.query_digest))
        made.commit_settings()
    assert rows[0] == rows[1] and rows[0][0] == [10, 9, 7.5]
    of_each = [
        json.loads((layout.scores(key) / "settings.json").read_text())
        for key in layout.scorer_keys()
    ]
    for settings in of_each:
        for name in ("name", "recall"):
            del settings[name]
        del settings["fields"]["scorer"]
    assert of_each[0] == of_each[1]
