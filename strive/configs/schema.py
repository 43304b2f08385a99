"""The typed, frozen configurations of `train`, `precompute` and `evaluate`.

Keys are flat on purpose: `--set num_variants=4` reads like the paper. The docstring below each
field says meaning, unit and source; defaults are the paper's or, where the paper is silent, those
of the architecture page, "Numerics that the paper leaves open". A key that is also an option of its
command is declared here alone: `Option` adds what its docstring does not say.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from strive.choices import (
    AttentionMode,
    DecodeMode,
    DecoderName,
    Engine,
    EvaluationGrading,
    EvaluationProtocol,
    FrameCodecName,
    FramePlanName,
    FramesMode,
    GradingRules,
    Grouping,
    LogProbMode,
    LongText,
    NoiseSchedule,
    ObjectiveName,
    PositionRule,
    Query,
    Ratio,
    Schedule,
    ScorerDtype,
    ScoreTransform,
    StdOver,
    SurrogateName,
    UpdateView,
)
from strive.configs.combinations import check_combinations
from strive.configs.values import (
    AtLeastOne,
    NonNegativeFloat,
    NonNegativeInt,
    OneOrMore,
    PositiveFloat,
    PositiveInt,
    Shard,
    TextOrNumber,
    UserPath,
    as_models,
    as_pair,
    known_or_own,
)

# NAME:DIR, where the path of a file begins otherwise; a single letter is a drive.
_BENCHMARK = re.compile(r"[A-Za-z_][A-Za-z0-9_.]+:.")


# The paper's GRPO baseline keeps the budget of 8 responses on one visual input (Sec. 4.1).
GRPO_SHAPE = {"num_variants": 1, "num_generations": 8}


@dataclass(frozen=True)
class Option:
    """A key that is also an option of its command, with what its name and docstring do not say.

    `help` stands in for the docstring, with `{choices}` for the words or names that it takes;
    `default` tells what holds without the option where the key's own default does not; `parsed` is
    the type that the command line reads where the key's is made from a text.
    """

    name: str = ""
    default: str = ""
    help: str = ""
    metavar: str | None = None
    parsed: Any = None


class Config(BaseModel):
    """The part that the three configurations share."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        defer_build=True,  # a third of what `strive-cli --help` takes; built at the first use
    )
    command: ClassVar[str]
    """The command that the configuration is of."""


class TrainConfig(Config):
    """Everything that decides what a training run computes. Written whole into the run folder."""

    command = "train"

    # --- what is read -----------------------------------------------------------------------
    model: Annotated[
        str, Option(help="Policy: hub id, folder, or lab:NAME.", default="as in --config")
    ] = "Qwen/Qwen2.5-VL-7B-Instruct"
    """Hub id or folder of the policy (`lab:qwen2_5_vl`, `lab:qwen3_vl` for the embedded ones)."""
    cache: Annotated[
        UserPath | None, Option(help="Cache that precompute left.", default="in the workspace")
    ] = None
    """The cache that `strive-cli precompute` left."""
    data: Annotated[
        tuple[UserPath, ...],
        OneOrMore,
        Option(
            help="Records that select questions of the cache. Repeatable.", default="all of them"
        ),
    ] = ()
    """Records files that select questions of the cache; empty: every question in the cache."""
    held_out: Annotated[tuple[UserPath, ...], OneOrMore] = ()
    """Records files, in the same cache, and benchmarks (NAME:DIR@200, whose videos are decoded)
    that are evaluated every `evaluate_every` steps."""
    scorer: Annotated[
        str | None, Option(help="Whose scores importance reads.", default="the only ones")
    ] = None
    """Whose scores `importance` reads; not given: the cache's only scorer."""
    num_questions: PositiveInt | None = None
    """Seeded sample of the records, the one that `precompute --for-config` prepares; not given: all
    of them."""
    skip_bad_records: bool = False
    """Leave malformed rows of `data` and `held_out` out, rather than stop."""
    skip_unscored: bool = False
    """Count and skip questions without scores, rather than stop."""

    # --- visual variants (Sec. 3.3) ---------------------------------------------------------
    variants: Annotated[
        str, Option(help="{choices}, or module:function; none is GRPO.", default="as in --config")
    ] = "importance"
    """`none` (GRPO), `uniform` (the same frames in every variant), `deterministic`, `stochastic`,
    `random`, `importance`, or a user's own `module:function`."""
    spatial: Annotated[
        bool,
        Option(
            name="--spatial/--no-spatial",
            help="Augment each variant's frames.",
            default="as in --config",
        ),
    ] = False
    """Spatial augmentation of each variant: colour jitter and small affine maps (Sec. 4.2); the
    same as views=[spatial]."""
    views: Annotated[tuple[str, ...], OneOrMore] = ()
    """What is done to the frames of each variant: one name for all, or one a variant, of `none`,
    `spatial`, `noise`, `shuffle`, `reverse`, `mirror`, `grey`, or a user's own `module:function`;
    empty: nothing."""
    noise_steps: Annotated[int, Field(ge=0, lt=1000)] = 500
    """Diffusion steps of the view `noise`, of 1,000 (NoisyRollout, arXiv:2504.13055)."""
    noise_schedule: NoiseSchedule = "sigmoid"
    """`sigmoid`: the noise fades over the run; `constant`: it stays."""
    noise_steepness: PositiveFloat = 30.0
    """How suddenly it fades."""
    noise_midpoint: Annotated[float, Field(ge=0, le=1)] = 2 / 3
    """Share of the run at which half of it is gone."""
    contrast: str = "none"
    """View of the first variant that further completions are written of; rewards see them (column
    `contrast_completions`), and nothing learns from them: `none`, `shuffle` (T-GRPO), `reverse`
    (ArrowRL), or another view."""
    contrast_generations: PositiveInt = 4
    """Completions written of each contrast."""
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
    """`video_r1` (think and answer tags), `direct`, `short` (the question and its options), or
    `answer_twice` (the same, with VideoAuto-R1's instruction in `system_prompt`)."""
    system_prompt: str | None = None
    """Text of a system turn before the question; not given: the chat template's own."""
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
    """Reward functions by name and their weights; whatever is named replaces the default.
    `accuracy`, `accuracy_untagged`, `format`, `format_strict`; of a group `temporal`,
    `temporal_strict`, `length`, `reverse`, `overlong`, `majority`; in time `grounding_iou`,
    `grounding_iou_timed`, `clue_iou`; of two answers `accuracy_first`, `accuracy_second`,
    `format_twice`, `fallback`; or a user's own `module:function`."""
    check_rewards: bool = True
    """Call every reward function once before the run, on texts made for it."""
    grading: GradingRules = "video_r1"
    """Rule set that grades answers; `video_r1` is the paper's strict accuracy."""
    grouping: Grouping = "joint"
    """Pool that advantages are normalised over: all M x G completions (Eq. 3), the G of each
    variant (GRPO per variant), the sum of both, or that sum as Share-GRPO's code has it (`share`).
    """
    std: StdOver = "group"
    """What divides a group's advantages: its own std, that of the whole step's rewards (`batch`),
    or an average over the steps for each problem type (`ema_per_type`, after OneThinker)."""
    resample_rounds: NonNegativeInt = 0
    """Rounds in which groups that are all right or all wrong by the reward `accuracy` are replaced
    by other questions' (DAPO); what stays so after the last one is kept."""
    objective: Annotated[
        str,
        known_or_own(
            get_args(ObjectiveName),
            {"cispo": "surrogate=cispo", "sapo": "surrogate=sapo", "gspo": "ratio=geometric"},
        ),
        WithJsonSchema({"enum": [*get_args(ObjectiveName), "module:function"]}),
    ] = "grpo"
    """`grpo`: divide by the std, mean over each completion's tokens; `dr_grpo`: no std, constant
    length; `dapo`: divide by the std, mean over all tokens of the step; or a user's own
    `module:function`."""
    std_correction: Literal[0, 1] = 1
    """Delta degrees of freedom of a group's std (1 as TRL)."""
    advantage_epsilon: PositiveFloat = 1e-4
    """Added to the std before dividing (as TRL)."""

    # --- loss (Eq. 1) -----------------------------------------------------------------------
    surrogate: Annotated[
        str,
        known_or_own(get_args(SurrogateName)),
        WithJsonSchema({"enum": [*get_args(SurrogateName), "module:function"]}),
    ] = "clip"
    """Gain of a token from its ratio and advantage: `clip` (Eq. 1), `cispo`, `sapo`, `regression`
    (Reg-GRPO, of whole groups), or a user's own `module:function`."""
    epsilon: PositiveFloat = 0.2
    """Clip range of the ratio: [1 - epsilon, 1 + epsilon_high]."""
    epsilon_high: PositiveFloat | None = None
    """Upper clip range; not given: equal to epsilon."""
    dual_clip: Annotated[float | None, Field(gt=1)] = None
    """Ratio beyond which a negative advantage gains no more, under `clip`; not given: none."""
    cispo_cap: PositiveFloat = 5.0
    """Largest ratio that `cispo` weighs a token by: the ratio itself, which is TRL's epsilon_high
    and, in the paper, 1 + epsilon_high."""
    sapo_temperatures: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.05)
    """Tau of `sapo` for a positive advantage, and for the others."""
    entropy_weight: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Weight of the tokens' entropy, which joins the objective; negative: a penalty."""
    mask_truncated: bool = False
    """Leave completions that `max_new_tokens` cut out of the loss and of its count of tokens; their
    rewards stay in their groups (DAPO)."""
    beta: NonNegativeFloat = 0.04
    """Weight of the KL term (k3, per token); 0 loads no reference."""
    correct_kl_bias: bool = False
    """Weigh the KL term by the ratio, which makes its gradient unbiased (TRL's default); not: Eq. 1
    as written."""
    ratio: Ratio = "token"
    """Ratio per token (as TRL), per completion as the mean over its tokens (`geometric`, GSPO), or
    as Eq. 1 reads (`sequence`: the product, which overflows or vanishes for long completions)."""
    minibatches_per_rollout: PositiveInt = 1
    """Disjoint parts of a step's questions, each learned from in an optimiser step of its own."""
    updates_per_rollout: PositiveInt = 1
    """How often a rollout is learned from; with one optimiser step in all the ratio is 1, clipping
    never binds, and `clip`, `cispo` and `sapo` are one."""
    update_view: UpdateView = "own"
    """Under which variant's prompt the log-probs of completions are taken: their own, or the first
    one's (NoisyRollout)."""
    logprobs: LogProbMode = "packed"
    """One shared-prefix row per variant, or one full row per completion (slow reference)."""
    attention: AttentionMode = "auto"
    """How packed rows attend: `sdpa` segment by segment, `flex` in one flex-attention kernel that
    skips what is not seen (GPU only); `auto`: flex on a GPU."""

    # --- optimisation -----------------------------------------------------------------------
    steps: Annotated[PositiveInt, Option(help="Rollout steps.", default="as in --config")] = 1000
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

    @model_validator(mode="before")
    @classmethod
    def _keep_budget_of_grpo(cls, values: Any) -> Any:
        is_grpo = isinstance(values, Mapping) and values.get("variants") == "none"
        return {**GRPO_SHAPE, **values} if is_grpo else values

    @property
    def held_out_files(self) -> tuple[Path, ...]:
        """The records files of `held_out`."""
        return tuple(path for path in self.held_out if not _BENCHMARK.match(str(path)))

    @property
    def held_out_benchmarks(self) -> tuple[str, ...]:
        """The benchmarks of `held_out`, each with its folder."""
        return tuple(str(path) for path in self.held_out if _BENCHMARK.match(str(path)))

    @property
    def views_M(self) -> tuple[str, ...]:
        """The view of each variant."""
        views = self.views or (("spatial",) if self.spatial else ("none",))
        return views * self.num_variants if len(views) == 1 else views

    @property
    def optimiser_steps_per_rollout(self) -> int:
        return self.minibatches_per_rollout * self.updates_per_rollout

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        check_combinations(self)
        return self


class PrecomputeConfig(Config):
    """Everything that decides what the offline stage writes into a cache, and how it works."""

    command = "precompute"

    # --- records ----------------------------------------------------------------------------
    data: Annotated[tuple[UserPath, ...], OneOrMore, Option(default="the lab")] = ()
    """Video-R1 JSON, JSONL or Parquet. Repeatable."""
    video_root: Annotated[
        UserPath,
        Option(help="What paths are relative to.", default="the first --data's folder"),
    ] = Field(default_factory=lambda found: first_folder(found) or Path())
    """Folder that the records' paths are relative to; not given: that of the first records file."""
    allow_outside_root: Annotated[bool, Option(help="Let paths leave it.")] = False
    """Let paths leave video_root."""
    filters: Annotated[
        tuple[Annotated[tuple[str, str], BeforeValidator(as_pair)], ...],
        OneOrMore,
        WithJsonSchema({"type": "array", "items": {"type": "string", "format": "field=value"}}),
        Option(name="--filter", default="all", parsed=list[str]),
    ] = ()
    """Keep records with field=value. Repeatable."""
    skip_bad_records: Annotated[bool, Option()] = False
    """Count malformed rows, go on."""
    subset: Annotated[PositiveInt | None, Option(default="all")] = None
    """Seeded sample of this many questions."""
    seed: Annotated[int, Option(help="Seed of --subset.")] = 0
    """Seed of subset."""
    for_config: Annotated[str | None, Option(default="none")] = None
    """Just what a run of this preset or file reads."""
    held_out: Annotated[tuple[UserPath, ...], OneOrMore] = ()
    """Records of which all are taken beside the sample of data, with for_config."""
    limit: Annotated[PositiveInt | None, Option(default="all")] = None
    """Only the first N videos."""

    # --- scorers ----------------------------------------------------------------------------
    scorers: Annotated[
        tuple[str, ...],
        OneOrMore,
        Option(name="--scorer", help="{choices}, or module:function. Repeatable."),
    ] = ("siglip2",)
    """Scorers by name, or a user's own module:function. Repeatable."""
    scorer_models: Annotated[
        dict[str, TextOrNumber],
        BeforeValidator(as_models),
        Option(
            name="--scorer-model",
            default="its own",
            help="Its model: ID_OR_DIR, lab:NAME, or SCORER=... Repeatable.",
            parsed=list[str],
        ),
    ] = {}
    """The scorers' models: ID_OR_DIR or lab:NAME by scorer, or as the text SCORER=ID_OR_DIR."""
    policy: Annotated[str | None, Option(default="Qwen2.5-VL-7B")] = None
    """Model of policy and gradient: ID_OR_DIR."""
    query: Annotated[Query, Option(metavar="TEXT", help="What scorers read: {choices}.")] = (
        "question"
    )
    """The text of a question that scorers read; part of the key."""
    long_text: Annotated[
        LongText, Option(metavar="RULE", help="Beyond a scorer's context: {choices}.")
    ] = "truncate"
    """Treatment of a question that is longer than a scorer's context."""
    device: Annotated[str, Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")] = "auto"
    """Device of the scorers: auto (the GPU if there is one), cpu, cuda, cuda:1 and so on."""
    dtype: Annotated[
        ScorerDtype | None,
        Option(metavar="NAME", default="by device", help="{choices}; part of the key."),
    ] = None
    """Compute type of the scorers; part of the key; not given: by device."""
    embed_batch_size: Annotated[AtLeastOne, Option()] = 64
    """Frames embedded at a time; part of the key."""

    # --- frames -----------------------------------------------------------------------------
    frames: Annotated[AtLeastOne, Option()] = 64
    """F: frames kept per video."""
    frame_plan: Annotated[FramePlanName, Option(metavar="PLAN", help="{choices}.")] = "uniform"
    """Rule by which the frames of a video are chosen."""
    max_pixels: Annotated[PositiveInt | None, Option(default="by frame plan")] = None
    """Pixels per cached frame."""
    frame_codec: Annotated[FrameCodecName, Option()] = "jpeg"
    """How frames are stored."""
    decoder: Annotated[
        DecoderName, Option(metavar="NAME", help="{choices}; auto: the first that can.")
    ] = "auto"
    """Decoder of videos; auto: the first that can."""
    decode_timeout_seconds: Annotated[PositiveFloat, Option(name="--decode-timeout")] = 600.0
    """Seconds after which a decode is killed."""
    repair: Annotated[bool, Option()] = False
    """Remux or transcode what no decoder opens."""
    max_missing: Annotated[
        TextOrNumber | None, Option(metavar="5s|10%|any", default="the larger of 1s, 2%")
    ] = None
    """How much of a cut video may lack."""
    allow_damaged: Annotated[bool, Option()] = False
    """Take damaged frames as players show."""

    # --- running ----------------------------------------------------------------------------
    cache: Annotated[UserPath, Option(default="in the workspace")] = Path("strive-workspace/cache")
    """Cache folder."""
    workers: Annotated[PositiveInt | None, Option(default="by cores")] = None
    """Decode processes."""
    engine: Annotated[Engine, Option()] = "local"
    """This machine, or a Ray cluster."""
    shard: Annotated[Shard, Option(default="0/1", parsed=str)] = (0, 1)
    """Do part i of n, counted from 0."""
    max_failure_fraction: Annotated[float, Field(ge=0, le=1), Option()] = 0.05
    """Exit 1 when more of the videos fail."""
    retry_failed: Annotated[bool, Option()] = False
    """Try failed videos again."""
    overwrite: Annotated[bool, Option()] = False
    """Make again what is there."""
    dry_run: Annotated[bool, Option()] = False
    """Estimate time and disk, then stop."""


class EvaluateConfig(Config):
    """Everything that decides which questions a policy is asked, and how they are graded."""

    command = "evaluate"

    model: Annotated[str, Option()] = "lab:qwen2_5_vl"
    """Policy: hub id, folder (a run's final/), or lab:NAME."""
    benchmarks: Annotated[
        tuple[str, ...],
        OneOrMore,
        Option(
            name="--benchmark",
            help="{choices}, records:FILE or module:function; NAME:DIR has its own folder, @N "
            "asks N questions. Repeatable.",
        ),
    ] = ("lab",)
    """Benchmarks: NAME[:DIR][@N], records:FILE[@N] or a user's own module:function. Repeatable."""
    data: Annotated[
        tuple[UserPath, ...],
        OneOrMore,
        Option(help="Your own records instead. Repeatable.", default="a benchmark"),
    ] = ()
    """Records files of your own in the place of a benchmark. Repeatable."""
    video_root: Annotated[
        UserPath | None,
        Option(help="What their paths are relative to.", default="--data's folder"),
    ] = None
    """Folder that the paths of data are relative to; not given: that of the first file."""
    data_root: Annotated[UserPath, Option(default="the lab's")] = Field(
        default_factory=lambda found: (
            found.get("video_root") or first_folder(found) or Path("strive-workspace/lab")
        )
    )
    """A benchmark's questions and videos."""
    split: Annotated[str | None, Option(default="the benchmark's")] = None
    """Which of the benchmark's splits."""
    protocol: Annotated[EvaluationProtocol, Option()] = "video_r1"
    """Prompt, frames and grading: Video-R1's evaluation, or the benchmark's own."""
    prompt_template: Annotated[
        str | None, Option(default="short for the lab's models", help="Instead: {choices}.")
    ] = None
    """Prompt template in the place of the protocol's; a model is asked as it was taught."""
    system_prompt: str | None = None
    """Text of a system turn before each question; not given: the chat template's own."""
    num_frames: Annotated[AtLeastOne, Option(name="--frames")] = 32
    """Frames per video."""
    frames_mode: Annotated[FramesMode | None, Option(default="the protocol's")] = None
    """linspace: to the very last; fps: two a second; evidence: with all evidence; blank: grey."""
    max_new_tokens: Annotated[AtLeastOne, Option()] = 1024
    """Longest answer."""
    position_rule: Annotated[PositionRule, Option()] = "published"
    """The rule that the policy was trained under (docs/models.md)."""
    decode: Annotated[DecodeMode, Option()] = "auto"
    """Key-value cache; auto: static and compiled on a GPU."""
    limit: Annotated[AtLeastOne | None, Option(default="all")] = None
    """So many questions of each benchmark at most: a fixed random choice of videos."""
    shard: Annotated[Shard, Option(default="torchrun's, or 0/1", parsed=str)] = (0, 1)
    """Ask part i of n, counted from 0; the last part to end joins them."""
    frames_cache: Annotated[UserPath | None, Option(default="none is kept")] = None
    """Keep decoded frames here for the next model."""
    cache: UserPath | None = None
    """Read frames from this cache's pool; not given: decode the videos."""
    scorer: str | None = None
    """Names the frames of a cache that holds several sets."""
    max_pixels: Annotated[PositiveInt | None, Option(default="256*28*28")] = 256 * 28 * 28
    """Pixels per frame given to the policy (Video-R1's evaluation: 256 tokens a frame)."""
    batch_size: PositiveInt = 16
    """Questions answered together."""
    grading: EvaluationGrading | None = None
    """Rule set that grades answers; not given: the protocol's."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; `auto`: bfloat16 on a GPU, float32 on a CPU."""
    device: str = "auto"
    """Device of the policy; `auto`: the GPU if there is one."""
    decoder: DecoderName = "auto"
    """Decoder of videos; auto: the first that can."""
    decode_workers: PositiveInt | None = None
    """Processes that decode; not given: one a core, eight at most."""
    frame_codec: FrameCodecName = "raw"
    """How frames_cache keeps frames: exactly (0.6 MB a frame), or as JPEG (a tenth of it)."""
    decode_timeout_seconds: PositiveFloat = 120.0
    """Seconds after which a decode is killed."""


def first_folder(found: Mapping[str, Any]) -> Path | None:
    """Return the folder of the first records file, which paths are relative to unless said."""
    return found["data"][0].parent if found.get("data") else None


# The configurations by their commands.
SCHEMAS: dict[str, type[Config]] = {
    schema.command: schema for schema in (TrainConfig, PrecomputeConfig, EvaluateConfig)
}
