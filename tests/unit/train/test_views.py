"""Views: what each does to frames, what it draws from, and a run's own ones."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strive.configs.load import load_config
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError, MissingInputError, UnknownNameError
from strive.seeding import derive_rng
from strive.train.augment import augment_variant
from strive.train.views import VIEWS, FrameViews, Shown, alpha_bars, noise_level

KEYS = {"seed": 0, "step": 1, "question_id": "q"}
NOISY = {"noise_steps": 500, "schedule": "sigmoid", "steepness": 30.0, "midpoint": 2 / 3}


def frames(num_frames=5, height=6, width=4):
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), np.uint8)


def seen(name, given_KHWC, level=250, seed=0):
    return VIEWS[name](given_KHWC, Shown(derive_rng(seed), level))


def views_of(**changes):
    return FrameViews(load_config(TrainConfig, [], [], changes))


def test_permuting_views_by_hand():
    given_KHWC = frames(3)
    assert (seen("none", given_KHWC) == given_KHWC).all()
    assert (seen("reverse", given_KHWC) == given_KHWC[[2, 1, 0]]).all()
    assert (seen("mirror", given_KHWC)[:, :, 0] == given_KHWC[:, :, -1]).all()
    assert (seen("grey", given_KHWC) == 128).all()
    order = derive_rng(0).permutation(3)
    assert (seen("shuffle", given_KHWC) == given_KHWC[order]).all()


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(sorted(VIEWS)), seed=st.integers(0, 99), num_frames=st.integers(1, 6))
def test_every_view_keeps_shape_and_type_and_its_argument(name, seed, num_frames):
    given_KHWC = frames(num_frames)
    before = given_KHWC.copy()
    shown = seen(name, given_KHWC, seed=seed)
    assert shown.shape == given_KHWC.shape
    assert shown.dtype == np.uint8
    assert (given_KHWC == before).all()
    assert (seen(name, given_KHWC, seed=seed) == shown).all()


@pytest.mark.parametrize("name", ["shuffle", "reverse"])
def test_a_permuted_view_holds_the_same_frames(name):
    given_KHWC = frames(6)
    rows = sorted(frame.tobytes() for frame in given_KHWC)
    assert sorted(frame.tobytes() for frame in seen(name, given_KHWC)) == rows


# NoisyRollout's published run: 500 diffusion steps, 60 training steps, midpoint 40 of 60.
@pytest.mark.parametrize(("step", "level"), [(1, 499), (30, 496), (40, 250), (50, 3), (60, 0)])
def test_the_noise_fades_as_published(step, level):
    assert noise_level(step - 1, 60, **NOISY) == level
    assert noise_level(step - 1, 60, **NOISY | {"schedule": "constant"}) == 500


@pytest.mark.parametrize(
    ("level", "kept", "added"), [(250, 0.989134, 0.147018), (499, 0.864103, 0.503314)]
)
def test_the_diffusion_is_as_published(level, kept, added):
    share = alpha_bars()[level]
    assert np.sqrt(share) == pytest.approx(kept, abs=1e-6)
    assert np.sqrt(1 - share) == pytest.approx(added, abs=1e-6)


def test_noise_has_the_share_it_is_given():
    # Of mid-grey: x = 128 / 255 scaled by 0.864103, plus normal noise of 0.503314 cut to [0, 1].
    grey_KHWC = np.full((4, 64, 64, 3), 128, np.uint8)
    noisy = seen("noise", grey_KHWC, level=499)
    inside = noisy[(noisy > 0) & (noisy < 255)] / 255
    drawn = derive_rng(0).standard_normal(grey_KHWC.shape, dtype=np.float32)
    exact = 0.864103 * 128 / 255 + 0.503314 * drawn
    assert inside == pytest.approx(exact[(noisy > 0) & (noisy < 255)], abs=0.5 / 255 + 1e-5)
    assert (seen("noise", grey_KHWC, level=0) == grey_KHWC).all()


def test_each_variant_has_its_own_view_and_draws():
    views = views_of(views=["none", "shuffle"], num_variants=2)
    given_KHWC = frames(8)
    assert (views(given_KHWC, **KEYS, variant=0) == given_KHWC).all()
    shuffled = views(given_KHWC, **KEYS, variant=1)
    assert not (shuffled == given_KHWC).all()
    assert not (views(given_KHWC, **KEYS | {"step": 2}, variant=1) == shuffled).all()
    assert not (views(given_KHWC, **KEYS | {"question_id": "r"}, variant=1) == shuffled).all()


def test_spatial_is_the_augmentation_it_was():
    given_KHWC = frames(3, 20, 30)
    for changes in ({"spatial": True}, {"views": "spatial"}):
        shown = views_of(**changes)(given_KHWC, **KEYS, variant=1)
        assert (shown == augment_variant(given_KHWC, **KEYS, variant=1)).all()


def test_a_contrast_draws_apart_from_the_variants():
    views = views_of(views="shuffle", contrast="shuffle")
    given_KHWC = frames(8)
    contrast = views.contrast(given_KHWC, step=1, question_id="q")
    assert not (contrast == views(given_KHWC, **KEYS, variant=0)).all()
    assert contrast.flags["C_CONTIGUOUS"]
    assert views_of(contrast="reverse").contrast(given_KHWC, step=1, question_id="q").strides[0] > 0


def test_noise_of_any_steepness():
    for steepness in (1e-9, 2000.0, 1e300):
        settings = NOISY | {"steepness": steepness}
        assert noise_level(0, 60, **settings) in (500, 250, 249)
        assert 0 <= noise_level(59, 60, **settings) <= 500


# --- a user's own -------------------------------------------------------------------------------

OWN = """
import numpy as np

def dark(frames_KHWC, shown):
    return frames_KHWC // 2

def halved(frames_KHWC, shown):
    return frames_KHWC[:1]

def floats(frames_KHWC, shown):
    return frames_KHWC / 255

def fails(frames_KHWC, shown):
    raise KeyError("none")

def ends(frames_KHWC, shown):
    raise SystemExit(3)

def writes(frames_KHWC, shown):
    frames_KHWC[:] = 7
    return frames_KHWC
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_views.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_views", None)


def test_an_own_view(own):
    given_KHWC = frames()
    shown = views_of(views=["none", "own_views:dark"])(given_KHWC, **KEYS, variant=1)
    assert (shown == given_KHWC // 2).all()


def test_an_own_view_may_write_into_what_it_is_given(own):
    given_KHWC = frames()
    views = views_of(contrast="own_views:writes")
    assert (views.contrast(given_KHWC, step=0, question_id="q") == 7).all()
    assert (given_KHWC == frames()).all()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ends", r"view 'own_views:ends' raised SystemExit"),
        ("halved", r"returned uint8 \(1, 6, 4, 3\) where frames of uint8 \(5, 6, 4, 3\) are due"),
        ("floats", r"returned float64 \(5, 6, 4, 3\) where"),
        ("fails", r"view 'own_views:fails' raised KeyError.*own_views.py, line 1\d"),
    ],
)
def test_an_own_view_that_cannot_be_used(own, name, said):
    views = views_of(views=f"own_views:{name}")
    with pytest.raises(ConfigError, match=said):
        views(frames(), **KEYS, variant=0)


def test_a_name_that_is_none():
    with pytest.raises(UnknownNameError, match=r"grey.*mirror.*noise"):
        views_of(views="gray")
    with pytest.raises(UnknownNameError, match="view 'backwards'"):
        views_of(contrast="backwards")
    with pytest.raises(MissingInputError, match="view 'nowhere:f'"):
        views_of(views="nowhere:f")
