"""The presets for people: what kind each is, and what a method changes against `grpo`.

A method says how a policy learns, and names no model; a model says which policy, and what its size
needs. A run is both in one file. The lab's presets are models and runs of the embedded world.
"""

from typing import Any, Literal, get_args

from strive.configs.load import PRESETS, preset_names, read_config_file, read_yaml

PresetKind = Literal["method", "model", "lab", "run"]
BASE_METHOD = "grpo"
"""The method that the others are told by their differences from."""


def preset_about(name: str) -> str:
    """Return the first line of a preset's own comment, which says what it is."""
    first = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def preset_kind(name: str) -> PresetKind:
    """Tell what a preset is, by its name (the lab's) and by what it and those it extends say."""
    if name == "lab" or name.startswith("lab_"):
        return "lab"
    if "model" not in read_config_file(name):
        return "method"
    # A run extends a method and a model; a model extends nothing.
    return "model" if "model" in read_yaml(PRESETS / f"{name}.yaml") else "run"


def presets_by_kind() -> dict[PresetKind, list[str]]:
    """All presets: methods, with `grpo` and `strive` first, then models, the lab's, and runs."""
    first = (BASE_METHOD, "strive")
    found: dict[PresetKind, list[str]] = {kind: [] for kind in get_args(PresetKind)}
    for name in sorted(preset_names(), key=lambda name: (name not in first, name)):
        found[preset_kind(name)].append(name)
    return found


def method_changes(name: str) -> dict[str, Any]:
    """Return what a method sets that `grpo` does not, or otherwise, in the order of its file."""
    base, sets = read_config_file(BASE_METHOD), read_config_file(name)
    own = read_yaml(PRESETS / f"{name}.yaml")
    in_order = [*(key for key in own if key in sets), *sets]
    return {key: sets[key] for key in in_order if key not in base or base[key] != sets[key]}
