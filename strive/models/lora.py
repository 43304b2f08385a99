"""LoRA by peft, inside the model: small trained matrices beside frozen linear layers.

The model stays the same object with the same paths to its parts, so that rollouts and log-probs
need not know. With its adapters off it is the model that training began with, which is the
reference of the KL term without a second copy.
"""

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from strive.errors import ConfigError
from strive.models.family import Family
from strive.models.loading import Policy
from strive.seeding import derive_seed

_ADAPTER = "default"


def add_adapters(policy: Policy, *, targets: str, rank: int, alpha: int, seed: int) -> None:
    """Put adapters beside linear layers, in place, and leave nothing else trained.

    An adapted layer computes W x + (alpha / rank) B A x (LoRA, arXiv:2106.09685, Eq. 3). A is drawn
    as peft does (Kaiming uniform with a = sqrt 5), each from (seed, name), and B is 0: the model
    computes the same as before. No dropout: the packed row, the plain one and the rollout would
    each drop other values. `targets` is a name in the family's `adapter_targets` or a regular
    expression over the names of linear layers.

    Raises:
        ConfigError: the targets match no linear layer, or one that cannot have an adapter.
    """
    from peft import LoraConfig, inject_adapter_in_model

    model = policy.model
    names = _target_names(model, policy.family, targets)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=names)
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator; drawn anew here
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_adapter(name))
        if ".lora_A." in name and not parameter.is_meta:
            # On the CPU in float32, whatever the device and type: the same on every machine.
            drawn = torch.empty(parameter.shape)
            generator = torch.Generator().manual_seed(derive_seed(seed, "lora", name))
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            with torch.no_grad():
                parameter.copy_(drawn)


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Compute as if there were no adapters, for a while; nothing to do for a model without.

    Not between a forward and its backward pass: adapters require no gradient meanwhile.
    """
    layers = [layer for _, layer in _adapted_layers(model)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The model's own parameters under the names that they have without adapters."""
    for name, parameter in model.named_parameters():
        if not _is_adapter(name):
            yield _base_name(name), parameter


@torch.no_grad()
def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Weights of the equivalent model without adapters, on a copy where they differ.

    W + (alpha / rank) B A is added up in float32 and rounded once to W's type. The copies are on
    the CPU, one layer at a time. Without adapters it is the ordinary state.
    """
    layers = dict(_adapted_layers(model))
    merged: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if _is_adapter(name):
            continue
        owner, _, kind = name.rpartition(".base_layer.")
        if owner in layers and kind == "weight":
            layer = layers[owner]
            a, b = (part[_ADAPTER].weight.float() for part in (layer.lora_A, layer.lora_B))
            value = (value.float() + layer.scaling[_ADAPTER] * (b @ a)).to(value.dtype).cpu()
        merged[_base_name(name)] = value
    return merged


def _target_names(model: nn.Module, family: Family, targets: str) -> list[str]:
    named = family.adapter_targets
    pattern = named.get(targets, targets)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    try:
        names = [name for name in linear if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ConfigError(
            f"lora_targets '{targets}' is neither {' nor '.join(named)} nor a regular expression "
            f"({error})"
        ) from None
    if not names:
        raise ConfigError(
            f"lora_targets '{targets}' matches no linear layer of the model, such as '{linear[-2]}'"
            f"; use {', '.join(named)} or a regular expression over whole names"
        )
    wrong = [name for name in names if not re.fullmatch(family.may_have_adapters, name)]
    if wrong:
        raise ConfigError(
            f"lora_targets '{targets}' matches {len(wrong)} layers that cannot have adapters, such "
            f"as '{wrong[0]}'; only model.language_model and the mergers can"
        )
    return names


def _adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    # Told by their parts, so that a run without adapters never imports peft.
    for name, module in model.named_modules():
        if isinstance(getattr(module, "lora_A", None), nn.ModuleDict):
            yield name, module


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _base_name(name: str) -> str:
    return name.replace(".base_layer.", ".")
