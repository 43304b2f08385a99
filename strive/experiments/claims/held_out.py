"""What judges a policy of the lab: test questions, variants of held-out ones, and the probe.

Training changes the language model alone, so what the vision tower sees of a question is computed
once a warm-up and serves every policy that began there. The same batches are asked as `evaluate`
asks, and the answers are the same to the last bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from strive.answers import extract_answer_or_text
from strive.choices import FramesMode
from strive.configs.load import load_config
from strive.configs.schema import EvaluateConfig, TrainConfig
from strive.evaluate.asking import choose_part, open_benchmark
from strive.evaluate.benchmarks import parse_spec
from strive.evaluate.items import Failure, Item
from strive.evaluate.runner import OpenedBatch, ask_batch, open_batch, read_batch
from strive.experiments.claims.plan import PERMUTED, SIGLIP2
from strive.experiments.evaluating import EVALUATION_FRAMES, MAX_ANSWER_TOKENS
from strive.experiments.workspace import LAB_TEMPLATE, Workspace
from strive.models.decoding import Decoder
from strive.models.family import VisionFeatures
from strive.models.inputs import PromptInputs
from strive.models.loading import Policy
from strive.models.sampling import Sampling
from strive.models.vision import encode_videos
from strive.records import VideoFrames
from strive.train.data import TrainingData
from strive.train.engine import Engine
from strive.train.loss import load_loss
from strive.train.metrics import summarise
from strive.train.processes import start_processes
from strive.train.rewards import load_rewards
from strive.train.rollout import PreparedVariant, prepare_variants, roll_out, sampling_of
from strive.train.step import Trainer, judge_groups, with_advantages

BATCH_SIZE = 32
"""Part of the plan: the last bits of an answer's logits may depend on what shares its batch."""
NUM_AGREEMENT_QUESTIONS = 200
NUM_PROBE_QUESTIONS = 96
QUESTIONS_PER_PROBE = 12
"""Rolled out together, as in a training step."""


def without_pixels(prompts: Sequence[PromptInputs]) -> list[PromptInputs]:
    """The prompts alone: pixels are a thousand times what the language model reads."""
    return [replace(prompt, pixel_values=torch.empty(0)) for prompt in prompts]


class TestQuestions:
    """The lab's test split in one frames mode, opened for policies of one warm-up."""

    __test__ = False  # no test class

    def __init__(self, policy: Policy, workspace: Workspace, mode: FramesMode) -> None:
        config = EvaluateConfig(
            data_root=workspace.lab,
            prompt_template=LAB_TEMPLATE,
            num_frames=EVALUATION_FRAMES,
            frames_mode=mode,
            max_new_tokens=MAX_ANSWER_TOKENS,
            batch_size=BATCH_SIZE,
            dtype="float32",
            device="cpu",
            frames_cache=workspace.root / "frames",
        )
        self._asking = choose_part(open_benchmark(parse_spec("lab"), config))
        self._batches: list[OpenedBatch] = []
        items = self._asking.items
        for start in range(0, len(items), BATCH_SIZE):
            self._batches.append(self._open(policy, items[start : start + BATCH_SIZE]))
        self._asking.source.close()

    def _open(self, policy: Policy, items: Sequence[Item]) -> OpenedBatch:
        videos = read_batch(self._asking, items)
        asked = [(i, v) for i, v in zip(items, videos, strict=True) if isinstance(v, VideoFrames)]
        assert not any(isinstance(video, Failure) for video in videos), "clips of the lab decode"
        batch = open_batch(policy, asked, self._asking)
        features = encode_videos(policy, batch.prompts)
        seen = [(item, replace(video, frames_KHWC=video.frames_KHWC[:0])) for item, video in asked]
        return OpenedBatch(seen, without_pixels(batch.prompts), features)

    def grade(self, policy: Policy) -> NDArray[np.float64]:
        """Ask a policy all of them, greedily: their scores in [0, 1], by question id: [Q]."""
        samples = [s for batch in self._batches for s in ask_batch(policy, batch, self._asking)]
        return np.array([s.score for s in sorted(samples, key=lambda s: s.question_id)])


@dataclass(frozen=True)
class _OpenedVariants:
    """Variants of some questions as policies of one warm-up read them."""

    prepared: list[PreparedVariant]
    features: list[VisionFeatures]


class HeldOutVariants:
    """Variants of questions that no training sees, drawn as one sampler draws them."""

    def __init__(self, policy: Policy, workspace: Workspace, **settings: Any) -> None:
        self.config = held_out_config(workspace, **settings)
        self._data = TrainingData(self.config)
        self._policy = policy
        self._opened: dict[int, _OpenedVariants] = {}

    def open(self, part: int) -> _OpenedVariants:
        """Open one part of the questions: `questions_per_step` of them, by id."""
        if part not in self._opened:
            size = self.config.questions_per_step
            records = self._data.records[part * size : (part + 1) * size]
            variants = range(self.config.num_variants)
            questions = [self._data.read(record, part, variants) for record in records]
            prepared = prepare_variants(self._policy, questions, self.config)
            features = encode_videos(self._policy, [each.prompt for each in prepared])
            prompts = without_pixels([each.prompt for each in prepared])
            self._opened[part] = _OpenedVariants(
                [replace(v, prompt=p) for v, p in zip(prepared, prompts, strict=True)], features
            )
        return self._opened[part]

    def _parts(self, num_questions: int) -> range:
        """Whole parts of as many questions as there are, at most."""
        there = min(num_questions, len(self._data.records))
        return range(there // self.config.questions_per_step)

    def agreement(self, policy: Policy, num_questions: int = NUM_AGREEMENT_QUESTIONS) -> float:
        """Share of questions that get one and the same greedy answer from both variants."""
        decoder = Decoder(policy, mode=self.config.decode)
        sampling = Sampling(num_generations=1, max_new_tokens=self.config.max_new_tokens)
        same: list[bool] = []
        for part in self._parts(num_questions):
            opened = self.open(part)
            prompts = [each.prompt for each in opened.prepared]
            written = decoder(prompts, opened.features, sampling=sampling, greedy=True)
            answers = [extract_answer_or_text(texts[0]) for texts in written.texts]
            same += [a == b for a, b in zip(answers[::2], answers[1::2], strict=True)]
        return float(np.mean(same)) if same else float("nan")

    def probe(self, policy: Policy, num_questions: int = NUM_PROBE_QUESTIONS) -> dict[str, float]:
        """Roll out a fixed policy and measure its groups; no weight changes."""
        trainer = Trainer(
            config=self.config,
            policy=policy,
            reference=None,
            engine=cast(Engine, None),  # nothing is learned
            processes=start_processes(),
            reward_functions=load_rewards(list(self.config.rewards)),
            loss_rule=load_loss(self.config),
            sampler=Decoder(policy, mode=self.config.decode),
        )
        outcomes = []
        for part in self._parts(num_questions):
            opened = self.open(part)
            rollouts = roll_out(
                policy,
                opened.prepared,
                sampler=trainer.sampler,
                sampling=sampling_of(self.config),
                seed=0,
                step=part,
                features=opened.features,
            )
            judged = judge_groups(trainer, rollouts, {}, part, None)
            outcomes += with_advantages(trainer, list(judged.values()))
        return summarise(outcomes)


def held_out_config(workspace: Workspace, **settings: Any) -> TrainConfig:
    """A training configuration whose questions are the held-out ones."""
    options = {
        "data": (workspace.lab / "held_out.jsonl",),
        "cache": workspace.lab_cache,
        "questions_per_step": QUESTIONS_PER_PROBE,
        **settings,
    }
    return load_config(TrainConfig, ["lab_strive"], options=options)


SAMPLERS: Mapping[str, Mapping[str, Any]] = {
    "uniform, 1 x 8": {"variants": "none", "num_variants": 1, "num_generations": 8},
    "random, 2 x 4": {"variants": "random"},
    "deterministic, 2 x 4": {"variants": "deterministic"},
    "stochastic, 2 x 4": {"variants": "stochastic"},
    "importance, 2 x 4": {"scorer": SIGLIP2},
    "permuted, 2 x 4": {"scorer": PERMUTED},
}
"""What the fixed-checkpoint probe crosses with the checkpoints."""


class Judge:
    """Everything that policies of one warm-up are judged by, opened when it is first needed."""

    def __init__(self, start: Policy, workspace: Workspace) -> None:
        self._start, self._workspace = start, workspace
        self._tests: dict[FramesMode, TestQuestions] = {}
        self._variants: dict[str, HeldOutVariants] = {}

    def grades(self, policy: Policy, mode: FramesMode) -> NDArray[np.float64]:
        """A policy's scores on the test questions, by question id: [Q]."""
        if mode not in self._tests:
            self._tests[mode] = TestQuestions(self._start, self._workspace, mode)
        return self._tests[mode].grade(policy)

    def agreement(self, policy: Policy) -> float:
        """Cross-variant agreement of importance variants, in [0, 1]."""
        return self._drawn("importance, 2 x 4").agreement(policy)

    def probe(self, policy: Policy, checkpoint: str) -> list[dict[str, Any]]:
        """The measures of every sampler at one checkpoint; NaN is None."""
        return [
            {
                "checkpoint": checkpoint,
                "sampler": name,
                **{
                    metric: None if np.isnan(value) else float(f"{value:.6g}")
                    for metric, value in self._drawn(name).probe(policy).items()
                },
            }
            for name in SAMPLERS
        ]

    def _drawn(self, sampler: str) -> HeldOutVariants:
        if sampler not in self._variants:
            self._variants[sampler] = HeldOutVariants(
                self._start, self._workspace, **SAMPLERS[sampler]
            )
        return self._variants[sampler]
