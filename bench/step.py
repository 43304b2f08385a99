"""One training step against the ways it is done elsewhere, on a 30 M-parameter Qwen2.5-VL.

ours   the real `train_step` and engine: rollout, rewards, advantages, packed log-probs of policy
       and reference, backward pass, optimiser step;
rows   as Video-R1 does it: pixels repeated G times, one full row per completion, logits at every
       position (`bench/step_rows.py`);
trl    TRL's GRPOTrainer, images of the same number of tokens in place of the video.

M=2 variants of 16 frames, G=4 completions of 128 tokens each, one question a step, CPU, float32,
two threads. Every contender is a process of its own and they take turns; medians. The log-prob
pass is measured once more by itself, forward and backward, against full rows whose logits are made
at the completions' positions only.

    python -m bench.step [--repeats 3] [--large-repeats 1] [--quick]
"""

import argparse
import statistics
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from bench.harness import OtherLoad, write_result
from bench.step_model import Setup, model_folder
from bench.step_worker import Worker

CONTENDERS = ("ours", "rows", "trl")
PARTS = ("rollout", "logprob_backward", "step")
SMALL, LARGE = 8192, 151_936
NUM_VARIANTS, NUM_GENERATIONS, NUM_TOKENS = 2, 4, 128
WARM_UP_TOKENS = 4
FLOORS = {
    "logprob_backward over rows": 3.0,
    "rollout over rows": 1.6,
    "step over rows": 2.5,
    "step over trl": 2.5,
    "peak memory of rows over ours": 2.0,
    "log-prob pass over token-count ceiling": 0.9,
}
"""What is wanted at least, of the small vocabulary with either tower."""


@dataclass(frozen=True)
class Case:
    """One vocabulary with one tower, and who is measured on it."""

    vocabulary: int
    trainable: str
    contenders: tuple[str, ...] = CONTENDERS
    num_passes: int = 2
    """How often the log-prob pass is measured by itself."""

    @property
    def alone(self) -> bool:
        """One process at a time: three of them with the large vocabulary want too much memory."""
        return self.vocabulary == LARGE


CASES = (
    Case(SMALL, "language"),
    Case(SMALL, "all"),
    Case(LARGE, "language", num_passes=1),
    Case(LARGE, "all", contenders=("ours", "rows"), num_passes=1),
)


@dataclass
class Answers:
    """What one contender answered over a case's turns."""

    about: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, float]] = field(default_factory=list)
    rollouts: list[float] = field(default_factory=list)

    def median(self, part: str) -> float:
        """Median seconds of a part of the step."""
        return statistics.median(step["seconds"][part] for step in self.steps)

    def median_logprob(self, way: str) -> float:
        """Median seconds of the log-prob pass by itself."""
        return statistics.median(found[way] for found in self.logprobs)


def token_ceiling(prompt: int, completion: int, generations: int) -> float:
    """Tokens of G full rows over those of one packed row: G(P + L) / (P + G L)."""
    return generations * (prompt + completion) / (prompt + generations * completion)


def ask_in_turns(case: Case, setup: Setup, num_tokens: int, repeats: int) -> dict[str, Answers]:
    """Ask every contender for its step, again and again, then for parts by themselves."""
    answers = {name: Answers() for name in case.contenders}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for number in range(repeats):
            for name in case.contenders:
                if name not in workers:
                    workers[name] = stack.enter_context(closing(Worker(name, setup)))
                    answers[name].about = workers[name].about
                    workers[name].ask("step", 100, WARM_UP_TOKENS)
                answers[name].steps.append(workers[name].ask("step", number, num_tokens))
                if case.alone:
                    if number == 0:
                        _ask_for_passes(workers, answers, case.num_passes, num_tokens)
                    workers.pop(name).close()
        _ask_for_passes(workers, answers, case.num_passes, num_tokens)
    return answers


def _ask_for_passes(
    workers: dict[str, Worker], answers: dict[str, Answers], repeats: int, num_tokens: int
) -> None:
    """After all steps, because they would raise the peak of memory."""
    for number in range(repeats):
        for name, worker in workers.items():
            if name in ("ours", "rows"):
                answers[name].logprobs.append(worker.ask("logprobs", number, num_tokens))
    if "rows" in workers:
        answers["rows"].rollouts.append(workers["rows"].ask("rollout", 0, num_tokens)["rollout"])


def figures_of(answers: dict[str, Answers], num_tokens: int) -> dict[str, Any]:
    """Seconds, ratios over ours, memory and encodes of one case."""
    ours, rows = answers["ours"], answers["rows"]
    prompt_tokens = ours.steps[0]["prompt_tokens"]
    ceiling = token_ceiling(prompt_tokens, num_tokens, NUM_GENERATIONS)
    peak_mib = {name: found.steps[-1]["peak_bytes"] / 2**20 for name, found in answers.items()}
    others = [name for name in answers if name != "ours"]
    ratios = {
        f"{part} over {name}": answers[name].median(part) / ours.median(part)
        for name in others
        for part in PARTS
    }
    memory = {
        f"peak memory of {name} over ours": peak_mib[name] / peak_mib["ours"] for name in others
    }
    rollout_once = statistics.median(rows.rollouts)
    logprob_pass = {
        "packed": ours.median_logprob("packed"),
        "rows": rows.median_logprob("rows"),
        "plain": ours.median_logprob("plain"),
    }
    over_rows = logprob_pass["rows"] / logprob_pass["packed"]
    over_plain = logprob_pass["plain"] / logprob_pass["packed"]
    return {
        "parameters": ours.about["parameters"],
        "prompt_tokens": prompt_tokens,
        "seconds": {
            name: {part: [step["seconds"][part] for step in found.steps] for part in PARTS}
            for name, found in answers.items()
        },
        "median_seconds": {
            name: {part: found.median(part) for part in PARTS} for name, found in answers.items()
        },
        "rollout_of_num_return_sequences_seconds": rollout_once,
        "logprob_pass_seconds": logprob_pass,
        "token_count_ceiling": ceiling,
        "ratios": ratios
        | memory
        | {
            "rollout over num_return_sequences": rollout_once / ours.median("rollout"),
            "log-prob pass over rows": over_rows,
            "log-prob pass over token-count ceiling": over_rows / ceiling,
            "log-prob pass over plain, same features": over_plain,
            "the same over token-count ceiling": over_plain / ceiling,
        },
        "peak_mib": peak_mib,
        "encodes_per_step": {name: found.steps[-1]["encodes"] for name, found in answers.items()},
        "entropy_nats": ours.steps[-1]["entropy"],
    }


def show(case: Case, figures: dict[str, Any]) -> None:
    """Print one case."""
    counts = figures["parameters"]
    print(f"\nvocabulary {case.vocabulary}, trainable: {case.trainable}, ", end="")
    print(f"{counts['all'] / 1e6:.1f} M parameters, {counts['tower'] / 1e6:.1f} M in the tower")
    print(f"prompt {figures['prompt_tokens']} tokens, entropy {figures['entropy_nats']:.2f} nats")
    print(f"{'':8} {'rollout':>9} {'log-prob+':>9} {'step':>9}   s   peak MiB  encodes")
    for name, seconds in figures["median_seconds"].items():
        cells = " ".join(f"{seconds[part]:9.2f}" for part in PARTS)
        peak, encodes = figures["peak_mib"][name], figures["encodes_per_step"][name]
        print(f"{name:8} {cells}       {peak:8.0f} {encodes:8g}")
    passes = ", ".join(f"{way} {s:.2f} s" for way, s in figures["logprob_pass_seconds"].items())
    print(f"log-prob pass by itself: {passes}; ceiling {figures['token_count_ceiling']:.2f}")
    for pair, ratio in figures["ratios"].items():
        wanted = f"(at least {FLOORS[pair]:g} is wanted)" if pair in FLOORS else ""
        print(f"  {pair:42} {ratio:6.2f} {wanted if case.vocabulary == SMALL else ''}")
    sys.stdout.flush()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="of the small vocabulary")
    parser.add_argument("--large-repeats", type=int, default=1, help="of the large one")
    parser.add_argument("--quick", action="store_true", help="one short case once; no result")
    asked = parser.parse_args()
    started = time.monotonic()
    num_tokens = 16 if asked.quick else NUM_TOKENS
    found: dict[str, Any] = {}
    with OtherLoad() as others:
        for case in CASES[:1] if asked.quick else CASES:
            folder = model_folder(case.vocabulary)
            setup = Setup(str(folder), case.trainable, NUM_VARIANTS, NUM_GENERATIONS)
            repeats = asked.repeats if case.vocabulary == SMALL else asked.large_repeats
            answers = ask_in_turns(case, setup, num_tokens, 1 if asked.quick else repeats)
            figures = figures_of(answers, num_tokens)
            show(case, figures)
            found[f"{case.vocabulary} {case.trainable}"] = figures
    print(f"\n{time.monotonic() - started:.0f} s in all; ", end="")
    print(f"{others.share:.1%} of the CPU time went to other processes")
    if not asked.quick:
        figures = {
            "num_variants": NUM_VARIANTS,
            "num_generations": NUM_GENERATIONS,
            "completion_tokens": num_tokens,
            "threads": setup.num_threads,
            "repeats": {"small": asked.repeats, "large": asked.large_repeats},
            "cpu_share_of_others": others.share,
            "floors": FLOORS,
            "cases": found,
        }
        packages = ("torch", "transformers", "trl", "deepspeed")
        print(f"wrote {write_result('step', figures, packages=packages)}", file=sys.stderr)


if __name__ == "__main__":
    main()
