"""The optimiser side of training, on DeepSpeed: the only file that imports it.

DeepSpeed partitions, reduces, clips and steps. What it would do with batch sizes, loss scaling and
schedules is ours: a step's micro-batches are counted by us, losses carry denominators of the whole
step, and the learning rate is a function of the step. On a CPU nothing is compiled.
"""

import contextlib
import copy
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from strive.choices import Schedule
from strive.configs.schema import TrainConfig
from strive.errors import (
    CheckpointError,
    ConfigError,
    MissingInputError,
    ModelError,
    NonFiniteError,
    nearest,
    short_reason,
)
from strive.files import expanded
from strive.models.loading import Policy
from strive.train.processes import Processes

PRESETS = Path(__file__).parent.parent / "configs" / "deepspeed"
_OURS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "bf16",
    "fp16",
)
_CHECKPOINT_TAG = "deepspeed"


def read_deepspeed_preset(name_or_file: str) -> dict[str, Any]:
    """Read a preset by name, or a user's JSON file, which DeepSpeed itself checks.

    In `zero_optimization` "auto" is DeepSpeed's own default: the key is left out.

    Raises:
        MissingInputError, ConfigError: no such preset or file, no JSON object, a key that the
            training config decides or DeepSpeed does not know, or a value that it does not take.
    """
    preset = PRESETS / f"{name_or_file}.json"
    path = preset if preset.is_file() else expanded(Path(name_or_file))
    if not path.is_file():
        names = sorted(file.stem for file in PRESETS.glob("*.json"))
        raise MissingInputError(
            f"deepspeed '{name_or_file}' is neither a file nor a preset"
            f"{nearest(name_or_file, names)}; presets: {', '.join(names)}"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a JSON object is expected, found {type(values).__name__}")
    taken = [key for key in _OURS if key in values]
    if taken:
        raise ConfigError(
            f"{path} sets {', '.join(taken)}, which the training config decides "
            "(questions_per_micro_batch, max_grad_norm, learning_rate, schedule, dtype)"
        )
    return values if path == preset else _own_settings(values, path)


def _own_settings(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """A user's settings in one form: without "auto", without what is switched off.

    Raises:
        ConfigError: see `read_deepspeed_preset`.
    """
    zero = values.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ConfigError(f"{path}: zero_optimization is {json.dumps(zero)}; an object is expected")
    autos = list(_autos({**values, "zero_optimization": {"stage": zero.get("stage")}}))
    if autos:
        raise ConfigError(
            f"{path}: {', '.join(autos)} is 'auto', which transformers' Trainer fills in from its "
            "own arguments; write a value, or leave the key out for DeepSpeed's default"
        )
    zero = _without_autos(zero)
    checked = _checked_by_deepspeed({**values, "zero_optimization": zero}, path).zero_config
    older = {"offload_optimizer": "cpu_offload", "offload_param": "cpu_offload_param"}
    for name, older_name in older.items():
        zero = {key: value for key, value in zero.items() if key not in (name, older_name)}
        part = getattr(checked, name)
        if part is not None and part.device != "none":
            zero[name] = part.model_dump(mode="json", exclude_unset=True)
    return {**values, "zero_optimization": zero}


def _autos(values: Any, at: str = "") -> Iterator[str]:
    """Dotted paths of the keys that are "auto"."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _autos(value, f"{at}.{key}" if at else key)
    elif values == "auto":
        yield at


def _without_autos(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_autos(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value != "auto"
    }


class _Asked(dict[str, Any]):
    """Settings that remember which keys DeepSpeed asks for: those that it knows.

    It passes over all others without a word.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self


def _checked_by_deepspeed(values: dict[str, Any], path: Path) -> Any:
    """DeepSpeed's own reading of settings.

    Raises:
        ConfigError: a key or value that it does not know or take.
    """
    _import_deepspeed(on_cpu=not torch.cuda.is_available())
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel
    from pydantic import ValidationError

    asked = _Asked({**values, "train_micro_batch_size_per_gpu": 1})
    try:
        checked = DeepSpeedConfig(asked)
    except ValidationError as error:
        models = DeepSpeedConfigModel.__subclasses__()
        fields = [item for model in models for item in model.model_fields.items()]
        known = [name for key, field in fields for name in (key, field.alias) if name]
        problems = [
            f"'{item['loc'][-1]}' is no setting of DeepSpeed{nearest(str(item['loc'][-1]), known)}"
            if item["type"] == "extra_forbidden"
            else f"{'.'.join(map(str, item['loc']))} is {item['input']!r}: {item['msg']}"
            for item in error.errors()
        ]
        raise ConfigError(f"{path}: {'; '.join(problems)}") from None
    except (DeepSpeedConfigError, ValueError, TypeError, AttributeError, AssertionError) as error:
        reason = short_reason(error, 300)
        raise ConfigError(f"{path}: DeepSpeed does not take it: {reason}") from None
    unknown = [f"'{key}'{nearest(key, asked.asked)}" for key in values if key not in asked.asked]
    if unknown:
        raise ConfigError(f"{path}: {', '.join(unknown)} is no setting of DeepSpeed")
    return checked


def set_trainable(policy: Policy, trainable: str) -> None:
    """Choose what learns: `language` freezes the vision tower up to its mergers, `all` nothing."""
    policy.model.requires_grad_(True)
    if trainable == "all":
        return
    policy.family.tower(policy.model).requires_grad_(False)
    for parameter in policy.family.projector_parameters(policy.model):
        parameter.requires_grad_(True)


class _Step(nn.Module):
    """Gives DeepSpeed the one forward that its hooks want around whatever a step computes.

    Its output has to be a plain tensor: in anything else the hooks of ZeRO-3 see none.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_state_dict_post_hook(_leave_out_frozen)

    def forward(self, compute: Callable[..., Tensor], *arguments: Any) -> Tensor:
        return compute(*arguments)


class Engine:
    """Backward passes, optimiser steps and checkpoints of one policy."""

    def __init__(
        self,
        policy: Policy,
        processes: Processes,
        config: TrainConfig,
        *,
        with_reference: bool = False,
    ) -> None:
        """Hand the policy's model to DeepSpeed; `with_reference` keeps a frozen copy of it.

        Raises:
            ModelError: the copy is not the policy bit for bit.
        """
        self.policy = policy
        self.processes = processes
        settings = read_deepspeed_preset(config.deepspeed)
        zero = settings.get("zero_optimization", {})
        self.stage = int(zero.get("stage", 0))
        self._settings = settings | {
            # DeepSpeed would insist on its own AdamW for an optimiser on the CPU, and compile it.
            "zero_force_ds_cpu_optimizer": False,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.max_grad_norm,
            "bf16": {"enabled": policy.dtype == torch.bfloat16},
        }
        self._parameters = [p for p in policy.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            self._parameters,
            lr=0.0,
            weight_decay=config.weight_decay,
            # On a CPU one fused pass over memory stands in for a dozen.
            fused=True if "offload_optimizer" in zero else None,
        )
        # Copied before DeepSpeed partitions: a copy made afterwards would have to be built anew and
        # cast, which rounds the rotary frequencies. A module copy keeps every dtype and buffer.
        self.reference: Any = copy.deepcopy(policy.model) if with_reference else None
        on_cpu = processes.device.type == "cpu"
        self._deepspeed = _import_deepspeed(on_cpu)
        if not self._deepspeed.comm.is_initialized():
            self._deepspeed.init_distributed(
                dist_backend="gloo" if on_cpu else "nccl", auto_mpi_discovery=False, verbose=False
            )
        self._engine = self._initialize(_Step(policy.model), optimizer)
        if self.stage == 0:
            # In bfloat16 DeepSpeed takes a step without gradients to make the moments, and Adam's
            # bias correction counts it.
            self._engine.optimizer.state.clear()
        self._reference_engine: Any = None
        if self.reference is not None:
            self.reference.requires_grad_(False).eval()
            if self.stage == 3:
                self._reference_engine = self._initialize(_Step(self.reference), None)
            self._require_equal_reference()
        self._num_bad = torch.zeros((), device=processes.device)
        self._bad_names: list[str] = []
        for parameter in self._parameters:
            parameter.register_hook(self._watch)

    def _initialize(self, module: nn.Module, optimizer: torch.optim.Optimizer | None) -> Any:
        engine, *_ = self._deepspeed.initialize(
            model=module, optimizer=optimizer, config=copy.deepcopy(self._settings)
        )
        head = getattr(module.model, "lm_head", None)
        if self.stage == 3 and head is not None:
            # Its weight is used in as many chunks as the completions need. Held for the whole pass
            # it is gathered once, so that all processes gather equally often.
            for parameter in head.parameters():
                self._deepspeed.zero.register_external_parameter(module, parameter)
        return engine

    def _require_equal_reference(self) -> None:
        """Check what the KL term counts on: the reference starts as the policy, bit for bit."""
        policy, reference = self.policy.model, self.reference
        others = dict(reference.named_parameters()) | dict(reference.named_buffers())
        differing = []
        # One at a time: no more than two are ever gathered whole.
        for name, tensor in (*policy.named_parameters(), *policy.named_buffers()):
            pair = [tensor, others.pop(name, None)]
            with self._whole([t for t in pair if isinstance(t, nn.Parameter)]):
                if pair[1] is None or not _same_bits(*pair):
                    differing.append(name)
        if self.processes.any(bool(differing or others)):
            names = [*differing, *others] or ["one on another process"]
            raise ModelError(
                f"the reference of the KL term is not the policy that training begins with: "
                f"{len(names)} tensors differ, such as '{names[0]}'; set beta=0 to train without it"
            )

    def _whole(self, parameters: list[nn.Parameter]) -> contextlib.AbstractContextManager[Any]:
        """Hold some parameters whole, where they are partitioned."""
        if self.stage < 3:
            return contextlib.nullcontext()
        return self._deepspeed.zero.GatheredParameters(parameters)

    def _watch(self, gradient: Tensor) -> None:
        self._num_bad += (~torch.isfinite(gradient)).any()

    @property
    def may_skip_backward(self) -> bool:
        """Whether a process may leave out a backward pass: not where each pass communicates."""
        return self.processes.world_size == 1 or self.stage < 2

    def forward(self, compute: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """Call `compute(*arguments)`, whose tensor may carry a graph, under DeepSpeed's hooks."""
        output: Tensor = self._engine(compute, *arguments)
        return output

    def reference_forward(self, compute: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """Call `compute(*arguments)`, which uses the reference, inside a `forward`."""
        if self._reference_engine is None:
            return compute(*arguments)
        output: Tensor = self._reference_engine(compute, *arguments)
        return output

    def backward(self, loss: Tensor, *, is_last: bool, name: str) -> None:
        """Add one micro-batch's gradient; `name` says which records it holds, for errors.

        Losses are shares of the step's loss over all processes.
        """
        self._engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed takes the mean over processes, where ours is a sum.
        self._engine.backward(loss * self.processes.world_size)
        if not math.isfinite(loss.item()) or self._num_bad.item() > 0:
            self._bad_names.append(name)
            self._num_bad.zero_()

    def step(self, learning_rate: float) -> float:
        """Clip and apply the gradients; return their norm before clipping.

        Raises:
            NonFiniteError: on every process, before anything is applied, if any gradient or loss
                on any of them is not finite.
        """
        if self.processes.any(bool(self._bad_names)):
            names = sorted(
                {name for part in self.processes.gather(self._bad_names) for name in part}
            )
            raise NonFiniteError(
                f"loss or gradient is not finite for {'; '.join(names)}; the optimiser step was "
                "not taken (lower learning_rate, or set dtype=float32)"
            )
        # At stage 0 without bf16 DeepSpeed clips but tells no norm.
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        plain_norm = 0.0
        if self.stage == 0 and gradients:
            plain_norm = torch.nn.utils.get_total_norm(gradients).item()
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return plain_norm if norm is None else float(norm)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Hold whole parameters on every process for a while."""
        # Once per rollout, not per token.
        if self.stage < 3:
            yield
            return
        offload = self._engine.optimizer.parameter_offload
        with self._whole(list(self.policy.model.parameters())):
            for parameter in self.policy.model.parameters():
                parameter.ds_active_sub_modules.clear()
            # DeepSpeed's hooks would partition each module again after its forward. They are set
            # aside, not removed: registering them anew throws away the order of modules that it
            # has learned, and without it no weight is fetched ahead of its use.
            aside = []
            for hook in [*offload.forward_hooks, *offload.backward_hooks]:
                hooks = hook.hooks_dict_ref()
                aside.append((hooks, hook.id, hooks.pop(hook.id)))
            try:
                yield
            finally:
                for hooks, key, function in aside:
                    hooks[key] = function

    def save(self, folder: Path) -> None:
        """Write trained weights and optimiser state; every process takes part."""
        self._engine.save_checkpoint(
            str(folder), tag=_CHECKPOINT_TAG, save_latest=False, exclude_frozen_parameters=True
        )
        if self.processes.is_main:
            # DeepSpeed's scripts want a file that is not here, and would write the trained part
            # of the weights under other names; `final/` is the Hugging Face folder.
            for script in (*folder.glob("zero_to_*.py"), *folder.glob("*/zero_to_*.py")):
                script.unlink()

    def load(self, folder: Path) -> None:
        """Read trained weights and optimiser state back; frozen weights must be the run's first.

        Raises:
            CheckpointError: the folder holds no complete checkpoint.
        """
        try:
            if not any((folder / _CHECKPOINT_TAG).glob("*.pt")):
                raise FileNotFoundError("no states in it")
            self._engine.load_checkpoint(
                str(folder), tag=_CHECKPOINT_TAG, custom_load_fn=_load_trained
            )
        # A state that is missing or cut short ends in whatever its reader stumbles over.
        except Exception as error:
            if isinstance(error, MemoryError | torch.OutOfMemoryError):
                raise
            reason = short_reason(error, 200, kind=True)
            raise CheckpointError(
                f"{folder} holds no complete checkpoint ({reason}); remove it to resume from the "
                "one before"
            ) from error


def _same_bits(first: Tensor, second: Tensor) -> bool:
    """Tell equal tensors from others, type and NaN included."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    first, second = (t.detach().reshape(-1).view(torch.uint8) for t in (first, second))
    return torch.equal(first, second.to(first.device))


def _leave_out_frozen(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Keep frozen weights out of checkpoints under all of their names; DeepSpeed knows one each."""
    for name in _frozen_names(module):
        state.pop(prefix + name, None)


def _frozen_names(module: nn.Module) -> set[str]:
    named = module.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if not parameter.requires_grad}


def _load_trained(src: dict[str, Tensor], dst: nn.Module) -> None:
    """Put weights into a module; only those of frozen parameters may be missing."""
    report = dst.load_state_dict(src, strict=False)
    wrong = sorted({*report.missing_keys, *report.unexpected_keys} - _frozen_names(dst))
    if wrong:
        raise RuntimeError(f"'{wrong[0]}' is missing in it or unknown to the model")


def _import_deepspeed(on_cpu: bool) -> Any:
    """Import DeepSpeed, quiet, and without compiling anything on a CPU."""
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.ops.op_builder.all_ops import ALL_OPS
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch has since renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    if on_cpu:
        # Asked for its shared-memory operation, DeepSpeed would look for a compiler and run it.
        deepspeed.ops.__compatible_ops__ = dict.fromkeys(ALL_OPS, False)
    return deepspeed


def learning_rate_at(
    update: int, *, num_updates: int, peak: float, warmup_steps: int, schedule: Schedule
) -> float:
    """Learning rate of optimiser step `update`, counted from 0.

    Linear warm-up that reaches the peak in step `warmup_steps`, then constant, or a cosine that
    would reach 0 in step `num_updates`.
    """
    if update < warmup_steps:
        return peak * (update + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return peak
    done = (update - warmup_steps) / max(1, num_updates - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
