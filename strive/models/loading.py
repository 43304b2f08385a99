"""Opening and saving a policy: a plain Hugging Face folder (or hub id) with its processor."""

import contextlib
import importlib
import json
import logging
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor, nn

from strive.errors import ConfigError, MissingInputError, ModelError, first_line, short_reason
from strive.files import expanded
from strive.models.family import Family
from strive.models.positions import PositionRule, check_rule
from strive.models.qwen2_5_vl import Qwen25VL
from strive.models.qwen3_vl import Qwen3VL

FAMILIES: dict[str, Family] = {"qwen2_5_vl": Qwen25VL(), "qwen3_vl": Qwen3VL()}
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
POLICY_DTYPES = ("float32", "bfloat16")
"""Of `DTYPES`, those in which a policy can compute."""
HUB_TIMEOUT_SECONDS = 5.0


def pick_device(name: str) -> torch.device:
    """Return the device of a name; `auto` is the GPU where there is one.

    Raises:
        ConfigError: no such device, or none on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"--device {name} cannot be used here ({short_reason(first_line(error))}); use auto or "
            "cpu"
        ) from None
    return device


def pick_dtype(
    name: str | None, device: torch.device, allowed: Collection[str] = tuple(DTYPES)
) -> str:
    """Return the name of a dtype; `auto` or None is float32 on a CPU and bfloat16 elsewhere.

    Raises:
        ModelError: the name is not one of `allowed`.
    """
    if name is None or name == "auto":
        return "float32" if device.type == "cpu" else "bfloat16"
    if name not in allowed:
        raise ModelError(f"dtype '{name}' is not one of {', '.join(allowed)}")
    return name


def go_offline_if_unreachable() -> bool:
    """Switch this process to the local cache when the hub does not answer; whether it is offline.

    Otherwise each missing file is retried with pauses, which adds up to most of a minute of
    warnings before the error that the user should see.
    """
    import huggingface_hub
    from huggingface_hub import constants

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if constants.HF_HUB_OFFLINE:
        return True
    session = huggingface_hub.get_session()
    # The hub's client library has changed its name between releases; its own error class is meant.
    http = importlib.import_module(type(session).__module__.partition(".")[0])
    answered = threading.Event()

    def ask() -> None:
        try:
            session.head(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS)
        except http.TransportError:
            return
        answered.set()

    # A thread of its own: looking up a name has no time limit.
    thread = threading.Thread(target=ask, name="strive-hub", daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_SECONDS)
    if not answered.is_set():
        constants.HF_HUB_OFFLINE = True
    return bool(constants.HF_HUB_OFFLINE)


@dataclass(frozen=True)
class Policy:
    """A model with everything that is needed to ask it questions about videos."""

    model: Any
    """The image-text-to-text model; `family` knows its parts."""
    processor: Any
    tokenizer: Any
    family: Family
    position_rule: PositionRule
    eos_ids: tuple[int, ...]
    """Tokens that end a completion."""
    pad_id: int
    """Fills a completion after its end."""
    never_sampled_ids: Tensor
    """Vision placeholders and ids without a text: sampling them would break the next forward."""
    model_id: str

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Type that the model computes in."""
        return self.model.dtype


def load_policy(
    model_id: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    position_rule: PositionRule = "published",
) -> Policy:
    """Open a Qwen2.5-VL or Qwen3-VL from a hub id or a folder, in evaluation mode.

    `dtype` is one of `POLICY_DTYPES`, or `auto`: see `pick_dtype`.
    Remote code is never run. Raises `ModelError` for what cannot be opened and for other families.
    """
    from transformers import AutoModelForImageTextToText

    check_rule(position_rule)
    if isinstance(dtype, str):
        dtype = DTYPES[pick_dtype(dtype, torch.device(device), POLICY_DTYPES)]
    opened = open_model(model_id)
    name = opened.name
    with _opening(name):
        model = open_weights(
            AutoModelForImageTextToText,
            name,
            device=device,
            dtype=dtype,
            **_options(name),
        )
    model = model.to(device).eval()
    return make_policy(model, opened.processor, position_rule=position_rule, model_id=name)


@dataclass(frozen=True)
class OpenedModel:
    """A policy before its weights are loaded."""

    name: str
    config: Any
    processor: Any
    family: Family


def open_model(model_id: str | Path) -> OpenedModel:
    """Open a policy's configuration and processor, which takes no time and no memory.

    Raises:
        MissingInputError, ModelError: it cannot be opened, is no Qwen2.5-VL or Qwen3-VL, or lacks
            what prompts are made with.
    """
    from transformers import AutoProcessor

    name = str(model_id)
    config = _read_config(name)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            f"'{name}' is of family '{config.model_type}'; policies can be of "
            f"{' or '.join(FAMILIES)}; name another one with --model"
        )
    family.check(config)
    with _opening(name):
        processor = AutoProcessor.from_pretrained(name, **_options(name))
    require_tokenizer(processor.tokenizer, name)
    _require_chat_template(processor, name)
    return OpenedModel(name, config, processor, family)


def require_trainable(opened: OpenedModel) -> None:
    """Refuse weights of a kind that gradients cannot move.

    Raises:
        ModelError: they are quantised.
    """
    quantised = None
    for config in (opened.config, opened.config.text_config):
        quantised = quantised or getattr(config, "quantization_config", None)
    if quantised:
        fields = quantised if isinstance(quantised, dict) else vars(quantised)
        method = fields.get("quant_method", "an unnamed method")
        raise ModelError(
            f"the weights of '{opened.name}' are quantised ({method}, quantization_config in its "
            "config.json) and cannot be trained; give the model that they were made from with "
            "--model (trainable=lora takes less memory)"
        )


def make_policy(
    model: Any,
    processor: Any,
    *,
    position_rule: PositionRule = "published",
    model_id: str = "",
) -> Policy:
    """Wrap an opened model and processor, for example one that was just built from a config.

    Raises:
        ModelError: no end of turn is named.
    """
    config = model.config
    family = FAMILIES[config.model_type]
    tokenizer = processor.tokenizer
    # Generation config and tokenizer: either may lack the end that a chat ends its turns with.
    named = model.generation_config.eos_token_id if model.can_generate() else None
    ends = [*(named if isinstance(named, list | tuple) else [named]), tokenizer.eos_token_id]
    eos_ids = tuple(dict.fromkeys(int(i) for i in ends if i is not None))
    if not eos_ids:
        raise ModelError("the model names no end-of-turn token; set eos_token_id in its config")
    pad_id = tokenizer.pad_token_id
    # Vision tokens, and rows of the embedding that the tokenizer has no text for.
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    never = {getattr(config, name, None) for name in names}
    never.add(tokenizer.get_vocab().get("<|vision_pad|>"))
    never |= set(range(len(tokenizer), config.text_config.vocab_size))
    never -= {None, *eos_ids}
    return Policy(
        model=model,
        processor=processor,
        tokenizer=tokenizer,
        family=family,
        position_rule=position_rule,
        eos_ids=eos_ids,
        pad_id=int(eos_ids[0] if pad_id is None else pad_id),
        never_sampled_ids=torch.tensor(sorted(never), dtype=torch.long),
        model_id=model_id,
    )


def save_policy(
    policy: Policy, folder: Path, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Write model, processor and generation config as a folder that any tool opens.

    `state_dict` replaces the model's own weights, for weights gathered from several processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _without_progress_bars():
        policy.model.save_pretrained(folder, state_dict=state_dict)
    policy.processor.save_pretrained(folder)


def open_weights(
    model_class: Any,
    name: str,
    *,
    device: str | torch.device = "cpu",
    unused: Sequence[str] = (),
    **options: Any,
) -> Any:
    """Open a model with all of its weights; `unused` are parts of names that may be missing.

    Each weight goes to the device by itself, so that a process keeps no copy of the model in the
    host's memory; on a CPU weights of the wanted type are the mapped file's own pages. transformers
    only warns of a weight that is in no file, and goes on with random numbers.

    Raises:
        ModelError: a weight is missing, or a file of weights is damaged.
    """
    from safetensors import SafetensorError

    if torch.device(device).type != "cpu":
        options["device_map"] = {"": device}
    try:
        with _without_progress_bars():
            model, report = model_class.from_pretrained(name, output_loading_info=True, **options)
    except (SafetensorError, RuntimeError) as error:
        reason = short_reason(error)
        raise ModelError(
            f"the weights of '{name}' are damaged or not those of its config.json: {reason}"
        ) from error
    missing = sorted(
        key for key in report["missing_keys"] if not any(part in key for part in unused)
    )
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"the weights of '{name}' lack '{missing[0]}'{more}")
    return model


def require_tokenizer(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer without a vocabulary, which is what transformers makes of no files.

    Raises:
        ModelError: it gives a letter no token.
    """
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise ModelError(f"'{name}' has no tokenizer: its tokenizer.json or vocabulary is missing")


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout or gradient checkpointing (which drops the key-value cache) for a while."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass, in training mode: less memory, more time.

    transformers also makes the embeddings' outputs require a gradient, which only its older kind
    of checkpointing needs; taken back here, so that frozen parts stay out of the graph.
    """
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()


def _require_chat_template(processor: Any, name: str) -> None:
    """Refuse a folder whose prompts could not be made.

    Raises:
        ModelError: there is no chat template, or it writes no video.
    """
    if processor.chat_template is None:
        # Folders of before processors had one keep it with the tokenizer.
        processor.chat_template = processor.tokenizer.chat_template
    if processor.chat_template is None:
        raise ModelError(
            f"'{name}' has no chat template: chat_template.jinja is missing; copy it from the "
            "model that this one was made from"
        )
    content = [{"type": "video"}, {"type": "text", "text": "a"}]
    try:
        rendered = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise ModelError(
            f"the chat template of '{name}' cannot be rendered ({short_reason(error)}); copy "
            "chat_template.jinja from the model that this one was made from"
        ) from error
    if processor.video_token not in rendered:
        raise ModelError(
            f"the chat template of '{name}' leaves out the video of a question; copy "
            "chat_template.jinja from the model that this one was made from"
        )


def _options(name: str) -> dict[str, Any]:
    """Remote code is never run, and a hub that does not answer is not asked again and again."""
    is_folder = Path(name).is_dir()
    return {
        "trust_remote_code": False,
        "local_files_only": is_folder or go_offline_if_unreachable(),
    }


def _read_config(name: str) -> Any:
    """The model's configuration, or one clear line for each way in which there is none."""
    from transformers import AutoConfig

    path = expanded(Path(name))
    looks_local = path.is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1
    if looks_local and not path.is_dir():
        raise MissingInputError(f"no model folder at '{name}'; --model takes a folder or a hub id")
    _require_no_run_folder(path)
    with _opening(name):
        return AutoConfig.from_pretrained(name, **_options(name))


def _require_no_run_folder(path: Path) -> None:
    """Refuse what a training left beside its models.

    Raises:
        ModelError: it is a run's folder, a checkpoint, or adapters without their model.
    """
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise ModelError(
            f"'{path}' holds adapters without their model; merge them into it (peft's "
            "merge_and_unload) and give the merged folder with --model"
        )
    for run in (path, *path.parents[:2]):
        is_inside = path == run or path.relative_to(run).parts[0] == "checkpoints"
        if not is_inside or not _is_run(run):
            continue
        what = "the folder of a run" if path == run else "a checkpoint of a run"
        models = [run / name for name in ("final", "best") if (run / name).is_dir()]
        raise ModelError(
            f"'{path}' is {what}, which is no model; "
            + (
                f"its model is {' or '.join(map(str, models))}"
                if models
                else f"the run has left none yet: --resume --run-dir {run} goes on to {run}/final"
            )
        )


def _is_run(folder: Path) -> bool:
    """Whether a folder's `config.json` is one that a training wrote."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"config", "data", "versions"} <= found.keys()


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keep transformers' own bars, and its table of missing weights, out of our output."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _opening(name: str) -> Iterator[None]:
    """Turn the many errors of an unreachable hub or an incomplete folder into one line."""
    try:
        yield
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = short_reason(error)
        if Path(name).is_dir():
            raise ModelError(
                f"the folder '{name}' cannot be opened as a model with its processor: {reason}"
            ) from error
        raise ModelError(
            f"cannot open model '{name}': it is no folder here, and neither the hub nor the local "
            "copy of it has it; pass --model FOLDER, or --model lab:qwen2_5_vl for the embedded "
            f"one ({reason})"
        ) from error
