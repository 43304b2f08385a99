"""Scorers by `module:function`: what is taken, and what is said about what is not."""

from pathlib import Path

import numpy as np
import pytest

from strive.errors import (
    ConfigError,
    MissingInputError,
    ModelError,
    ScorerError,
    UnknownNameError,
)
from strive.scorers import (
    SCORERS,
    BatchedScorer,
    FrameFreeScorer,
    JointScorer,
    ScorerRequest,
    SplitScorer,
    check_scorer_name,
    load_scorer,
)

MODULE = """
import numpy as np
from strive.scorers import JointScorer

class Unfinished(JointScorer):
    def __init__(self, request): pass
    def score(self, frames_FHWC, question, *, pts_seconds_F): return pts_seconds_F

class Joint:
    kind = "weight"
    def __init__(self, request):
        self.request = request
    def identity(self):
        return {"model": self.request.model}
    def score(self, frames_FHWC, question):
        return np.ones(len(frames_FHWC), np.float32)

class Free(Joint):
    kind = "similarity"
    score = None
    def score_record(self, record, pts_seconds_F):
        return pts_seconds_F.astype(np.float32)

class Batched:
    kind = "similarity"
    batch_size = 4
    def identity(self): return {}
    def embed_frames(self, frames_FHWC): return frames_FHWC[:, 0, 0].astype(np.float32)
    def embed_questions(self, questions): return np.ones((len(questions), 3), np.float32)
    def prepare_frames(self, frames_FHWC): return frames_FHWC[:, 0, 0]
    def embed_prepared(self, prepared_B): return prepared_B.astype(np.float32)

class WrongKind(Joint):
    kind = "logit"

class Nameless:
    kind = "similarity"
    def score(self, frames_FHWC, question): return np.ones(len(frames_FHWC), np.float32)

def joint(request): return Joint(request)
def nameless(request): return Nameless()
def batched(request): return Batched()
def nothing(request): return 7
def wrong_kind(request): return WrongKind(request)
number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a user's modules in it."""
    (tmp_path / "my_own_scorers.py").write_text(MODULE)
    (tmp_path / "needs_more.py").write_text("import a_library_that_is_not_here\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_function_is_found_in_the_working_directory(here: Path) -> None:
    scorer = load_scorer("my_own_scorers:joint", ScorerRequest(model="mine"))
    assert isinstance(scorer, JointScorer) and not isinstance(scorer, SplitScorer)
    assert scorer.identity() == {"model": "mine"}
    frames = np.zeros((3, 2, 2, 3), np.uint8)
    assert scorer.score(frames, "What?", pts_seconds_F=np.arange(3)).tolist() == [1, 1, 1]
    assert scorer.files is None and scorer.text_lengths(["What?"]) == [None]


def test_capabilities_are_what_it_has(here: Path) -> None:
    batched = load_scorer("my_own_scorers:batched", ScorerRequest())
    assert isinstance(batched, BatchedScorer) and not isinstance(batched, FrameFreeScorer)


def test_a_class_is_a_function_too(here: Path) -> None:
    assert isinstance(load_scorer("my_own_scorers:Free", ScorerRequest()), FrameFreeScorer)


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("no_such_module:make", MissingInputError, "no module 'no_such_module'"),
        ("no.such.module:make", MissingInputError, "no module 'no.such.module'"),
        ("my_own_scorers:absent", ConfigError, "has no 'absent'"),
        ("my_own_scorers:number", ConfigError, "by 'number', which cannot be called"),
        ("my_own_scorers:nothing", ModelError, r"made a int, which has none of score\(\)"),
        ("my_own_scorers:nameless", ModelError, r"made a Nameless, which lacks identity\(\)"),
        (
            "my_own_scorers:wrong_kind",
            ModelError,
            "has kind 'logit'; use one of similarity, weight",
        ),
        ("my_own_scorers:Unfinished", ScorerError, "abstract class Unfinished .*identity"),
        ("siglip3", UnknownNameError, "siglip2"),
    ],
)
def test_faults_are_named(here: Path, name: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        load_scorer(name, ScorerRequest())


def test_a_library_that_the_module_needs_is_not_its_own_absence(here: Path) -> None:
    with pytest.raises(MissingInputError, match="imports 'a_library_that_is_not_here'"):
        load_scorer("needs_more:make", ScorerRequest())


def test_every_name_of_the_list_can_be_asked_for() -> None:
    assert set(SCORERS) == {"siglip2", "llava_ov", "policy", "gradient", "random", "oracle"}
    for name in SCORERS:
        check_scorer_name(name)
