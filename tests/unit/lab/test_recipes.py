"""What a recipe trains on must be what training and evaluation prepare from the same frames."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from recipes.folders import FRAME_SIZE
from recipes.policy import PolicySettings, Stage, Trainer, train_policy
from recipes.rows import Row, slot_times
from recipes.tower import encode_square, hidden_states
from strive.models.inputs import VideoFrames, prepare_prompts
from strive.models.vision import encode_videos, merge_features

FAMILIES = ("qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module", params=FAMILIES)
def trainer(request):
    trainer = Trainer(
        request.param,
        seed=0,
        settings=PolicySettings(num_scenes=4, stages=()),
        log=lambda line: None,
    )
    trainer.policy.model.eval()
    return trainer


@pytest.fixture(scope="module")
def frames(trainer):
    size = FRAME_SIZE[trainer.family]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 16, size, size, 3), generator=generator).byte()


def _videos(scene, slots_K, frames):
    pts_seconds_K = slot_times(scene, slots_K)
    return [VideoFrames(clip.numpy(), pts_seconds_K, slots_K) for clip in frames]


def test_video_tokens_equal_those_of_the_shared_code(trainer, frames):
    scene = trainer.bank.scenes[0]
    videos = _videos(scene, np.arange(0, 64, 4), frames)
    prompts = prepare_prompts(trainer.policy, ["Where is the star?"] * 2, videos)
    expected = merge_features(trainer.policy, encode_videos(trainer.policy, prompts))
    got = encode_square(trainer.policy, frames.float() / 255)
    torch.testing.assert_close(got.embeds_NH, expected.embeds_NH, atol=1e-5, rtol=1e-4)
    for mine, theirs in zip(got.deepstack_SNH, expected.deepstack_SNH, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_token_and_position_ids_equal_those_of_the_shared_code(trainer, frames):
    scene = trainer.bank.scenes[1]
    slots_K = np.sort(np.random.default_rng(0).choice(64, 16, replace=False))
    (prompt,) = prepare_prompts(
        trainer.policy, ["What color is the star?"], _videos(scene, slots_K, frames[:1])
    )
    ids, positions_3P = trainer.maker.prefix(scene, slots_K)
    tail = trainer.maker.tail("What color is the star?", "red", "A")
    batch = trainer.maker.batch([Row(ids, positions_3P, (tail,))])
    length = len(prompt.input_ids_P)
    assert np.array_equal(batch.input_ids_BT[0, :length].numpy(), prompt.input_ids_P)
    assert np.array_equal(batch.positions_3BT[:, 0, :length].numpy(), prompt.position_ids_3P)
    assert int(batch.positions_3BT[0, 0, length]) == prompt.next_position
    assert int(batch.learn_BT.sum()) == batch.input_ids_BT.shape[1] - length


def test_tails_of_a_row_do_not_see_each_other(trainer):
    scene = trainer.bank.scenes[0]
    ids, positions_3P = trainer.maker.prefix(scene, np.arange(0, 64, 4))
    one = trainer.maker.tail("Where is the star?", "top left", "A")
    two = trainer.maker.tail("How many shapes appear?", "3", "3")
    together = trainer.maker.batch([Row(ids, positions_3P, (two, one))])
    alone = trainer.maker.batch([Row(ids, positions_3P, (one,))])
    with torch.no_grad():
        hidden = hidden_states(trainer.policy, together, None)[0, -len(one.ids) :]
        expected = hidden_states(trainer.policy, alone, None)[0, -len(one.ids) :]
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-4)


def test_a_recipe_runs_and_repeats_itself(tmp_path):
    from recipes.curriculum import Mixture

    settings = PolicySettings(
        num_scenes=6,
        stages=(
            Stage("tower", 2, 2, 1e-3, None, 1.0),
            Stage("skill", 2, 2, 1e-3, Mixture(num_tails=2), 0.1),
        ),
    )
    recipes = [
        train_policy("qwen2_5_vl", tmp_path / n, seed=3, log=lambda line: None, settings=settings)
        for n in ("a", "b")
    ]
    assert recipes[0]["stages"] == recipes[1]["stages"]
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("a", "b")]
    assert weights[0] == weights[1]
