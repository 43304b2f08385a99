"""Our rewards, advantages and losses equal TRL's own, run by a real `GRPOTrainer` on a tiny model.

TRL does everything itself: it pads, scores, normalises, computes old and reference log-probs and
then its loss. We compute the same from the same model with a log-softmax of our own, so that the
gradients of all parameters can be compared as well. Completions are given, not sampled.
"""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import get_soft_overlong_punishment

from strive.lab.models import lab_model_path
from strive.train.advantages import group_advantages
from strive.train.loss import OBJECTIVES, SURROGATES, Denominators, LossRule, policy_loss
from strive.train.rewards import compute_rewards

NUM_VARIANTS, NUM_GENERATIONS = 2, 4
POOL = NUM_VARIANTS * NUM_GENERATIONS
MAX_NEW_TOKENS, TEMPERATURE = 9, 0.7
CLIP = {"epsilon": 0.1, "epsilon_high": 0.25, "beta": 0.3}
PROMPTS = ("Which colour was it at last?", "Why?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A two-layer text model; TRL opens its reference model from the same folder."""
    folder = tmp_path_factory.mktemp("text-model")
    tokenizer = AutoTokenizer.from_pretrained(lab_model_path("qwen2_5_vl"))
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    move(model, 0.1, seed=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def move(model, by, seed):
    """Noise on every weight, as updates would leave it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)


def given_completions(prompts, trainer):
    """Uneven completions, each with an end token, for prompts of uneven lengths."""
    tokenizer = trainer.processing_class
    rng = np.random.default_rng(len(prompts))
    lengths = [1, MAX_NEW_TOKENS, *rng.integers(1, MAX_NEW_TOKENS, len(prompts) - 2).tolist()]
    completions = [
        [*rng.integers(0, 200, length - 1).tolist(), tokenizer.eos_token_id] for length in lengths
    ]
    prompt_ids = tokenizer(prompts)["input_ids"]
    return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None}


def accuracy(prompts, completions, *, accuracy, **columns):
    return accuracy


def style(prompts, completions, *, style, **columns):
    return style


def make_trainer(folder, output_dir, monkeypatch, reward_funcs, *, pool=POOL, **options):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    config = GRPOConfig(
        output_dir=str(output_dir),
        num_generations=pool,
        max_completion_length=MAX_NEW_TOKENS,
        temperature=TEMPERATURE,
        num_iterations=2,  # so that TRL computes the old log-probs
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        **options,
    )
    return GRPOTrainer(
        model=Qwen2ForCausalLM.from_pretrained(folder),
        reward_funcs=reward_funcs,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": list(PROMPTS)}),
        processing_class=tokenizer,
        rollout_func=given_completions,
    )


def score(trainer, columns):
    """TRL's rollout, rewards, advantages, old and reference log-probs of whole groups."""
    count = len(next(iter(columns.values())))
    rows = [
        {"prompt": PROMPTS[i // POOL % 2], **{name: values[i] for name, values in columns.items()}}
        for i in range(count)
    ]
    trainer.model.train()
    return trainer._generate_and_score_completions(rows)


def own_logprobs(model, inputs):
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    start = inputs["prompt_ids"].shape[1] - 1
    logits = model(input_ids=ids, attention_mask=attention).logits[:, start:-1]
    chosen = inputs["completion_ids"][..., None]
    return (logits / TEMPERATURE).log_softmax(dim=-1).gather(2, chosen)[..., 0]


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def their_loss_and_gradients(trainer, inputs, micro_batches):
    trainer.current_gradient_accumulation_steps = micro_batches
    size = len(inputs["advantages"]) // micro_batches
    total = 0.0
    for number in range(micro_batches):
        rows = slice(number * size, (number + 1) * size)
        part = {
            name: value[rows] if torch.is_tensor(value) and value.dim() else value
            for name, value in inputs.items()
        }
        loss = trainer._compute_loss(trainer.model, part)
        loss.backward()
        total += loss.item()
    return total, gradients(trainer.model)


# TRL's options, our rule's, and the range of clips.
LOSSES = {
    "grpo": ({"loss_type": "grpo"}, {}, CLIP),
    "dr_grpo": ({"loss_type": "dr_grpo"}, {"objective": "dr_grpo"}, CLIP),
    "dapo": ({"loss_type": "dapo"}, {"objective": "dapo"}, CLIP),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        {"ratio": "geometric"},
        CLIP | {"epsilon": 0.02, "epsilon_high": 0.03},
    ),
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.2},
        {"surrogate": "cispo", "objective": "dapo", "cispo_cap": 1.2},
        {"beta": 0.3},
    ),
    "sapo": (
        {"loss_type": "sapo", "sapo_temperature_pos": 0.8, "sapo_temperature_neg": 1.3},
        {"surrogate": "sapo", "sapo_temperatures": (0.8, 1.3)},
        {"beta": 0.3},
    ),
}


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("correct_kl_bias", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_equal_trl(
    folder, tmp_path, monkeypatch, name, correct_kl_bias, micro_batches
):
    options, rule, clip = LOSSES[name]
    objective = rule.get("objective", "grpo")
    divide_by_std = objective != "dr_grpo"
    trainer = make_trainer(
        folder,
        tmp_path,
        monkeypatch,
        [accuracy],
        scale_rewards="group" if divide_by_std else "none",
        use_bias_correction_kl=correct_kl_bias,
        per_device_train_batch_size=2 * POOL // micro_batches,
        gradient_accumulation_steps=micro_batches,
        **clip | options,
    )
    model = trainer.model
    move(trainer.ref_model, 0.03, seed=2)
    rewards_N = np.random.default_rng(3).choice([0.0, 0.5, 1.0, 2.0], 2 * POOL)
    inputs = score(trainer, {"accuracy": rewards_N.tolist()})
    with torch.no_grad():
        old_NL = own_logprobs(model, inputs)
        reference_NL = own_logprobs(trainer.ref_model, inputs)
    move(model, 0.02, seed=4)  # what an update since the rollout would do

    their_loss, their_gradients = their_loss_and_gradients(trainer, inputs, micro_batches)

    pools_QMG = rewards_N.reshape(2, NUM_VARIANTS, NUM_GENERATIONS)
    advantages_N = np.concatenate(
        [group_advantages(pool, divide_by_std=divide_by_std)[0].ravel() for pool in pools_QMG]
    )
    mask_NL = inputs["completion_mask"]
    loss, metrics = policy_loss(
        own_logprobs(model, inputs),
        old_logprobs_NL=old_NL,
        reference_logprobs_NL=reference_NL,
        advantages_N=torch.from_numpy(advantages_N),
        mask_NL=mask_NL,
        denominators=Denominators(2 * POOL, int(mask_NL.sum()), MAX_NEW_TOKENS),
        rule=LossRule(
            OBJECTIVES[objective],
            SURROGATES[rule.get("surrogate", "clip")],
            correct_kl_bias=correct_kl_bias,
            **clip,
            **{key: value for key, value in rule.items() if key not in ("objective", "surrogate")},
        ),
    )
    loss.backward()
    ours = gradients(model)

    assert len(set(mask_NL.sum(1).tolist())) > 4 and (inputs["prompt_mask"] == 0).any()
    if name != "sapo":  # which clips nothing
        assert 0.05 < metrics["clipped_tokens"] / metrics["tokens"] < 0.9
    assert metrics["kl"] > 1e-3
    assert loss.item() == pytest.approx(their_loss, rel=1e-5)
    assert ours.keys() == their_gradients.keys()
    for weight, gradient in their_gradients.items():
        assert gradient.norm() > 1e-5, weight
        assert (ours[weight] - gradient).norm() <= 1e-5 * gradient.norm(), weight
    if micro_batches == 1 and name in ("grpo", "dr_grpo", "dapo"):
        logged = trainer._metrics["train"]
        share = metrics["clipped_tokens"] / metrics["tokens"]
        assert share.item() == pytest.approx(logged["clip_ratio/region_mean"][-1])
        if objective == "dapo":  # whose KL term is the plain mean over tokens that TRL logs
            assert metrics["kl"].item() == pytest.approx(logged["kl"][-1], rel=1e-5)


NONE = [None] * POOL
GROUPS = {
    "mixed": ([1, 0, 1, 1, 0, 0, 1, 0], [0.5, 1, None, 0, 1, 1, 0, None]),
    "zero-std": ([1] * POOL, [0.3] * POOL),
    "one row without any reward": ([0, None, 1, 1, 0, 0, 0, 1], [1, None, 1, 0, 1, 0, 1, 0]),
    "no reward at all": (NONE, NONE),
    "one known reward": ([None, None, 1, *[None] * 5], NONE),
    "equal variants": ([1, 0, 1, 0] * 2, [0.25] * POOL),
}


@pytest.mark.parametrize("scale_rewards", ["group", "none"])
@pytest.mark.parametrize(("grouping", "pool"), [("joint", POOL), ("per_variant", NUM_GENERATIONS)])
def test_rewards_and_advantages_equal_trl(
    folder, tmp_path, monkeypatch, grouping, pool, scale_rewards
):
    """TRL's `num_generations` = M x G is our joint pool; `none` is Dr.GRPO's numerator.

    The same user functions serve both, None and all; one is TRL's own and reads the token ids.
    """
    overlong = get_soft_overlong_punishment(MAX_NEW_TOKENS, 6)
    weights = {"accuracy": 1.0, "style": 0.7, "overlong": 0.2}
    functions = {"accuracy": accuracy, "style": style, "overlong": overlong}
    if grouping == "joint":  # overlong applies to every row; without it some have no reward at all
        del weights["overlong"], functions["overlong"]
    trainer = make_trainer(
        folder,
        tmp_path,
        monkeypatch,
        list(functions.values()),
        pool=pool,
        scale_rewards=scale_rewards,
        reward_weights=list(weights.values()),
        per_device_train_batch_size=len(GROUPS) * POOL,
    )
    columns = {
        "accuracy": [value for group in GROUPS.values() for value in group[0]],
        "style": [value for group in GROUPS.values() for value in group[1]],
    }
    inputs = score(trainer, columns)

    lengths_N = inputs["completion_mask"].sum(1).tolist()
    ids = [row[:n] for row, n in zip(inputs["completion_ids"].tolist(), lengths_N, strict=True)]
    totals_N, _ = compute_rewards(
        functions,
        weights,
        prompts=[""] * len(ids),
        completions=trainer.processing_class.batch_decode(ids, skip_special_tokens=True),
        columns=columns | {"completion_ids": ids},
    )
    ours_QMG = np.stack(
        [
            group_advantages(rewards_MG, grouping=grouping, divide_by_std=scale_rewards == "group")[
                0
            ]
            for rewards_MG in totals_N.reshape(-1, NUM_VARIANTS, NUM_GENERATIONS)
        ]
    )
    np.testing.assert_allclose(ours_QMG.ravel(), inputs["advantages"].numpy(), atol=1e-5, rtol=1e-5)
    assert np.abs(ours_QMG[0]).max() > 0.5
