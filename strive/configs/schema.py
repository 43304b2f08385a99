"""The typed, frozen configuration of a training run.

Keys are flat on purpose: `--set num_variants=4` reads like the paper. The docstring below each
field says meaning, unit and source; defaults are the paper's or, where the paper is silent, those
of the architecture page, "Numerics that the paper leaves open".
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from strive.choices import (
    AttentionMode,
    DecodeMode,
    GradingRules,
    Grouping,
    LogProbMode,
    Objective,
    PositionRule,
    Ratio,
    Schedule,
    ScoreTransform,
)
from strive.files import expanded

UserPath = Annotated[Path, AfterValidator(expanded)]


def _as_list(value: Any) -> Any:
    """One text where several may stand is a list of one."""
    return (value,) if isinstance(value, (str, Path)) and str(value) else value


OneOrMore = BeforeValidator(_as_list)
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


class TrainConfig(BaseModel):
    """Everything that decides what a training run computes. Written whole into the run folder."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    # --- what is read -----------------------------------------------------------------------
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    """Hub id or folder of the policy (`lab:qwen2_5_vl`, `lab:qwen3_vl` for the embedded ones)."""
    cache: UserPath | None = None
    """The cache that `strive-cli precompute` left."""
    data: Annotated[tuple[UserPath, ...], OneOrMore] = ()
    """Records files that select questions of the cache; empty: every question in the cache."""
    held_out: Annotated[tuple[UserPath, ...], OneOrMore] = ()
    """Records files, in the same cache, that are evaluated every `evaluate_every` steps."""
    scorer: str | None = None
    """Whose scores `importance` reads; not given: the cache's only scorer."""
    num_questions: PositiveInt | None = None
    """Seeded sample of the records, the one that `precompute --for-config` prepares; not given: all
    of them."""
    skip_bad_records: bool = False
    """Leave malformed rows of `data` and `held_out` out, rather than stop."""
    skip_unscored: bool = False
    """Count and skip questions without scores, rather than stop."""

    # --- visual variants (Sec. 3.3) ---------------------------------------------------------
    variants: str = "importance"
    """`none` (GRPO), `deterministic`, `stochastic`, `random`, `importance`, or a user's own
    `module:function`."""
    spatial: bool = False
    """Spatial augmentation of each variant: colour jitter and small affine maps (Sec. 4.2)."""
    num_variants: PositiveInt = 2
    """M: visual variants per question (Table 5)."""
    num_frames: PositiveInt = 16
    """K: frames per variant, one from each of K equal segments (Sec. 4.1)."""
    frame_temperature: PositiveFloat = 0.4
    """Tau of Eq. 4."""
    score_transform: ScoreTransform = "none"
    """What is done to similarity scores before Eq. 4; `none` is the equation as written."""

    # --- model inputs -----------------------------------------------------------------------
    prompt_template: str = "video_r1"
    """`video_r1` (think and answer tags), `direct`, or `short` (the question and its options)."""
    position_rule: PositionRule = "published"
    """Where Qwen2.5-VL's text starts after a video: at the maximum position plus 1 (what the
    weights were trained with), or as transformers 5.3 and later place it."""
    max_pixels: PositiveInt | None = None
    """Pixels per frame given to the policy; not given: the processor's own limit."""
    max_prompt_tokens: PositiveInt | None = None
    """Longest prompt, its video included; not given: the policy's context less max_new_tokens."""
    skip_long_prompts: bool = False
    """Count and skip questions whose prompt is longer, rather than stop."""

    # --- rollouts ---------------------------------------------------------------------------
    num_generations: PositiveInt = 4
    """G: completions per variant (Table 5)."""
    sampling_temperature: PositiveFloat = 1.0
    """Softmax temperature of text generation; log-probs use the same one."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus sampling: smallest set of tokens with at least this probability."""
    top_k: NonNegativeInt = 0
    """Sample among the k most probable tokens; 0 is no limit."""
    max_new_tokens: PositiveInt = 768
    """Longest completion, in tokens."""
    decode: DecodeMode = "auto"
    """Key-value cache of a rollout: `dynamic` grows with every token, `static` keeps its shape, so
    that a GPU runs the decode step as one compiled graph; `auto`: static on a GPU."""

    # --- rewards and advantages (Eqs. 2 and 3) ----------------------------------------------
    rewards: dict[str, float] = {"accuracy": 1.0, "format": 1.0}
    """Reward functions by name (`accuracy`, `format`, `format_strict`, or `module:function`) and
    their weights; whatever is named replaces the default."""
    check_rewards: bool = True
    """Call every reward function once before the run, on texts made for it."""
    grading: GradingRules = "video_r1"
    """Rule set that grades answers; `video_r1` is the paper's strict accuracy."""
    grouping: Grouping = "joint"
    """Pool that advantages are normalised over: all M x G completions (Eq. 3), the G of each
    variant (GRPO per variant), or the sum of both."""
    objective: Objective = "grpo"
    """`grpo`: divide by the std, mean over each completion's tokens; `dr_grpo`: no std, constant
    length; `dapo`: divide by the std, mean over all tokens of the step."""
    std_correction: Literal[0, 1] = 1
    """Delta degrees of freedom of a group's std (1 as TRL)."""
    advantage_epsilon: PositiveFloat = 1e-4
    """Added to the std before dividing (as TRL)."""

    # --- loss (Eq. 1) -----------------------------------------------------------------------
    epsilon: PositiveFloat = 0.2
    """Clip range of the ratio: [1 - epsilon, 1 + epsilon_high]."""
    epsilon_high: PositiveFloat | None = None
    """Upper clip range; not given: equal to epsilon."""
    beta: NonNegativeFloat = 0.04
    """Weight of the KL term (k3, per token); 0 loads no reference."""
    correct_kl_bias: bool = False
    """Weigh the KL term by the ratio, which makes its gradient unbiased (TRL's default); not: Eq. 1
    as written."""
    ratio: Ratio = "token"
    """Ratio per token (as TRL) or per completion (as Eq. 1 reads)."""
    updates_per_rollout: PositiveInt = 1
    """Optimiser steps on each rollout; with 1 the ratio is 1 and clipping never binds."""
    logprobs: LogProbMode = "packed"
    """One shared-prefix row per variant, or one full row per completion (slow reference)."""
    attention: AttentionMode = "auto"
    """How packed rows attend: `sdpa` segment by segment, `flex` in one flex-attention kernel that
    skips what is not seen (GPU only); `auto`: flex on a GPU."""

    # --- optimisation -----------------------------------------------------------------------
    steps: PositiveInt = 1000
    """Rollout steps (Sec. 4.1: 1,000; ablations 500)."""
    questions_per_step: PositiveInt = 4
    """Questions per step over all processes, which share out their variants."""
    questions_per_micro_batch: PositiveInt = 1
    """Questions (or as many variants) whose log-probs are computed together on one process before
    a backward pass."""
    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate of AdamW (Sec. 4.1)."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW weight decay."""
    warmup_steps: NonNegativeInt = 0
    """Optimiser steps of linear warm-up."""
    schedule: Schedule = "constant"
    """Learning rate after warm-up."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient norm that gradients are clipped to."""
    trainable: Literal["all", "language", "lora"] = "language"
    """`language`: projector and language model train, vision tower frozen; `all`: everything;
    `lora`: adapters train, the model is frozen and, with them off, the reference of the KL term."""
    lora_rank: PositiveInt = 64
    """Rank of each adapter (`trainable: lora`). There is no dropout: it would make the packed row,
    the plain one and the rollout differ."""
    lora_alpha: PositiveInt = 128
    """An adapter's output is multiplied by lora_alpha / lora_rank."""
    lora_targets: str = "language"
    """Layers with adapters: `language` (q, k, v, o, gate, up, down of every block),
    `language+projector`, or a regular expression over names of linear layers."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    deepspeed: str = "zero0"
    """DeepSpeed preset in `strive/configs/deepspeed` by name, or a JSON file."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; `auto`: bfloat16 on a GPU, float32 on a CPU."""

    # --- run --------------------------------------------------------------------------------
    seed: int = 0
    """Seed of every draw: question order, frames, augmentation, text."""
    checkpoint_every: NonNegativeInt = 100
    """Steps between checkpoints; 0: only at the end."""
    keep_checkpoints: PositiveInt = 2
    """How many of the newest checkpoints are kept."""
    evaluate_every: NonNegativeInt = 0
    """Steps between held-out evaluations; 0: none."""
    keep_best: bool = True
    """Keep the policy with the best held-out accuracy in `best/`; without held-out evaluation there
    is none."""
    loggers: Annotated[tuple[Literal["tensorboard", "wandb"], ...], OneOrMore] = ("tensorboard",)
    """Where curves go besides metrics.jsonl, which is always written; `[]`: nowhere else."""
    wandb_project: str = "strive"
    """Project at Weights & Biases, for the logger `wandb`."""
    wandb_run_name: str | None = None
    """Name of the run at Weights & Biases; not given: the run folder's."""

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.variants == "none" and self.num_variants != 1:
            raise ValueError(
                f"num_variants is {self.num_variants} with variants 'none'; GRPO has one visual "
                "input, so set num_variants=1 (and num_generations=8 for the paper's budget)"
            )
        if self.num_variants * self.num_generations < 2:
            raise ValueError(
                "num_variants x num_generations is 1; a group needs at least 2 completions"
            )
        if self.grouping != "joint" and self.num_generations < 2:
            raise ValueError(
                f"grouping '{self.grouping}' normalises over each variant's completions; "
                f"num_generations is {self.num_generations}, at least 2 are needed"
            )
        if self.evaluate_every and not self.held_out:
            raise ValueError(
                f"evaluate_every is {self.evaluate_every} but held_out names no records; "
                "set held_out=[FILE] or evaluate_every=0"
            )
        if not self.rewards:
            raise ValueError("rewards is empty; name at least one, e.g. {accuracy: 1.0}")
        if not any(self.rewards.values()):
            raise ValueError(
                f"rewards are {self.rewards}, all of weight 0, from which nothing is learned; "
                "give one another weight, e.g. {accuracy: 1.0}"
            )
        return self
