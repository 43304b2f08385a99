"""Sections of docs/performance.md on the online stage: step, data, growth."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]

CONTENDERS = {
    "ours": "ours",
    "rows": "full rows (Video-R1's way)",
    "trl": "TRL GRPOTrainer, images",
}
TOWERS = {"language": "frozen", "all": "trained"}
PARTS = {
    "rollout": "rollout",
    "logprob_backward": "log-prob, backward, update",
    "step": "whole step",
}
SHAPES = (("by_generations", "G", "M=2"), ("by_variants", "M", "G=4"))


def step_lines(result: Result) -> Iterator[str]:
    """Tables of bench/step."""
    figures = result["figures"]
    cases = figures["cases"]
    first = next(iter(cases.values()))
    yield (
        f"A Qwen2.5-VL with random weights in the proportions of the 7B one, float32, "
        f"{figures['threads']} threads, one question: M={figures['num_variants']} variants of 16 "
        f"frames ({first['prompt_tokens']} prompt tokens each), G={figures['num_generations']} "
        f"completions of {figures['completion_tokens']} tokens. *Full rows* is the same model "
        "trained as Video-R1 does it: pixels repeated G times, one row per completion, logits at "
        "every position, policy and reference alike. TRL's trainer takes no video and gets images "
        "of as many tokens. A *vision encode* is one pass of one video through a tower."
    )
    yield ""
    yield (
        "| vocabulary (parameters) | tower | contender | rollout, s | log-prob, backward, update, "
        "s | whole step, s | peak memory, MiB | vision encodes |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for name, case in cases.items():
        vocabulary, trainable = name.split()
        millions = case["parameters"]["all"] / 1e6
        for contender, seconds in case["median_seconds"].items():
            cells = " | ".join(f"{seconds[part]:.2f}" for part in PARTS)
            yield (
                f"| {int(vocabulary):,} ({millions:.1f} M) | {TOWERS[trainable]} "
                f"| {CONTENDERS[contender]} | {cells} | {case['peak_mib'][contender]:.0f} "
                f"| {case['encodes_per_step'][contender]:g} |"
            )
    yield ""
    yield "Peak memory is resident memory above that of the loaded models."
    yield ""
    yield from _ratio_lines(cases, figures["floors"])


def readme_lines(result: Result) -> Iterator[str]:
    """The README's short table: the first vocabulary, the tower frozen."""
    figures = result["figures"]
    case = next(iter(figures["cases"].values()))
    ours = case["median_seconds"]["ours"]["step"]
    yield ""
    yield (
        f"| a training step, {case['parameters']['all'] / 1e6:.0f} M parameters, M="
        f"{figures['num_variants']}, G={figures['num_generations']}, {case['prompt_tokens']} + "
        f"{figures['completion_tokens']} tokens | seconds | memory, MiB | vision encodes |"
    )
    yield "| --- | --- | --- | --- |"
    for contender, seconds in case["median_seconds"].items():
        times = "" if contender == "ours" else f" ({seconds['step'] / ours:.1f} times ours)"
        yield (
            f"| {CONTENDERS[contender]} | {seconds['step']:.1f}{times} "
            f"| {case['peak_mib'][contender]:,.0f} | {case['encodes_per_step'][contender]:g} |"
        )
    yield ""


def _ratio_lines(cases: Mapping[str, Any], floors: Mapping[str, float]) -> Iterator[str]:
    heads = [f"{int(n.split()[0]):,}, {TOWERS[n.split()[1]]}" for n in cases]
    yield f"| ratio | wanted, first vocabulary | {' | '.join(heads)} |"
    yield "|---|---|" + "---|" * len(heads)
    for pair in next(iter(cases.values()))["ratios"]:
        wanted = f"at least {floors[pair]:g}" if pair in floors else ""
        ratios = [case["ratios"].get(pair) for case in cases.values()]
        cells = " | ".join("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        yield f"| {_pair_name(pair)} | {wanted} | {cells} |"
    ceiling = next(iter(cases.values()))["token_count_ceiling"]
    yield ""
    yield (
        "The last four rows are the log-prob pass of the policy by itself, forward and backward, "
        "against full rows whose logits are made at the completions' positions only. Counting "
        f"tokens alone, a packed row can save at most G(P + L) / (P + G L) = {ceiling:.2f} times; "
        "the tower, run once and not G times, is on top of that. The two rows *same features* give "
        "both sides the tower's output and run the full rows one after another. *rollout over "
        "num_return_sequences* is `generate` of transformers 5, which encodes a video once but "
        "still computes G prompt caches."
    )


def _pair_name(pair: str) -> str:
    return pair.replace("logprob_backward", "log-prob, backward, update")


def data_lines(result: Result) -> Iterator[str]:
    """Tables of bench/data."""
    figures = result["figures"]
    questions = figures["questions_per_step"]
    yield (
        f"The frames of a step of {questions} questions on clips of "
        f"{figures['clip_seconds']:g} s in 1280x720: M={figures['num_variants']} variants of "
        f"K={figures['num_frames']} frames from the cache, against one decode of "
        f"{figures['num_frames']} frames a question in the step, as Video-R1 does it "
        f"(`qwen-vl-utils`, {figures['backend']}). Training reads the next step's frames while "
        "this one computes, so that the step waits for neither; the seconds are still work."
    )
    yield ""
    yield "| way | frames | s a step | CPU s a step | times cheaper, wall (CPU) |"
    yield "|---|---|---|---|---|"
    ratios = figures["ratios"]
    for name, seconds in figures["median_seconds"].items():
        cheaper = ""
        if f"{name} (wall)" in ratios:
            cheaper = f"{ratios[f'{name} (wall)']:.0f} ({ratios[f'{name} (CPU)']:.0f})"
        yield (
            f"| {name} | {figures['frames'][name]} | {seconds:.3f} "
            f"| {figures['cpu_seconds'][name]:.3f} | {cheaper} |"
        )
    yield ""
    floors = figures["floors"]
    yield f"| share of a step (wanted: under {floors['share_of_step']:.0%}) | ours | decode |"
    yield "|---|---|---|"
    for which, shares in figures["share_of_step"].items():
        yield f"| {which} | {shares['ours']:.2%} | {shares['decode']:.1%} |"
    yield ""
    yield (
        f"Wanted: at least {floors['ratio']:g} times cheaper. The first step is ours of the "
        f"section above, times {questions} for as many questions; the second is what Video-R1's "
        f"authors report for a step of four questions, {figures['video_r1_step_seconds']:g} s."
    )


def growth_lines(result: Result, plot: str) -> Iterator[str]:
    """Tables of bench/growth and the plot's place."""
    figures = result["figures"]
    yield (
        "The first section's model and question with a frozen tower. A step has M x G responses; a "
        "prompt is read once per variant, so what it costs is shared by more responses as G grows."
    )
    yield ""
    yield f"![Seconds per response against G and against M]({plot})"
    for key, letter, fixed in SHAPES:
        yield ""
        heads = " | ".join(f"{name}, s per response" for name in PARTS.values())
        yield f"| {letter} at {fixed} | {heads} |"
        yield "|---|---|---|---|"
        for row in figures[key]:
            number = row["num_generations" if letter == "G" else "num_variants"]
            seconds = row["seconds_per_response"]
            yield f"| {number} | " + " | ".join(f"{seconds[part]:.3f}" for part in PARTS) + " |"
    yield ""
    falling = figures["falls_with_generations"]
    verdicts = [f"{PARTS[part]} {'yes' if falls else 'no'}" for part, falls in falling.items()]
    yield f"Falls with every step of G: {', '.join(verdicts)}."


def plot_growth(result: Result, path: Path) -> None:
    """Write the plot of bench/growth as SVG, the same bytes for the same figures."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figures = result["figures"]
    settings = {"svg.hashsalt": "strive", "svg.fonttype": "none"}
    with matplotlib.rc_context(settings):
        chart, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
        for axis, (key, letter, fixed) in zip(axes, SHAPES, strict=True):
            rows = figures[key]
            counts = [row["num_generations" if letter == "G" else "num_variants"] for row in rows]
            for part, label in PARTS.items():
                times = [row["seconds_per_response"][part] for row in rows]
                axis.plot(counts, times, marker="o", label=label)
            axis.set_xscale("log", base=2)
            axis.set_xticks(counts, [str(count) for count in counts])
            axis.set_xlabel(f"{letter} ({fixed})")
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("seconds per response")
        axes[0].legend(frameon=False)
        chart.savefig(path, metadata={"Date": None})
        pyplot.close(chart)
