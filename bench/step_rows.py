"""The step as Video-R1 and R1-V make it: full rows, one per completion, pixels repeated for each.

Written after what their trainers do (`generate` on inputs expanded G times, then policy and
reference over prompt + completion with pixel tensors repeated G times and logits at every
position); none of their code is here. Where they cost more than they must, this does not: all M
prompts share one call of `generate` and one of each log-prob pass, no key-value cache is kept in
the log-prob passes, and the video comes decoded and resized.
"""

import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.step_model import (
    NUM_FRAMES,
    PLAIN_TOKENS,
    PROMPT_TEMPLATE,
    SECONDS_PER_FRAME,
    SOURCE_FPS,
    Setup,
    make_question,
    vowels,
)
from bench.step_ours import timed
from strive.answers import build_question
from strive.groups import QuestionVariants
from strive.models.inputs import VideoFrames
from strive.models.vision import count_encodes

MAX_GRAD_NORM = 1.0
KL_CLAMP = 10.0


class SeparateRows:
    """Policy, reference and optimiser of one run, and its steps."""

    def __init__(self, setup: Setup) -> None:
        from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

        self.setup = setup
        self.processor = AutoProcessor.from_pretrained(setup.folder)
        options = {"dtype": torch.float32}
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(setup.folder, **options)
        freeze(self.model, setup.trainable)
        self.reference = Qwen2_5_VLForConditionalGeneration.from_pretrained(setup.folder, **options)
        self.reference.requires_grad_(False).eval()
        learning = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, lr=setup.learning_rate, weight_decay=0.01)

    def step(self, number: int, num_tokens: int) -> dict[str, Any]:
        """Make one whole step from frames in memory; returns seconds by part and counts."""
        question = make_question(number, self.setup.num_variants)
        marks = [time.perf_counter()]
        with ExitStack() as stack:
            counts = [stack.enter_context(count_encodes(m)) for m in (self.model, self.reference)]
            inputs = self.inputs(question)
            marks.append(time.perf_counter())
            completions_RL = self.generate(self.expanded(inputs), number, num_tokens)
            marks.append(time.perf_counter())
            self._learn(inputs, completions_RL)
            marks.append(time.perf_counter())
        inputs_s, rollout_s, learn_s = np.diff(marks).tolist()
        return {
            "seconds": {
                "inputs": inputs_s,
                "rollout": rollout_s,
                "logprob_backward": learn_s,
                "step": marks[-1] - marks[0],
            },
            "encodes": sum(count.videos for count in counts),
            "prompt_tokens": inputs["input_ids"].shape[1],
        }

    def logprobs(self, number: int, num_tokens: int) -> dict[str, float]:
        """Time the log-prob pass with logits at the completions' positions only."""
        setup = self.setup
        inputs = self.inputs(make_question(number, setup.num_variants))
        shape = (setup.num_variants * setup.num_generations, num_tokens)
        completions_RL = torch.from_numpy(
            np.random.default_rng(number).integers(0, PLAIN_TOKENS, shape)
        )
        rows = self.rows(inputs, completions_RL)

        def run() -> None:
            row_logprobs(self.model, rows, num_tokens, all_logits=False).sum().backward()

        return {"rows": timed(run, self.model)}

    def inputs(self, question: QuestionVariants) -> dict[str, Any]:
        """The processor's tensors for the M prompts of a question."""
        text = build_question(question.record, PROMPT_TEMPLATE)
        turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}
        prompt = self.processor.apply_chat_template([turn], add_generation_prompt=True)
        videos = [torch.from_numpy(v.frames_KHWC).permute(0, 3, 1, 2) for v in question.videos]
        found = self.processor(
            text=[prompt] * len(videos),
            videos=videos,
            video_metadata=[_metadata(video) for video in question.videos],
            do_sample_frames=False,
            do_resize=False,
            return_tensors="pt",
        )
        return dict(found)

    def rollout(self, number: int, num_tokens: int) -> dict[str, float]:
        """Time the rollout with `num_return_sequences`: transformers 5 then encodes a video once.

        The prompts' key-value caches are still computed G times.
        """
        inputs = self.inputs(make_question(number, self.setup.num_variants))
        started = time.perf_counter()
        self.generate(inputs, number, num_tokens, sequences=self.setup.num_generations)
        return {"rollout": time.perf_counter() - started}

    @torch.no_grad()
    def generate(
        self, inputs: dict[str, Any], seed: int, num_tokens: int, *, sequences: int = 1
    ) -> Tensor:
        """Sampled completions of each row of the inputs, none of which ends early."""
        setup, config = self.setup, self.model.config
        torch.manual_seed(seed)
        self.model.eval()
        ids_RT = self.model.generate(
            **inputs,
            do_sample=True,
            temperature=setup.sampling_temperature,
            top_p=setup.top_p,
            top_k=0,
            max_new_tokens=num_tokens,
            num_return_sequences=sequences,
            eos_token_id=config.text_config.vocab_size,
            pad_token_id=self.processor.tokenizer.pad_token_id,
        )
        self.model.train()
        completions_RL = ids_RT[:, inputs["input_ids"].shape[1] :]
        if completions_RL.shape[1] != num_tokens:
            raise SystemExit(f"completions of {completions_RL.shape[1]} tokens, not {num_tokens}")
        vision = torch.tensor([config.image_token_id, config.video_token_id])
        # A vision token in a completion would break the forward of the log-probs.
        return completions_RL.masked_fill(torch.isin(completions_RL, vision), PLAIN_TOKENS - 1)

    def expanded(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of M prompts, each repeated G times in a row, pixels and all."""
        repeats, prompts = self.setup.num_generations, self.setup.num_variants
        pixels = inputs["pixel_values_videos"].unflatten(0, (prompts, -1))
        return {
            "input_ids": inputs["input_ids"].repeat_interleave(repeats, 0),
            "attention_mask": inputs["attention_mask"].repeat_interleave(repeats, 0),
            "mm_token_type_ids": inputs["mm_token_type_ids"].repeat_interleave(repeats, 0),
            "pixel_values_videos": pixels.repeat_interleave(repeats, 0).flatten(0, 1),
            "video_grid_thw": inputs["video_grid_thw"].repeat_interleave(repeats, 0),
            "second_per_grid_ts": torch.as_tensor(inputs["second_per_grid_ts"]).repeat_interleave(
                repeats
            ),
        }

    def rows(self, inputs: dict[str, Any], completions_RL: Tensor) -> dict[str, Any]:
        """Model inputs of M x G full rows."""
        rows = self.expanded(inputs)
        after = {
            "input_ids": completions_RL,
            "attention_mask": torch.ones_like(completions_RL),
            "mm_token_type_ids": torch.zeros_like(completions_RL),
        }
        return rows | {name: torch.cat([rows[name], more], 1) for name, more in after.items()}

    def _advantages(self, completions_RL: Tensor) -> Tensor:
        texts = self.processor.tokenizer.batch_decode(completions_RL, skip_special_tokens=True)
        rewards_R = torch.tensor(vowels([None] * len(texts), texts))
        return (rewards_R - rewards_R.mean()) / (rewards_R.std() + 1e-4)

    def _learn(self, inputs: dict[str, Any], completions_RL: Tensor) -> None:
        """Rewards, log-probs of both models, the loss, its gradient and the optimiser's step."""
        advantages_R = self._advantages(completions_RL)
        rows, num_tokens = self.rows(inputs, completions_RL), completions_RL.shape[1]
        logprobs_RL = row_logprobs(self.model, rows, num_tokens, all_logits=True)
        with torch.no_grad():
            reference_RL = row_logprobs(self.reference, rows, num_tokens, all_logits=True)
        away_RL = (reference_RL - logprobs_RL).clamp(-KL_CLAMP, KL_CLAMP)
        kl_RL = away_RL.exp() - away_RL - 1
        ratio_RL = (logprobs_RL - logprobs_RL.detach()).exp()
        loss_RL = -(ratio_RL * advantages_R[:, None] - self.setup.beta * kl_RL)
        loss_RL.mean(1).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()


def row_logprobs(model: Any, rows: dict[str, Any], num_tokens: int, *, all_logits: bool) -> Tensor:
    """Log-probabilities [R, L] of the last L tokens of each row.

    `all_logits` makes logits and log-softmax at every position of a row and drops the prompt's, as
    Video-R1 does; else they are made at the completion's positions only.
    """
    keep = 0 if all_logits else num_tokens + 1
    logits_RTV = model(**rows, use_cache=False, logits_to_keep=keep).logits[:, :-1]
    targets_RT = rows["input_ids"][:, -logits_RTV.shape[1] :]
    per_row = [
        logits_TV.log_softmax(-1).gather(1, targets_T[:, None])[:, 0]
        for logits_TV, targets_T in zip(logits_RTV, targets_RT, strict=True)
    ]
    return torch.stack(per_row)[:, -num_tokens:]


def freeze(model: Any, trainable: str) -> None:
    """`language` leaves the tower out of training, up to its merger."""
    for name, parameter in model.model.visual.named_parameters():
        parameter.requires_grad_(trainable == "all" or "merger" in name)


def _metadata(video: VideoFrames) -> Any:
    from transformers.video_utils import VideoMetadata

    return VideoMetadata(
        total_num_frames=round(NUM_FRAMES * SECONDS_PER_FRAME * SOURCE_FPS),
        fps=SOURCE_FPS,
        frames_indices=video.source_index_K.tolist(),
    )
