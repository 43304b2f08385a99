"""What group methods add to a step: contrasts, update views, parts of a rollout, resampling."""

import dataclasses

import numpy as np
import pytest
import torch
from train.steps import (
    build,
    caught_gradients,
    one_thread,
    run,
    textbook_logprobs,
    the_steps_rollout,
    vowels,
    weights,
)

from strive.errors import ConfigError, RewardError
from strive.lab.models import lab_model_path
from strive.models.loading import load_policy
from strive.seeding import derive_rng
from strive.train.data import TrainingData, step_share
from strive.train.rollout import contrasts_of, prepare_variants

__all__ = ["build", "one_thread"]


def with_reward(trainer, function):
    return dataclasses.replace(trainer, reward_functions={"vowels": function})


# --- a textbook of NoisyRollout with a contrast, in parts ---------------------------------------


def above_the_contrast(prompts, completions, *, contrast_completions, **columns):
    """Vowels, and half a point for more of them than the contrasts have in the mean."""
    others = np.mean(vowels(None, contrast_completions[0]))
    return [value + 0.5 * (value > others) for value in vowels(prompts, completions)]


def textbook_part(model, rollouts, contrast, old, config):
    """Loss of a part of one question: token means over its pool, under the first view."""
    rewards = [
        reward
        for rollout in rollouts
        for reward in above_the_contrast(
            None, rollout.texts, contrast_completions=[contrast.texts] * len(rollout.texts)
        )
    ]
    mean = sum(rewards) / len(rewards)
    std = (sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) ** 0.5
    gain = num_tokens = clipped = 0
    for logprobs, before, reward in zip(
        first_view(model, rollouts, config), old, rewards, strict=True
    ):
        advantage = (reward - mean) / (std + 1e-4)
        ratio = torch.exp(logprobs - before)
        bounded = ratio.clamp(1 - config.epsilon, 1 + config.epsilon)
        gain = gain + torch.minimum(ratio * advantage, bounded * advantage).sum()
        clipped += int((ratio * advantage > bounded * advantage + 1e-7).sum())
        num_tokens += len(logprobs)
    return -gain / num_tokens, clipped


def first_view(model, rollouts, config):
    """Log-probs of every completion of a question under its first variant's prompt."""
    return [
        textbook_logprobs(
            model,
            rollouts[0].prepared.prompt,
            tokens[:length],
            rule=config.position_rule,
            temperature=config.sampling_temperature,
        )
        for rollout in rollouts
        for tokens, length in zip(rollout.tokens_GL, rollout.lengths_G.tolist(), strict=True)
    ]


@pytest.mark.parametrize("family", ["qwen2_5_vl", pytest.param("qwen3_vl", marks=pytest.mark.long)])
def test_first_view_contrast_and_parts_are_the_textbook(build, family):
    """Two parts of one question each: losses, gradients and moved weights of both updates."""
    path = str(lab_model_path(family))
    trainer, prepared = build(
        model=path,
        variants="uniform",
        views=["none", "noise"],
        noise_schedule="constant",
        update_view="first",
        contrast="shuffle",
        contrast_generations=3,
        minibatches_per_rollout=2,
        objective="dapo",
        beta=0.0,
        learning_rate=2e-3,
    )
    trainer = with_reward(trainer, above_the_contrast)
    config = trainer.config
    rollouts = the_steps_rollout(trainer, prepared)
    others = dataclasses.replace(trainer, config=config.model_copy(update={"num_generations": 3}))
    contrasts = the_steps_rollout(others, contrasts_of(prepared))
    assert [c.prepared.place for c in contrasts] == [0, 1]
    groups = [[r for r in rollouts if r.prepared.place == place] for place in (0, 1)]
    assert not np.array_equal(
        groups[0][0].prepared.prompt.pixel_values, groups[0][1].prepared.prompt.pixel_values
    )
    model = load_policy(path).model
    learning = {n for n, p in trainer.policy.model.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning)

    start = weights(trainer)
    caught = caught_gradients(trainer.policy.model)
    result = run(trainer, prepared)

    with torch.no_grad():
        old = [first_view(model, group, config) for group in groups]
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=config.learning_rate, weight_decay=0.0)
    losses, num_clipped = [], []
    for update, (group, contrast) in enumerate(zip(groups, contrasts, strict=True)):
        loss, clipped = textbook_part(model, group, contrast, old[update], config)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        num_clipped.append(clipped)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                error = (caught[name][update] - parameter.grad).norm()
                assert error <= 1e-4 * parameter.grad.norm() + 1e-8, (update, name)
        torch.nn.utils.clip_grad_norm_(moving, config.max_grad_norm)
        optimizer.step()
    # The first part's weights had not moved yet; the second part is off its own policy.
    assert num_clipped[0] == 0 and result.metrics["policy/clip_fraction"] > 0
    assert result.metrics["loss/total"] == pytest.approx(np.mean(losses), abs=1e-5)
    moved = torch.cat([p.detach().flatten() for p in model.parameters()])
    # Adam makes a whole step of the rounding of a gradient of almost nothing.
    assert (weights(trainer) - moved).norm() <= 1e-3 * (moved - start).norm()


# --- contrasts ----------------------------------------------------------------------------------


def test_a_contrast_shows_the_first_variant_s_frames_in_another_order(make_config):
    data = TrainingData(make_config(contrast="reverse", num_variants=2))
    question = data.read(data.records[0], 0)
    first = question.videos[0]
    assert (question.contrast.frames_KHWC == first.frames_KHWC[::-1]).all()
    assert (question.contrast.pts_seconds_K == first.pts_seconds_K).all()
    assert (question.contrast.source_index_K == first.source_index_K).all()
    # The process that has no first variant has no contrast either.
    assert data.read(data.records[0], 0, [1]).contrast is None


def test_contrasts_reach_rewards_and_nothing_else(build):
    seen = []

    def look(prompts, completions, *, contrast_completions, **columns):
        seen.append(contrast_completions)
        return vowels(prompts, completions)

    options = {"beta": 0.04, "learning_rate": 1e-3}
    trainer, prepared = build(contrast="shuffle", contrast_generations=3, **options)
    with_it = run(with_reward(trainer, look), prepared)
    assert [len(rows) for rows in seen] == [8, 8]  # M x G rows of both questions
    assert {len(texts) for rows in seen for texts in rows} == {3}
    plain, prepared = build(**options)
    without = run(plain, prepared)
    assert [o.texts for o in with_it.outcomes] == [o.texts for o in without.outcomes]
    torch.testing.assert_close(weights(trainer), weights(plain), rtol=0, atol=1e-7)
    costs = {name: (with_it.metrics[name], without.metrics[name]) for name in with_it.metrics}
    assert costs["cost/vision_encodes"] == (3, 2)  # a question: M = 2, and its contrast
    assert costs["cost/completions"] == (11, 8)
    assert costs["cost/logprob_passes"] == (2, 2)  # the policy's and the reference's
    assert costs["cost/optimiser_steps"] == (1, 1)


# --- parts of a rollout -------------------------------------------------------------------------


def test_parts_learn_one_after_the_other_from_one_rollout(build):
    trainer, prepared = build(
        minibatches_per_rollout=2, updates_per_rollout=2, learning_rate=1e-2, beta=0.0
    )
    metrics = run(trainer, prepared).metrics
    assert metrics["policy/clip_fraction"] > 0
    # Two updates of each completion, and the old log-probs of the second part.
    assert metrics["cost/logprob_passes"] == 2.5
    assert metrics["cost/optimiser_steps"] == 4
    # Compared with the old log-probs, of before any weight moved.
    assert metrics["policy/rollout_mismatch_max"] < 1e-4


def test_micro_batches_of_a_part_change_nothing(build):
    results = []
    for size in (1, 2):
        trainer, prepared = build(
            questions_per_step=4,
            minibatches_per_rollout=2,
            questions_per_micro_batch=size,
            learning_rate=1e-3,
        )
        results.append((run(trainer, prepared).metrics, weights(trainer)))
    for name in results[0][0]:
        np.testing.assert_allclose(results[0][0][name], results[1][0][name], atol=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-5)


def test_every_part_is_shared_out_for_itself(make_config):
    config = make_config(questions_per_step=4, minibatches_per_rollout=2)
    assert step_share(config, 0, 1) == [(place, range(2)) for place in range(4)]
    assert step_share(config, 0, 2) == [(0, range(2)), (2, range(2))]
    assert step_share(config, 1, 4) == [(0, range(1, 2)), (2, range(1, 2))]
    with pytest.raises(ConfigError, match=r"2 parts of questions_per_step=4 x num_variants=2 hold"):
        step_share(config, 0, 3)
    whole = make_config(questions_per_step=2, update_view="first")
    with pytest.raises(ConfigError, match=r"update_view 'first' needs all variants.*multiple of 4"):
        step_share(whole, 0, 4)
    regression = make_config(questions_per_step=1, surrogate="regression", updates_per_rollout=2)
    with pytest.raises(ConfigError, match=r"surrogate 'regression' needs all variants of a quest"):
        step_share(regression, 0, 2)


# --- what is left out of the loss ---------------------------------------------------------------


def test_masked_truncated_completions_stay_in_their_groups(build):
    def run_with(**changes):
        trainer, prepared = build(max_new_tokens=3, objective="dapo", beta=0.0, **changes)
        return run(trainer, prepared)

    whole, masked = run_with(), run_with(mask_truncated=True)
    for before, after in zip(whole.outcomes, masked.outcomes, strict=True):
        assert (before.advantages_MG == after.advantages_MG).all()
        assert before.truncated_MG.any()
    assert masked.metrics["loss/policy"] != whole.metrics["loss/policy"]
    everything_cut = all(o.truncated_MG.all() for o in masked.outcomes)
    assert (masked.metrics["optim/grad_norm"] == 0) == everything_cut


def test_the_entropy_bonus_makes_the_policy_less_sure(build):
    after = []
    for weight in (0.0, 1.0):
        trainer, prepared = build(entropy_weight=weight, beta=0.0, learning_rate=1e-3)
        flat = with_reward(trainer, lambda prompts, **columns: [1.0] * len(prompts))
        run(flat, prepared)
        after.append(run(flat, prepared, step=1).metrics["policy/entropy"])
    assert after[1] > after[0]


# --- sampling again -----------------------------------------------------------------------------


def resampling(build, make_config, accuracy, rounds=3):
    trainer, prepared = build(resample_rounds=rounds, rewards={"vowels": 1.0, "accuracy": 0.0})
    data = TrainingData(trainer.config)

    def others(step, number, places, used):
        record_of = data.replacements_of(step, number, places, used)
        questions = [data.read(record, step) for record in record_of.values()]
        if not questions:
            return []
        return prepare_variants(trainer.policy, questions, trainer.config, list(record_of))

    rewards = {"vowels": vowels, "accuracy": accuracy}
    trainer = dataclasses.replace(trainer, reward_functions=rewards, replace_questions=others)
    return data, trainer, prepared


def test_uniform_groups_are_replaced_by_others(build, make_config):
    asked = [r.question_id for r in TrainingData(make_config()).questions_of(0)]
    mixed = [f"q{number}" for number in range(6) if f"q{number}" not in asked][1]

    def accuracy(prompts, completions, *, question_id, **columns):
        """The second question of the step is mixed, and one that is not in it."""
        return [float(row == 0 and q in (asked[1], mixed)) for row, q in enumerate(question_id)]

    data, trainer, prepared = resampling(build, make_config, accuracy)
    result = run(trainer, prepared)
    assert [outcome.question_id for outcome in result.outcomes] == [mixed, asked[1]]
    drawn = []
    used = set(asked)
    while mixed not in drawn:  # what the seed, the step and the round say
        record = data.replacements_of(0, len(drawn), [0], used)[0]
        drawn.append(record.question_id)
        used.add(record.question_id)
    metrics = result.metrics
    assert metrics["resample/rounds"] == metrics["resample/groups_thrown_away"] == len(drawn)
    assert metrics["cost/completions"] == 8 * (2 + len(drawn)) / 2
    assert metrics["cost/vision_encodes"] == 2 * (2 + len(drawn)) / 2
    assert metrics["cost/logprob_passes"] == 2
    # The same again, as after a resume.
    _, trainer, prepared = resampling(build, make_config, accuracy)
    again = run(trainer, prepared)
    assert [o.texts for o in again.outcomes] == [o.texts for o in result.outcomes]


def test_a_step_that_stays_short_keeps_its_groups(build, make_config):
    def never(prompts, completions, **columns):
        return [0.0] * len(completions)

    _, trainer, prepared = resampling(build, make_config, never, rounds=9)
    asked = [variant.question.record.question_id for variant in prepared[::2]]
    result = run(trainer, prepared)
    assert [outcome.question_id for outcome in result.outcomes] == asked
    # Two by two until the six questions are used up.
    assert result.metrics["resample/rounds"] == 2
    assert result.metrics["resample/groups_thrown_away"] == 4


def test_resampling_needs_other_questions(make_config):
    rewards = {"accuracy": 1.0}
    with pytest.raises(ConfigError, match=r"there are 6 questions, fewer than two steps of"):
        TrainingData(make_config(questions_per_step=4, resample_rounds=1, rewards=rewards))
    drawn = TrainingData(make_config(resample_rounds=1, rewards=rewards)).replacements_of(
        5, 1, [0, 3], {"q1"}
    )
    order = [f"q{index}" for index in derive_rng(0, "resample", 5, 1).permutation(6)]
    assert [r.question_id for r in drawn.values()] == [q for q in order if q != "q1"][:2]
    assert list(drawn) == [0, 3]


def test_regression_wants_a_reward_of_every_completion(build):
    trainer, prepared = build(surrogate="regression", updates_per_rollout=2)

    def some(prompts, completions, **columns):
        return [None if row % 2 else float(row) for row in range(len(completions))]

    with pytest.raises(RewardError, match=r"4 of 8 completions have no reward .* 'regression'"):
        run(with_reward(trainer, some), prepared)


# --- the averages of problem types --------------------------------------------------------------


def test_the_average_std_goes_on_from_step_to_step(build):
    trainer, prepared = build(std="ema_per_type", learning_rate=1e-9)
    first = run(trainer, prepared)
    rewards = np.concatenate([o.rewards_MG.ravel() for o in first.outcomes])
    assert trainer.std_averages == {"multiple choice": pytest.approx(rewards.std())}
    second = run(trainer, prepared, step=1)
    more = np.concatenate([o.rewards_MG.ravel() for o in second.outcomes])
    expected = 0.99 * rewards.std() + 0.01 * more.std()
    assert trainer.std_averages["multiple choice"] == pytest.approx(expected)
    outcome = second.outcomes[0]
    centred = outcome.rewards_MG - outcome.rewards_MG.mean()
    assert outcome.advantages_MG == pytest.approx(centred / (expected + 1e-4))
