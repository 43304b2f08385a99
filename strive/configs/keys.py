"""The config keys for people: name, meaning, type, default; and other trainers' names of them.

Meanings, types and defaults are those of the schema, which says each once.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strive.configs.schema import Config, Option, TrainConfig


@dataclass(frozen=True, slots=True)
class ConfigKey:
    """One key of the schema; `type` and `default` as one would write them in YAML."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True, slots=True)
class OtherName:
    """The meaning of another trainer's name here: a key, an option or `nothing`, with a note."""

    ours: str
    note: str = ""

    def __str__(self) -> str:
        return self.ours + (f" ({self.note})" if self.note else "")


# Our names, with a note where one is not quite the same, and those of TRL and Video-R1 (which is
# built on it), verl, EasyR1 and OpenRLHF, and of video loaders.
_OTHERS = {
    "num_generations: completions of one variant; others count num_variants x num_generations": (
        "num_generations n n_samples_per_prompt num_return_sequences group_size rollout_n"
    ),
    "sampling_temperature: frame_temperature is tau of Eq. 4": "temperature",
    "max_new_tokens": (
        "max_completion_length max_response_length response_length generate_max_len max_tokens"
    ),
    "max_prompt_tokens": "max_prompt_length prompt_max_len",
    "steps: rollout steps; train --dry-run says how many epochs they are": (
        "num_train_epochs max_steps total_epochs total_training_steps max_epochs num_episodes"
    ),
    "questions_per_step: questions over all processes, not rows or completions of one": (
        "per_device_train_batch_size generation_batch_size train_batch_size rollout_batch_size "
        "global_batch_size batch_size"
    ),
    "minibatches_per_rollout: how many, where theirs is how large": (
        "ppo_mini_batch_size mini_batch_size steps_per_generation"
    ),
    "questions_per_micro_batch": (
        "gradient_accumulation_steps ppo_micro_batch_size_per_gpu ppo_micro_batch_size "
        "micro_train_batch_size micro_batch_size"
    ),
    "updates_per_rollout": "num_iterations ppo_epochs",
    "learning_rate": "lr actor_learning_rate",
    "schedule": "lr_scheduler_type lr_scheduler",
    "warmup_steps: a number of steps": "warmup_ratio lr_warmup_steps lr_warmup_steps_ratio",
    "max_grad_norm": "grad_clip clip_grad max_norm",
    "beta: of the k3 term in the loss": "kl_coef kl_loss_coef init_kl_coef kl_coeff",
    "epsilon": "clip_ratio clip_ratio_low clip_range cliprange eps_clip epsilon_low",
    "epsilon_high": "clip_ratio_high",
    "objective: dr_grpo drops the std as well; cispo and sapo are a surrogate, gspo is a ratio": (
        "loss_type loss_agg_mode norm_adv_by_std_in_grpo adv_estimator advantage_estimator"
    ),
    "std: batch is theirs; none is objective dr_grpo": "scale_rewards",
    "ratio: geometric is their sequence (GSPO)": "importance_sampling_level",
    "resample_rounds": "filter_groups dynamic_sampling max_num_gen_batches",
    "mask_truncated": "mask_truncated_completions overlong_filtering",
    "entropy_weight": "entropy_coeff entropy_coef entropy_bonus",
    "dual_clip": "clip_ratio_c dual_clip_ratio",
    "sapo_temperatures": "sapo_temperature_pos sapo_temperature_neg",
    "correct_kl_bias": "use_bias_correction_kl",
    "rewards": "reward_funcs reward_weights reward_function reward_fn",
    "model": "model_name_or_path model_path pretrain",
    "data": "dataset_name train_files train_dataset prompt_data",
    "num_questions: a seeded sample": "max_train_samples max_samples",
    "held_out": "eval_dataset val_files",
    "evaluate_every: steps; needs held_out": "eval_steps eval_strategy test_freq val_freq",
    "checkpoint_every: steps": "save_steps save_freq save_strategy",
    "keep_checkpoints": "save_total_limit max_actor_ckpt_to_keep save_limit max_ckpt_num",
    "keep_best": "load_best_model_at_end",
    "loggers": "report_to logger use_wandb",
    "wandb_project": "project_name",
    "wandb_run_name": "run_name experiment_name wandb_name",
    "trainable: lora": "use_peft peft_config",
    "trainable: language: the vision tower is frozen": (
        "freeze_vision_modules freeze_vision_tower freeze_vit fix_vit"
    ),
    "lora_rank": "lora_r",
    "lora_targets": "lora_target_modules target_modules",
    "attention": "attn_implementation",
    "dtype: float32 or bfloat16": "torch_dtype bf16 fp16",
    "gradient_checkpointing": "enable_gradient_checkpointing",
    "seed": "data_seed",
    "prompt_template": "format_prompt question_template",
    "num_frames: K, of the pool that precompute --frames and --frame-plan cached": (
        "nframes max_frames video_max_frames fps video_fps total_frames"
    ),
    "max_pixels": "video_max_pixels image_max_pixels",
    "--run-dir: an option of train": "output_dir default_local_dir save_path ckpt_path",
    "--resume: an option of train": "resume_from_checkpoint resume_mode load_checkpoint",
    "nothing: completions are written by the trainer itself": (
        "use_vllm vllm_mode vllm_gpu_memory_utilization gpu_memory_utilization "
        "tensor_model_parallel_size"
    ),
    "nothing: the launcher says how many processes there are, see docs/scaling.md": (
        "n_gpus_per_node nnodes nproc_per_node num_processes num_gpus"
    ),
}
OTHER_NAMES = {
    name: OtherName(*meant.split(": ", 1))
    for meant, names in _OTHERS.items()
    for name in names.split()
}


def config_keys(schema: type[Config]) -> list[ConfigKey]:
    """Every key of a configuration, in its order."""
    properties = schema.model_json_schema()["properties"]
    return [
        ConfigKey(
            name,
            _type_text(about),
            _default_text(about),
            " ".join(about["description"].split()).replace("`", ""),
        )
        for name, about in properties.items()
    ]


def option_of(schema: type[Config], key: str) -> str | None:
    """Return how a key is given as an option of its command; None where it is none."""
    for item in schema.model_fields[key].metadata:
        if isinstance(item, Option):
            return item.name or f"--{key.replace('_', '-')}"
    return None


def other_name(key: str, schema: type[Config]) -> OtherName | None:
    """Return what another trainer's key, dotted or not, is here; None for a name of no one's."""
    last = key.lower().rpartition(".")[2].replace("-", "_")
    same = OtherName(last) if last in schema.model_fields else None
    return OTHER_NAMES.get(last, same) if schema is TrainConfig else same


def find_keys(word: str, schema: type[Config]) -> tuple[list[ConfigKey], dict[str, OtherName]]:
    """Return the keys about a word, and the names of other trainers with it, which lead to some."""
    wanted = word.lower().replace("-", "_").rpartition(".")[2].replace("_", " ")
    # A letter or two (M, G, n) is a word of its own, not a part of nearly all.
    is_short = len(wanted) < 3
    pattern = re.compile(rf"\b{re.escape(wanted)}\b" if is_short else re.escape(wanted))
    others = {
        name: meant
        for name, meant in (OTHER_NAMES if schema is TrainConfig else {}).items()
        if name == wanted or (not is_short and pattern.search(name.replace("_", " ")))
    }
    led_to = {meant.ours for meant in others.values()}
    keys = [
        key
        for key in config_keys(schema)
        if key.name in led_to
        or pattern.search(f"{key.name.replace('_', ' ')} {key.meaning}".lower())
    ]
    return keys, others


def _default_text(about: Mapping[str, Any]) -> str:
    default = about.get("default")
    if default is None:
        return "not given"
    return default if isinstance(default, str) else json.dumps(default)


def _type_text(about: Mapping[str, Any]) -> str:
    if "anyOf" in about:
        return " or ".join(_type_text(part) for part in about["anyOf"] if part["type"] != "null")
    if "enum" in about:
        return " | ".join(str(value) for value in about["enum"])
    match about["type"]:
        case "array" if "prefixItems" in about:
            return f"[{', '.join(_type_text(part) for part in about['prefixItems'])}]"
        case "array":
            return f"[{_type_text(about['items'])}, ...]"
        case "object":
            return f"{{name: {_type_text(about['additionalProperties'])}, ...}}"
        case "string":
            return about.get("format", "text")
        case kind:
            signs = {"exclusiveMinimum": ">", "minimum": ">=", "maximum": "<="}
            bounds = [f"{sign} {about[name]:g}" for name, sign in signs.items() if name in about]
            words = {"integer": "whole number", "boolean": "true | false"}
            return " ".join([words.get(kind, kind), ", ".join(bounds)]).rstrip()
