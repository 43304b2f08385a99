"""How the cost of a step grows with G and with M, on the 30 M-parameter model of `bench.step`.

At M=2, G from 2 to 32; at G=4, M from 1 to 8: seconds per response (a step has M x G of them) of
the rollout, of log-probs with backward pass and optimiser step, and of the whole step. The tower is
frozen, completions have 128 tokens, one question a step. `python -m bench.performance` plots it.

    python -m bench.growth [--repeats 2] [--quick]
"""

import argparse
import itertools
import os
import statistics
import sys
import time
from typing import Any

import torch

from bench.harness import OtherLoad, write_result
from bench.step_model import Setup, model_folder
from bench.step_ours import Ours

VOCABULARY, NUM_TOKENS, THREADS = 8192, 128, 2
FIXED_VARIANTS, FIXED_GENERATIONS = 2, 4
GENERATIONS, VARIANTS = (2, 4, 8, 16, 32), (1, 2, 4, 8)
PARTS = ("rollout", "logprob_backward", "step")


def shapes(quick: bool) -> list[tuple[int, int]]:
    """All (M, G), each once, in the order in which they run."""
    by_generations = [(FIXED_VARIANTS, g) for g in GENERATIONS]
    by_variants = [(m, FIXED_GENERATIONS) for m in VARIANTS]
    found = list(dict.fromkeys([*by_generations, *by_variants]))
    return [shape for shape in found if not quick or shape[0] * shape[1] <= 8]


def measure(repeats: int, num_tokens: int, quick: bool) -> dict[tuple[int, int], dict[str, Any]]:
    """Time every shape, all of them in turns, and return medians per response."""
    setup = Setup(
        str(model_folder(VOCABULARY)), "language", FIXED_VARIANTS, FIXED_GENERATIONS, THREADS
    )
    ours = Ours.of(setup)
    ours.step(100, num_tokens)
    seconds: dict[tuple[int, int], list[dict[str, float]]] = {s: [] for s in shapes(quick)}
    for number in range(repeats):
        for m, g in seconds:
            answer = ours.step(number, num_tokens, variants=m, generations=g)
            seconds[m, g].append(answer["seconds"])
            print(f"M={m} G={g}: {answer['seconds']['step']:.1f} s", flush=True)
    return {
        (m, g): {
            "num_variants": m,
            "num_generations": g,
            "prompt_tokens": answer["prompt_tokens"],
            "step_seconds": [run["step"] for run in runs],
            "seconds_per_response": {
                part: statistics.median(run[part] for run in runs) / (m * g) for part in PARTS
            },
        }
        for (m, g), runs in seconds.items()
    }


def falls(rows: list[dict[str, Any]], part: str) -> bool:
    """Whether the time per response is less in every row than in the one before."""
    times = [row["seconds_per_response"][part] for row in rows]
    return all(after < before for before, after in itertools.pairwise(times))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few and short; no result")
    asked = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(THREADS)
    started = time.monotonic()
    num_tokens = 16 if asked.quick else NUM_TOKENS
    with OtherLoad() as others:
        found = measure(1 if asked.quick else asked.repeats, num_tokens, asked.quick)
    by_generations = [found[s] for s in found if s[0] == FIXED_VARIANTS]
    by_variants = sorted(
        (found[s] for s in found if s[1] == FIXED_GENERATIONS), key=lambda r: r["num_variants"]
    )
    for name, rows in (("G at M=2", by_generations), ("M at G=4", by_variants)):
        print(f"\n{name}: seconds per response")
        for row in rows:
            cells = " ".join(f"{part} {row['seconds_per_response'][part]:.3f}" for part in PARTS)
            print(f"  M={row['num_variants']} G={row['num_generations']:<3} {cells}")
    for part in PARTS:
        print(f"{part} per response falls with G: {falls(by_generations, part)} (wanted: True)")
    print(f"{time.monotonic() - started:.0f} s in all; ", end="")
    print(f"{others.share:.1%} of the CPU time went to other processes")
    if not asked.quick:
        figures = {
            "threads": THREADS,
            "vocabulary": VOCABULARY,
            "completion_tokens": num_tokens,
            "repeats": asked.repeats,
            "cpu_share_of_others": others.share,
            "by_generations": by_generations,
            "by_variants": by_variants,
            "falls_with_generations": {part: falls(by_generations, part) for part in PARTS},
        }
        packages = ("torch", "transformers", "deepspeed")
        print(f"wrote {write_result('growth', figures, packages=packages)}", file=sys.stderr)


if __name__ == "__main__":
    main()
