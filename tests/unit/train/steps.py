"""What tests of a training step share: a lab policy on random frames, and textbook log-probs."""

import pytest
import torch

from strive.lab.models import lab_model_path
from strive.models.loading import load_policy
from strive.train.data import TrainingData
from strive.train.loop import build_trainer
from strive.train.processes import start_processes
from strive.train.rollout import prepare_variants, roll_out, sampling_of
from strive.train.step import train_step
from strive.train.timing import Stopwatch


def vowels(prompts, completions, **columns):
    return [sum(text.count(letter) for letter in "aeiou") / 10 for text in completions]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def build(make_config):
    def build(**changes):
        options = {
            "model": str(lab_model_path("qwen2_5_vl")),
            "rewards": {"vowels": 1.0},
            "questions_per_micro_batch": 2,
            # A warmed-up policy is sure of its answers; tests need completions that differ.
            "sampling_temperature": 3.0,
            "top_p": 1.0,
        } | changes
        config = make_config(**options)
        policy = load_policy(config.model, position_rule=config.position_rule)
        trainer = build_trainer(config, policy, start_processes(), {"vowels": vowels})
        data = TrainingData(config)
        questions = [data.read(record, 0) for record in data.questions_of(0)]
        return trainer, prepare_variants(policy, questions, config)

    return build


def run(trainer, prepared, step=0):
    return train_step(trainer, prepared, step, Stopwatch(torch.device("cpu")))


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.policy.model.parameters()])


def textbook_logprobs(model, prompt, tokens, *, rule, temperature):
    """Log-probs of one completion from the whole model on pixels, one row, full logits."""
    video_mask_P = torch.from_numpy(prompt.video_mask_P)
    inputs = {
        "input_ids": torch.cat([torch.from_numpy(prompt.input_ids_P), tokens])[None],
        "pixel_values_videos": prompt.pixel_values,
        "video_grid_thw": torch.tensor([prompt.video_grid_thw]),
    }
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if rule == "transformers":  # the model's own positions
        types = torch.cat([video_mask_P * 2, torch.zeros_like(tokens)])
        inputs["mm_token_type_ids"] = types[None]
        if model.config.model_type == "qwen2_5_vl":
            inputs["second_per_grid_ts"] = torch.tensor([prompt.seconds_per_slice])
    else:
        after = (prompt.next_position + torch.arange(len(tokens))).expand(3, -1)
        positions = torch.cat([torch.from_numpy(prompt.position_ids_3P), after], dim=1)
        inputs["position_ids"] = positions[:, None]
    logits = model(**inputs).logits[0, len(prompt.input_ids_P) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, tokens[:, None])[:, 0]


def the_steps_rollout(trainer, prepared):
    """What the first step will sample: draws follow from the weights and the seed alone."""
    return roll_out(
        trainer.policy,
        prepared,
        sampler=trainer.sampler,
        sampling=sampling_of(trainer.config),
        seed=trainer.config.seed,
        step=0,
    )


def caught_gradients(model):
    """The gradients of each backward pass, by parameter name, as they come."""
    caught = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            caught[name] = []
            parameter.register_hook(lambda grad, name=name: caught[name].append(grad.clone()))
    return caught
