"""A step of TRL's GRPOTrainer on the same model and text, with images in place of the video.

TRL takes no video. Each prompt holds as many images as the video has slices, each of a slice's size
in tokens, so that prompts are of (nearly) the same length; a group is M x G completions of one
prompt. Everything runs inside the trainer: a callback lets it make one step at a time.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from bench.step_model import (
    FRAME_SIZE,
    NUM_FRAMES,
    PROMPT_TEMPLATE,
    VISION,
    Setup,
    make_question,
    vowels,
)
from bench.step_rows import freeze
from strive.answers import build_question
from strive.models.vision import EncodeCount, count_encodes

NUM_IMAGES = NUM_FRAMES // VISION["temporal_patch_size"]
ENOUGH_STEPS = 1000


class TimedTrainer(GRPOTrainer):
    """Notes how long generating takes; it is one call inside a step."""

    rollout_seconds = 0.0

    def _generate(self, prompts: list[Any]) -> Any:
        started = time.perf_counter()
        found = super()._generate(prompts)
        self.rollout_seconds = time.perf_counter() - started
        return found


class OneStepAtATime(TrainerCallback):
    """Waits for a command before each step and answers after it; stops when none comes."""

    def __init__(
        self,
        commands: Iterator[tuple[int, int]],
        answer: Callable[[dict[str, Any]], None],
    ) -> None:
        self.commands, self.answer = commands, answer
        self.trainer: TimedTrainer | None = None
        self.counts: list[EncodeCount] = []
        self.started = 0.0
        self.pending: tuple[int, int] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        _, num_tokens = self.pending or next(self.commands)
        self.trainer.generation_config.max_new_tokens = num_tokens
        for count in self.counts:
            count.videos = 0
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        whole = time.perf_counter() - self.started
        rollout = self.trainer.rollout_seconds
        lengths = self.trainer._metrics["train"]["completions/mean_length"]
        self.answer(
            {
                "seconds": {
                    "rollout": rollout,
                    "logprob_backward": whole - rollout,
                    "step": whole,
                },
                "encodes": sum(count.videos for count in self.counts) / NUM_IMAGES,
                "completion_tokens": lengths[-1],
            }
        )
        # Asked for here and not at the next step's beginning, so that training can end.
        self.pending = next(self.commands, None)
        control.should_training_stop = self.pending is None


def run_trainer(
    setup: Setup,
    ready: Callable[[], None],
    commands: Iterator[tuple[int, int]],
    answer: Callable[[dict[str, Any]], None],
) -> None:
    """Set a trainer up, call `ready`, then make one step for each (number, tokens) asked for."""
    group = setup.num_variants * setup.num_generations
    turns = OneStepAtATime(commands, answer)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        trainer = TimedTrainer(
            model=setup.folder,
            reward_funcs=vowels,
            args=_arguments(setup, group, folder),
            train_dataset=_dataset(),
            callbacks=[turns],
        )
        freeze(trainer.model, setup.trainable)
        turns.trainer = trainer
        models = [trainer.model, trainer.ref_model]
        turns.counts = [stack.enter_context(count_encodes(model)) for model in models]
        ready()
        trainer.train()


def _arguments(setup: Setup, group: int, folder: str) -> GRPOConfig:
    return GRPOConfig(
        output_dir=folder,
        model_init_kwargs={"dtype": "float32"},
        per_device_train_batch_size=group,
        num_generations=group,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        max_completion_length=128,
        max_steps=ENOUGH_STEPS,
        beta=setup.beta,
        loss_type="grpo",
        temperature=setup.sampling_temperature,
        top_p=setup.top_p,
        top_k=0,
        learning_rate=setup.learning_rate,
        lr_scheduler_type="constant",
        generation_kwargs=_never_end(setup),
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _never_end(setup: Setup) -> dict[str, Any]:
    """End tokens out of reach, so that completions are of full length."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(setup.folder)
    tokenizer = AutoTokenizer.from_pretrained(setup.folder)
    never = [config.image_token_id, config.video_token_id, tokenizer.eos_token_id]
    return {"eos_token_id": config.text_config.vocab_size, "suppress_tokens": never}


def _dataset(num_rows: int = 16) -> Dataset:
    height, width = FRAME_SIZE
    rng = np.random.default_rng(0)
    prompts, images = [], []
    for number in range(num_rows):
        text = build_question(make_question(number, 1).record, PROMPT_TEMPLATE)
        prompts.append([{"role": "user", "content": text}])
        frames = rng.integers(0, 256, (NUM_IMAGES, height, width, 3), dtype=np.uint8)
        images.append([Pictures.fromarray(frame) for frame in frames])
    turn = {"role": Value("string"), "content": Value("string")}
    features = Features({"prompt": List(turn), "images": List(Image())})
    return Dataset.from_dict({"prompt": prompts, "images": images}, features=features)
