"""Combinations of training keys without a meaning: each refused with the reason and a way out."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from strive.configs.schema import TrainConfig


def check_combinations(config: "TrainConfig") -> None:
    """Refuse what no run can mean.

    Raises:
        ValueError: the values, why they do not go together, and the key to change.
    """
    _check_groups(config)
    _check_views(config)
    _check_loss(config)


def _check_groups(config: "TrainConfig") -> None:
    if config.variants == "none" and config.num_variants != 1:
        raise ValueError(
            f"num_variants is {config.num_variants} with variants 'none'; GRPO has one visual "
            "input, so set num_variants=1 (and num_generations=8 for the paper's budget)"
        )
    if config.num_variants * config.num_generations < 2:
        raise ValueError(
            "num_variants x num_generations is 1; a group needs at least 2 completions"
        )
    if config.grouping != "joint" and config.num_generations < 2:
        raise ValueError(
            f"grouping '{config.grouping}' normalises over each variant's completions; "
            f"num_generations is {config.num_generations}, at least 2 are needed"
        )
    if config.evaluate_every and not config.held_out:
        raise ValueError(
            f"evaluate_every is {config.evaluate_every} but held_out names no records; "
            "set held_out=[FILE] or evaluate_every=0"
        )
    if not config.rewards:
        raise ValueError("rewards is empty; name at least one, e.g. {accuracy: 1.0}")
    if not any(config.rewards.values()):
        raise ValueError(
            f"rewards are {config.rewards}, all of weight 0, from which nothing is learned; "
            "give one another weight, e.g. {accuracy: 1.0}"
        )
    if config.std != "group" and (config.grouping != "joint" or config.objective == "dr_grpo"):
        raise ValueError(
            f"std '{config.std}' with grouping '{config.grouping}' and objective "
            f"'{config.objective}'; it divides the advantages of the joint pool: set "
            "grouping=joint and another objective, or std=group"
        )
    if config.grouping == "share" and (config.objective == "dr_grpo" or not config.std_correction):
        raise ValueError(
            f"grouping 'share' with objective '{config.objective}' and std_correction="
            f"{config.std_correction}; its advantage divides by a std of ddof 1: set another "
            "objective and std_correction=1, or grouping=hierarchical"
        )
    if config.resample_rounds and "accuracy" not in config.rewards:
        raise ValueError(
            f"resample_rounds is {config.resample_rounds}, which judges groups by the reward "
            f"'accuracy', and rewards names {', '.join(config.rewards)}; add accuracy (of weight "
            "0, if it is not to count), or set resample_rounds=0"
        )


def _check_views(config: "TrainConfig") -> None:
    if config.spatial and config.views:
        raise ValueError(
            f"views is {list(config.views)} with spatial=true; name spatial among the views, or "
            "set spatial=false"
        )
    if len(config.views) not in (0, 1, config.num_variants):
        raise ValueError(
            f"views names {len(config.views)} views for num_variants={config.num_variants}; one "
            "for all, or one for each variant is wanted"
        )
    if config.contrast in ("shuffle", "reverse") and config.num_frames == 1:
        raise ValueError(
            f"contrast is '{config.contrast}' with num_frames=1, which has no order; set "
            "num_frames=2 or more, or contrast=none"
        )


def _check_loss(config: "TrainConfig") -> None:
    if config.questions_per_step % config.minibatches_per_rollout:
        raise ValueError(
            f"minibatches_per_rollout is {config.minibatches_per_rollout}, which does not divide "
            f"questions_per_step={config.questions_per_step} into equal parts"
        )
    if config.surrogate == "regression":
        if config.optimiser_steps_per_rollout == 1:
            raise ValueError(
                "surrogate 'regression' with one optimiser step a rollout is the policy "
                "gradient times a constant; set updates_per_rollout=2 or "
                "minibatches_per_rollout=2"
            )
        if config.grouping not in ("joint", "per_variant") or config.objective != "grpo":
            raise ValueError(
                f"surrogate 'regression' with grouping '{config.grouping}' and objective "
                f"'{config.objective}'; its loss is a mean over completions whose advantages are "
                "of one pool: set grouping=joint or per_variant, and objective=grpo"
            )
        if config.std != "group":
            raise ValueError(
                f"surrogate 'regression' with std '{config.std}'; its predictions are divided by "
                "their own std, as the group's rewards must be: set std=group"
            )
        if config.mask_truncated:
            raise ValueError(
                "mask_truncated with surrogate 'regression', which compares all completions of a "
                "group; set one of them back"
            )
    if config.ratio == "geometric" and config.optimiser_steps_per_rollout == 1:
        raise ValueError(
            "ratio 'geometric' with one optimiser step a rollout is GRPO, since the ratio is 1; "
            "set minibatches_per_rollout or updates_per_rollout above 1, or ratio=token"
        )
    if config.ratio != "token" and config.surrogate in ("cispo", "sapo", "regression"):
        raise ValueError(
            f"ratio '{config.ratio}' with surrogate '{config.surrogate}', which is made for ratios "
            "of tokens; set ratio=token, or surrogate=clip"
        )
    if config.dual_clip is not None and config.surrogate != "clip":
        raise ValueError(
            f"dual_clip is {config.dual_clip} with surrogate '{config.surrogate}', which is not "
            "clipped; leave it out, or set surrogate=clip"
        )
