"""Combinations of keys without a meaning: one line with the values, the reason and the way out."""

import pytest

from strive.configs.load import load_config
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError

TWO = "updates_per_rollout=2"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["spatial=true", "views=[noise]"],
            r"views is \['noise'\] with spatial=true; name",
        ),
        (["views=[none, noise, grey]"], r"3 views for num_variants=2; one for all, or one for"),
        (
            ["contrast=shuffle", "num_frames=1"],
            r"contrast is 'shuffle' with num_frames=1, which",
        ),
        (["minibatches_per_rollout=3"], r"is 3, which does not divide questions_per_step=4 into"),
        (["surrogate=regression"], r"one optimiser step a rollout .* set updates_per_rollout=2 or"),
        (["surrogate=regression", TWO, "objective=dapo"], r"objective 'dapo'; its loss is a mean"),
        (["surrogate=regression", TWO, "grouping=hierarchical"], r"set grouping=joint or per_vari"),
        (
            ["surrogate=regression", TWO, "std=batch"],
            r"'regression' with std 'batch'",
        ),
        (["surrogate=regression", TWO, "mask_truncated=true"], r"compares all completions of a gr"),
        (["ratio=geometric"], r"'geometric' with one optimiser step a rollout is GRPO"),
        (["ratio=sequence", "surrogate=sapo"], r"'sequence' with surrogate 'sapo', which is made"),
        (["dual_clip=3", "surrogate=cispo"], r"dual_clip is 3.0 with surrogate 'cispo'"),
        (
            ["std=batch", "objective=dr_grpo"],
            r"std 'batch' with grouping 'joint' and obj",
        ),
        (
            ["std=ema_per_type", "grouping=per_variant"],
            r"std 'ema_per_type' with grouping",
        ),
        (["grouping=share", "objective=dr_grpo"], r"'share' with objective 'dr_grpo' and std_corr"),
        (["grouping=share", "std_correction=0"], r"divides by a std of ddof 1"),
        (
            ["resample_rounds=1", "rewards={format: 1}"],
            r"judges groups by the reward 'accu",
        ),
    ],
)
def test_it_is_refused_with_the_reason(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        load_config(TrainConfig, [], overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["views=[none, noise]"],
        ["contrast=grey", "num_frames=1"],
        ["minibatches_per_rollout=4", "ratio=geometric"],
        ["surrogate=regression", TWO, "grouping=per_variant"],
        ["std=batch"],
        ["grouping=share"],
    ],
)
def test_its_neighbours_are_taken(overrides: list[str]) -> None:
    load_config(TrainConfig, [], overrides)
