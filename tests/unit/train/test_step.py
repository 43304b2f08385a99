"""A step on the lab's Qwen2.5-VL and random frames: what it computes and what it spends."""

import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
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

from strive.errors import NonFiniteError
from strive.lab.models import lab_model_path
from strive.models.loading import load_policy
from strive.models.logprobs import completion_logprobs_batch
from strive.models.lora import adapters_off
from strive.models.sampling import Sampling
from strive.models.vision import count_encodes
from strive.train.processes import Processes
from strive.train.rollout import MicroBatch, roll_out
from strive.train.start import weights_digest
from strive.train.step import train_step
from strive.train.timing import Stopwatch

__all__ = ["build", "one_thread"]


def test_vision_runs_once_per_variant(build):
    trainer, prepared = build()
    with count_encodes(trainer.policy.model) as count:
        run(trainer, prepared)
    assert (count.calls, count.videos) == (1, 2 * 2)  # 2 questions x M=2


def test_a_trained_tower_encodes_again_with_a_graph(build):
    trainer, prepared = build(trainable="all")
    with count_encodes(trainer.policy.model) as count:
        run(trainer, prepared)
    assert count.videos == 8
    moved = trainer.policy.model.model.visual.blocks[0].attn.qkv.weight
    frozen = trainer.reference.model.visual.blocks[0].attn.qkv.weight
    assert (moved != frozen).any()


@pytest.mark.parametrize("trainable", ["language", "lora"])
def test_the_first_step_is_on_policy(build, trainable):
    trainer, prepared = build(beta=0.04, trainable=trainable, learning_rate=1e-4)
    result = run(trainer, prepared)
    metrics = result.metrics
    # Ratio 1 and advantages that sum to 0; the reference is the policy itself.
    assert metrics["loss/policy"] == pytest.approx(0, abs=1e-6)
    assert metrics["loss/kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["policy/clip_fraction"] == 0 and metrics["optim/grad_norm"] > 0
    assert 0 <= metrics["policy/rollout_mismatch"] <= metrics["policy/rollout_mismatch_max"] < 1e-4
    assert run(trainer, prepared, step=1).metrics["loss/kl"] > 0


def test_rewards_see_the_token_ids_of_their_completions(build):
    trainer, prepared = build()
    tokenizer = trainer.policy.tokenizer

    def length(prompts, completions, *, completion_ids, question_id, **columns):
        assert completions == tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        assert len(question_id) == len(completion_ids) == 2 * 4  # M=2 x G=4
        return [float(len(ids)) for ids in completion_ids]

    trainer = dataclasses.replace(trainer, reward_functions={"vowels": length})
    for outcome in run(trainer, prepared).outcomes:
        assert (outcome.rewards_MG == outcome.lengths_MG).all()


def test_under_lora_only_adapters_move_and_the_kl_term_pulls_them_back(build):
    trainer, prepared = build(trainable="lora", lora_rank=4, beta=0.04, learning_rate=1e-3)
    assert trainer.reference is trainer.policy.model
    named = dict(trainer.policy.model.named_parameters())
    start = {name: parameter.detach().clone() for name, parameter in named.items()}
    digest = weights_digest(trainer.policy)
    with count_encodes(trainer.policy.model) as count:
        metrics = [run(trainer, prepared, step).metrics for step in range(2)]
    assert count.videos == 2 * 4  # the reference shares the features
    moved = {name for name, parameter in named.items() if (parameter != start[name]).any()}
    assert moved == {name for name in named if ".lora_" in name}
    assert weights_digest(trainer.policy) == digest
    assert metrics[1]["loss/kl"] > 0 and metrics[1]["optim/grad_norm"] > 0
    # B is 0 at first, so that A has no gradient yet; with adapters off it is the copy's equal.
    copied, _ = build(trainable="language", beta=0.04)
    rollouts = roll_out(
        trainer.policy, prepared[:1], sampler=trainer.sampler, sampling=Sampling(2, 6),
        seed=0, step=0,
    )  # fmt: skip
    batch = MicroBatch(rollouts, torch.ones(4))
    features = [rollout.features for rollout in rollouts]
    asked = (trainer.policy, batch.prompts, features, batch.tokens_BGL, batch.lengths_BG)
    with torch.no_grad(), adapters_off(trainer.reference):
        one = completion_logprobs_batch(*asked, model=trainer.reference)
    with torch.no_grad():
        other = completion_logprobs_batch(*asked, model=copied.reference)
    assert torch.equal(one.logprobs, other.logprobs)


def test_more_updates_per_rollout_clip(build):
    trainer, prepared = build(updates_per_rollout=3, learning_rate=0.01, beta=0.0)
    assert run(trainer, prepared).metrics["policy/clip_fraction"] > 0


@pytest.mark.parametrize("objective", ["grpo", "dr_grpo", "dapo"])
def test_micro_batches_change_nothing(build, objective):
    results = []
    for size in (1, 2):
        trainer, prepared = build(questions_per_micro_batch=size, objective=objective)
        results.append((run(trainer, prepared).metrics, weights(trainer)))
    for name in results[0][0]:
        np.testing.assert_allclose(results[0][0][name], results[1][0][name], atol=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=2e-6)


def test_a_fixed_cache_and_split_attention_change_nothing(build):
    results = []
    for options in ({"decode": "dynamic", "logprobs": "plain"}, {"decode": "static"}):
        trainer, prepared = build(**options)
        result = run(trainer, prepared)
        results.append((result.metrics, [outcome.texts for outcome in result.outcomes]))
    assert results[0][1] == results[1][1]
    for name in results[0][0]:
        np.testing.assert_allclose(results[0][0][name], results[1][0][name], atol=1e-5)


def test_completions_do_not_depend_on_the_batch(build):
    trainer, prepared = build()
    options = {
        "sampler": trainer.sampler,
        "sampling": Sampling(3, 6, top_p=0.95),
        "seed": 0,
        "step": 4,
    }
    together = roll_out(trainer.policy, prepared, **options)
    texts = [rollout.texts for rollout in together]
    assert texts == [
        roll_out(trainer.policy, [variant], **options)[0].texts for variant in prepared
    ]
    more = roll_out(
        trainer.policy, prepared, **(options | {"sampling": Sampling(4, 6, top_p=0.95)})
    )
    assert [rollout.texts[:3] for rollout in more] == texts


def test_every_key_of_a_completion_gives_other_draws(build):
    trainer, (variant, *_) = build()
    record = dataclasses.replace(variant.question.record, question_id="another")
    of_another = dataclasses.replace(variant.question, record=record)

    def texts(variant, **keys):
        options = {"seed": 0, "step": 0} | keys
        sampling = Sampling(3, 8, sampling_temperature=3.0)
        (rollout,) = roll_out(
            trainer.policy, [variant], sampler=trainer.sampler, sampling=sampling, **options
        )
        return rollout.texts

    found = [
        texts(variant),
        texts(variant, seed=1),
        texts(variant, step=1),
        texts(dataclasses.replace(variant, variant=1)),  # of the same frames
        texts(dataclasses.replace(variant, question=of_another)),
    ]
    assert texts(variant) == found[0]
    assert len({text for texts in found for text in texts}) == 5 * 3


def test_zero_std_groups_stay_in_the_denominator(build):
    trainer, prepared = build(beta=0.0)

    def only_first(prompts, completions, *, question_id, **columns):
        first = prepared[0].question.record.question_id
        values = vowels(prompts, completions)
        return [v if q == first else 0.0 for v, q in zip(values, question_id, strict=True)]

    both = dataclasses.replace(trainer, reward_functions={"vowels": only_first})
    norm_both = run(both, prepared).metrics
    assert norm_both["group/zero_std_fraction"] == 0.5
    alone, _ = build(beta=0.0, questions_per_step=1)
    alone = dataclasses.replace(alone, reward_functions={"vowels": only_first})
    norm_alone = run(alone, prepared[:2]).metrics["optim/grad_norm"]
    assert norm_both["optim/grad_norm"] == pytest.approx(norm_alone / 2, rel=1e-4)


def test_without_any_signal_nothing_is_learned_but_the_step_is_counted(build):
    trainer, prepared = build(beta=0.0, questions_per_micro_batch=1)
    flat = dataclasses.replace(
        trainer, reward_functions={"vowels": lambda prompts, **columns: [1.0] * len(prompts)}
    )
    before = weights(flat)
    metrics = run(flat, prepared).metrics
    assert metrics["group/zero_std_fraction"] == 1 and metrics["optim/grad_norm"] == 0
    assert metrics["policy/entropy"] > 0
    assert (weights(flat) == before).all()


def test_a_batch_that_is_not_finite_is_written_whole(build, tmp_path):
    # Without a std to divide by, the weight of the reward goes beyond float32.
    trainer, prepared = build(
        objective="dr_grpo", rewards={"vowels": 1e100}, questions_per_micro_batch=1
    )
    folder = tmp_path / "nonfinite" / "step-000005"
    before = weights(trainer)
    with pytest.raises(NonFiniteError, match=f"not finite for question .* batch is in {folder}"):
        train_step(trainer, prepared, 4, Stopwatch(torch.device("cpu")), nonfinite_folder=folder)
    assert (weights(trainer) == before).all()

    described = json.loads((folder / "rank-0.json").read_text())
    assert (described["step"], described["rank"]) == (5, 0)
    assert "not finite" in described["reason"]
    tensors = load_file(folder / "rank-0.safetensors")
    assert len(described["groups"]) == 2 and len(prepared) == 2 * 2
    for group, question in zip(described["groups"], (prepared[:2], prepared[2:]), strict=True):
        record = question[0].question.record
        assert (group["question_id"], group["solution"]) == (record.question_id, record.solution)
        assert group["prompts"] == [variant.prompt.text for variant in question]
        number = group["group"]
        tokens_MGL = tensors[f"{number}/tokens_MGL"]
        lengths_MG = tensors[f"{number}/lengths_MG"]
        assert tokens_MGL.shape[:2] == lengths_MG.shape == (2, 4)
        assert lengths_MG.tolist() == group["lengths"]
        # The tokens are those of the texts.
        decoded = trainer.policy.tokenizer.decode(
            tokens_MGL[1, 2, : lengths_MG[1, 2]], skip_special_tokens=True
        )
        assert group["completions"][1][2] == decoded
        for name in ("policy", "old", "reference"):
            assert tensors[f"{number}/{name}_logprobs_MGL"].shape == tokens_MGL.shape
            assert group["finite_logprobs"][name] is True
        assert tensors[f"{number}/advantages_MG"].abs().max() > 1e38
        assert tensors[f"{number}/rewards_MG"].tolist() == group["rewards"]


def test_without_a_folder_the_error_still_names_the_question(build):
    trainer, prepared = build(objective="dr_grpo", rewards={"vowels": 1e100}, beta=0.0)
    with pytest.raises(NonFiniteError, match=r"not finite for question q\d, q\d; the optimiser"):
        run(trainer, prepared)


def taking_turns(count):
    """Stand-ins for so many processes: threads of which one runs at a time, until all gather."""
    board, baton, meeting = [None] * count, threading.Lock(), threading.Barrier(count, timeout=60)

    class Thread(Processes):
        def gather(self, item):
            board[self.rank] = item
            baton.release()
            meeting.wait()
            items = list(board)
            meeting.wait()  # nobody writes the next item before all have read
            baton.acquire()
            return items

    return [Thread(rank, count, torch.device("cpu")) for rank in range(count)], baton


def test_two_processes_learn_together_what_one_does(build):
    """3 questions of M=2 are 3 variants a process: the second question lies on both."""
    shape = {"questions_per_step": 3, "questions_per_micro_batch": 1}

    def learn(trainer, prepared):
        caught = caught_gradients(trainer.policy.model)
        metrics = run(trainer, prepared).metrics
        return metrics, {name: sum(gradients) for name, gradients in caught.items()}

    one, gradients_of_one = learn(*build(**shape))
    assert one["optim/grad_norm"] > 0 and one["group/between_variant_share"] > 0
    processes, baton = taking_turns(2)

    def learn_in_turn(process):
        with baton:
            trainer, prepared = build(**shape)
            own = prepared[3 * process.rank : 3 * process.rank + 3]
            return learn(dataclasses.replace(trainer, processes=process), own)

    with ThreadPoolExecutor(2) as pool:
        (first, of_first), (second, of_second) = pool.map(learn_in_turn, processes)
    for name in ("loss/total", "loss/kl", "reward/mean", "group/reward_std", "policy/entropy"):
        assert first[name] == second[name] == pytest.approx(one[name], abs=1e-5), name
    for name, wanted in gradients_of_one.items():
        error = (of_first[name] + of_second[name] - wanted).norm()
        assert error <= 1e-4 * wanted.norm() + 1e-6 * one["optim/grad_norm"], name


# --- textbook GRPO ------------------------------------------------------------------------------


def textbook_grpo(logprobs, old, reference, rewards, *, epsilon, beta):
    """Eqs. 1 and 2 on one group: a list of 1-D tensors for each, and G rewards."""
    mean = sum(rewards) / len(rewards)
    std = (sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) ** 0.5
    gain = divergence = 0.0
    for i, reward in enumerate(rewards):
        advantage = (reward - mean) / (std + 1e-4)
        ratio = torch.exp(logprobs[i] - old[i])
        clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
        gain += torch.minimum(ratio * advantage, clipped * advantage).mean() / len(rewards)
        difference = reference[i] - logprobs[i]
        divergence += (difference.exp() - difference - 1).mean() / len(rewards)
    return -gain + beta * divergence, divergence.item()


def textbook_step(model, reference, groups, config):
    """Two updates on one rollout; returns each update's loss, KL and gradient."""

    def logprobs_of(model, group):
        rows = zip(group.tokens_GL, group.lengths_G.tolist(), strict=True)
        return [
            textbook_logprobs(
                model,
                group.prepared.prompt,
                tokens[:length],
                rule=config.position_rule,
                temperature=config.sampling_temperature,
            )
            for tokens, length in rows
        ]

    with torch.no_grad():
        old = [logprobs_of(model, group) for group in groups]
        references = [logprobs_of(reference, group) for group in groups]
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=config.learning_rate, weight_decay=0.0)
    updates = []
    for _ in range(config.updates_per_rollout):
        loss = kl = 0.0
        for q, group in enumerate(groups):
            rewards = vowels(None, group.texts)
            share, divergence = textbook_grpo(
                logprobs_of(model, group),
                old[q],
                references[q],
                rewards,
                epsilon=config.epsilon,
                beta=config.beta,
            )
            loss, kl = loss + share / len(groups), kl + divergence / len(groups)
        optimizer.zero_grad()
        loss.backward()
        gradient = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        updates.append((loss.item(), kl, gradient))
        torch.nn.utils.clip_grad_norm_(learning, config.max_grad_norm)
        optimizer.step()
    return updates


@pytest.mark.parametrize(
    ("rule", "trainable"),
    [
        ("published", "all"),
        ("transformers", "language"),
        pytest.param("published", "language", marks=pytest.mark.long),
        pytest.param("transformers", "all", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_without_variants_a_step_is_textbook_grpo(build, family, rule, trainable):
    """M=1, `none`, G=8: losses, KL, gradients and moved weights of two updates on a rollout.

    The textbook is row by row, on pixels, with full logits; it shares the rollout and nothing else.
    """
    path = str(lab_model_path(family))
    trainer, prepared = build(
        model=path,
        variants="none",
        num_variants=1,
        num_generations=8,
        trainable=trainable,
        position_rule=rule,
        beta=0.5,
        learning_rate=1e-3,
        updates_per_rollout=2,
    )
    learning = {n for n, p in trainer.policy.model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # else the KL term of the first update is 0; a frozen part stays shared
        for name, parameter in trainer.reference.named_parameters():
            if name in learning:
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    groups = the_steps_rollout(trainer, prepared)
    model, reference = load_policy(path).model, load_policy(path).model
    reference.load_state_dict(trainer.reference.state_dict())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning)
    start = weights(trainer)

    caught = caught_gradients(trainer.policy.model)
    result = run(trainer, prepared)
    updates = textbook_step(model, reference, groups, trainer.config)

    assert result.outcomes[0].texts == (groups[0].texts,)
    losses, divergences, gradients = zip(*updates, strict=True)
    assert result.metrics["loss/total"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert result.metrics["loss/kl"] == pytest.approx(np.mean(divergences), rel=1e-4)
    assert min(divergences) > 1e-3 and result.metrics["policy/clip_fraction"] > 0
    norms = [torch.nn.utils.get_total_norm(g.values()).item() for g in gradients]
    assert result.metrics["optim/grad_norm"] == pytest.approx(np.mean(norms), rel=1e-4)
    assert any("visual.blocks" in name for name in gradients[0]) == (trainable == "all")
    for update, gradient in enumerate(gradients):
        for name, wanted in gradient.items():
            assert len(caught[name]) == 2, name
            error = (caught[name][update] - wanted).norm()
            assert error <= 1e-4 * wanted.norm() + 1e-6 * norms[update], (update, name)
    wanted = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (weights(trainer) - wanted).norm() <= 1e-2 * (wanted - start).norm()
