"""Several runs in turn by one group of processes, so that interpreters start once.

    torchrun --nproc_per_node=2 in_turn.py ROOT

reads ROOT/runs.json ({name: settings}) and leaves ROOT/NAME for each. Then processes with
completions of other lengths share one ZeRO-3 step, which must end as one process ends it.
"""

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from strive.configs.schema import TrainConfig
from strive.models.logprobs import token_logprobs
from strive.train.engine import Engine
from strive.train.loop import train
from strive.train.processes import start_processes

WORDS, WIDTH, STEPS = 11, 8, 3
LENGTHS = (3, 14)
"""Tokens of each process: at 4 tokens a chunk 1 chunk and 4 chunks."""


class Tiny(nn.Module):
    """Has a head as policies have."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(WIDTH, WIDTH)
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)


def tokens(rank, step):
    generator = torch.Generator().manual_seed(100 * rank + step)
    inputs = torch.randn(LENGTHS[rank], WIDTH, generator=generator)
    return inputs, torch.randint(0, WORDS, (LENGTHS[rank],), generator=generator)


def negative_logprob(model, inputs, targets, reference=None):
    """A loss with a reference's log-probs in it, in chunks of 4 tokens."""

    def logprobs(model):
        hidden = torch.tanh(model.body(inputs))
        return token_logprobs(
            model.lm_head, hidden, targets, sampling_temperature=1.0, logits_per_chunk=4 * WORDS
        )[0]

    with torch.no_grad():
        far = torch.zeros(()) if reference is None else reference(logprobs)
    return -logprobs(model).sum() + (logprobs(model) - far).exp().sum() / 10


def other_lengths(preset):
    """Learn on all processes' tokens, and on one process alone without DeepSpeed; compare."""
    processes = start_processes()
    torch.manual_seed(0)
    model = Tiny()
    alone, frozen = copy.deepcopy(model), copy.deepcopy(model)
    policy = SimpleNamespace(model=model, dtype=torch.float32)
    config = TrainConfig(deepspeed=preset, max_grad_norm=1e9)
    engine = Engine(policy, processes, config, with_reference=True)
    held = engine.reference
    optimizer = torch.optim.AdamW(alone.parameters(), lr=0.01, weight_decay=0.0)
    for step in range(STEPS):
        for part in range(3):
            inputs, targets = tokens(processes.rank, 10 * step + part)

            def compute(inputs=inputs, targets=targets):
                return negative_logprob(
                    model,
                    inputs,
                    targets,
                    lambda logprobs: engine.reference_forward(lambda: logprobs(held)),
                )

            engine.backward(engine.forward(compute), is_last=part == 2, name="question 0")
            for rank in range(processes.world_size):
                inputs, targets = tokens(rank, 10 * step + part)
                negative_logprob(
                    alone, inputs, targets, lambda logprobs: logprobs(frozen)
                ).backward()
        norm = engine.step(0.01)
        expected = nn.utils.get_total_norm([p.grad for p in alone.parameters()]).item()
        assert abs(norm - expected) < 1e-4 * expected, (norm, expected)
        optimizer.step()
        optimizer.zero_grad()
        with engine.gathered():
            for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def main(root):
    for name, settings in json.loads((root / "runs.json").read_text()).items():
        train(TrainConfig(**settings), run_dir=root / name)
    if start_processes().world_size == len(LENGTHS):
        other_lengths(str(root / "all_partitioned.json"))
        (root / "other_lengths").touch()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
