"""Opening and saving a policy: a plain Hugging Face folder (or hub id) with its processor."""

import contextlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor, nn

from strive.errors import MissingInputError, ModelError
from strive.files import expanded
from strive.models.family import Family
from strive.models.positions import PositionRule, check_rule
from strive.models.qwen2_5_vl import Qwen25VL
from strive.models.qwen3_vl import Qwen3VL

FAMILIES: dict[str, Family] = {"qwen2_5_vl": Qwen25VL(), "qwen3_vl": Qwen3VL()}
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Policy:
    """A model with everything that is needed to ask it questions about videos."""

    model: Any
    """The image-text-to-text model; `model.model.visual` is its tower."""
    processor: Any
    tokenizer: Any
    family: Family
    position_rule: PositionRule
    eos_ids: tuple[int, ...]
    """Tokens that end a completion."""
    pad_id: int
    """What fills a completion after its end."""
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
        """What the model computes in."""
        return self.model.dtype


def load_policy(
    model_id: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    position_rule: PositionRule = "published",
) -> Policy:
    """Open a Qwen2.5-VL or Qwen3-VL from a hub id or a folder, in evaluation mode.

    Remote code is never run. Raises `ModelError` for what cannot be opened and for other families.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    check_rule(position_rule)
    name = str(model_id)
    options: dict[str, Any] = {
        "trust_remote_code": False,
        "local_files_only": not _may_download(name),
    }
    config = _read_config(name, options)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            f"'{name}' is of family '{config.model_type}'; policies can be of "
            f"{' or '.join(FAMILIES)}; name another one with --model"
        )
    family.check(config)
    with _opening(name):
        model = open_weights(AutoModelForImageTextToText, name, dtype=_as_dtype(dtype), **options)
        processor = AutoProcessor.from_pretrained(name, **options)
    require_tokenizer(processor.tokenizer, name)
    model = model.to(device).eval()
    return make_policy(model, processor, position_rule=position_rule, model_id=name)


def make_policy(
    model: nn.Module,
    processor: Any,
    *,
    position_rule: PositionRule = "published",
    model_id: str = "",
) -> Policy:
    """Wrap an opened model and processor, for example one that was just built from a config."""
    config: Any = model.config
    family = FAMILIES[config.model_type]
    tokenizer = processor.tokenizer
    eos_ids = _end_ids(model, tokenizer)
    pad_id = tokenizer.pad_token_id
    return Policy(
        model=model,
        processor=processor,
        tokenizer=tokenizer,
        family=family,
        position_rule=position_rule,
        eos_ids=eos_ids,
        pad_id=int(eos_ids[0] if pad_id is None else pad_id),
        never_sampled_ids=_never_sampled(config, tokenizer, eos_ids),
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


def open_weights(model_class: Any, name: str, *, unused: Sequence[str] = (), **options: Any) -> Any:
    """Open a model with all of its weights; `unused` are parts of names that may be missing.

    transformers only warns of a weight that is in no file, and goes on with random numbers.

    Raises:
        ModelError: a weight is missing, or a file of weights is damaged.
    """
    from safetensors import SafetensorError

    try:
        with _without_progress_bars():
            model, report = model_class.from_pretrained(name, output_loading_info=True, **options)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
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


def _as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ModelError(f"dtype is '{dtype}'; allowed: {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _may_download(name: str) -> bool:
    """Whether the hub answers, found out in seconds: transformers retries for half a minute.

    A proxy may reach what this machine cannot, so then it is left to transformers.
    """
    from huggingface_hub import constants

    if Path(name).is_dir() or constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    if address.scheme in getproxies():
        return True
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=5.0).close()
    except OSError:
        return False
    return True


def _read_config(name: str, options: dict[str, Any]) -> Any:
    """The model's configuration, or one clear line for each way in which there is none."""
    from transformers import AutoConfig

    path = expanded(Path(name))
    looks_local = path.is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1
    if looks_local and not path.is_dir():
        raise MissingInputError(f"no model folder at '{name}'; --model takes a folder or a hub id")
    with _opening(name):
        return AutoConfig.from_pretrained(name, **options)


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keep transformers' own bars out of our output."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
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
        reason = " ".join(str(error).split())[:200]
        if Path(name).is_dir():
            raise ModelError(
                f"the folder '{name}' cannot be opened as a model with its processor: {reason}"
            ) from error
        raise ModelError(
            f"cannot open model '{name}': it is no folder here, and neither the hub nor the local "
            "copy of it has it; pass --model FOLDER, or --model lab:qwen2_5_vl for the embedded "
            f"one ({reason})"
        ) from error


def _end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Ends of a completion: the generation config's list, else the tokenizer's end of turn."""
    found = model.generation_config.eos_token_id if model.can_generate() else None
    if found is None:
        found = tokenizer.eos_token_id
    if found is None:
        raise ModelError("the model names no end-of-turn token; set eos_token_id in its config")
    return tuple(found) if isinstance(found, list | tuple) else (int(found),)


def _never_sampled(config: Any, tokenizer: Any, eos_ids: tuple[int, ...]) -> Tensor:
    """Vision tokens, and rows of the embedding that the tokenizer has no text for."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {getattr(config, name, None) for name in names}
    vision_pad = tokenizer.get_vocab().get("<|vision_pad|>")
    ids |= {vision_pad}
    ids |= set(range(len(tokenizer), config.text_config.vocab_size))
    return torch.tensor(sorted({i for i in ids if i is not None} - set(eos_ids)), dtype=torch.long)
