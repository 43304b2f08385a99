"""Grades answers with lmms-eval's own functions; run by the Python of an environment that has it.

Reads a JSON list of cases on standard input and writes one verdict a case: `score`, `read` (what
its function extracted) and `judge` (its rules gave up and would ask a judge over the network).
Its functions run unchanged, after the stripping of thoughts that its command line does by default.
Two things are arranged around them: the packages above the six files are not executed (they would
import models), and the judge's call is replaced by a mark.

    PEER_PYTHON bench/grading_peer.py < cases.json > verdicts.json
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TASKS = {
    "videomme": "videomme.utils",
    "vsibench": "vsibench.utils",
    "perceptiontest": "perceptiontest.val.utils",
    "tempcompass": "tempcompass.utils",
    "videommmu": "videommmu.utils",
    "mmvu": "mmvu.utils",
}
JUDGE = "judge"
REASONING_TAGS = [["<think>", "</think>"], ["<analysis>", "</analysis>"]]
"""The default of its option --reasoning_tags."""
Verdict = dict[str, Any]


def load_modules() -> dict[str, Any]:
    """Import the six files of tasks, and of the packages above them nothing."""
    found = importlib.util.find_spec("lmms_eval")
    if found is None or not found.submodule_search_locations:
        sys.exit("lmms-eval is not installed for this Python")
    root = Path(next(iter(found.submodule_search_locations)))
    os.environ.setdefault("HF_HOME", tempfile.gettempdir())
    for name in ("lmms_eval", "lmms_eval.tasks", "lmms_eval.api"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    modules = {
        name: importlib.import_module(f"lmms_eval.tasks.{path}") for name, path in TASKS.items()
    }
    modules["tempcompass"].get_eval_result = lambda *_, **__: (None, JUDGE)
    modules["reasoning"] = importlib.import_module("lmms_eval.api.reasoning")
    return modules


def grade(case: Mapping[str, Any], modules: Mapping[str, Any]) -> Verdict:
    """Grade one case; an exception of theirs is a verdict too."""
    output = modules["reasoning"].strip_reasoning_tags(case["output"], REASONING_TAGS)
    try:
        return GRADERS[case["benchmark"]](dict(case["doc"]), output, modules[case["benchmark"]])
    except (IndexError, KeyError, ValueError, TypeError) as error:
        return {"score": 0.0, "read": f"raises {type(error).__name__}", "judge": False}


def verdict(score: float, read: object) -> Verdict:
    return {"score": float(score), "read": str(read), "judge": False}


def videomme(doc: dict[str, Any], output: str, module: Any) -> Verdict:
    row = module.videomme_process_results(doc, [output])["videomme_perception_score"]
    return verdict(row["score"], row["pred_answer"])


def vsibench(doc: dict[str, Any], output: str, module: Any) -> Verdict:
    graded = module.vsibench_process_results(doc, [output])["vsibench_overall"]
    if "accuracy" in graded:
        return verdict(graded["accuracy"], module.fuzzy_matching(output))
    return verdict(graded["MRA:.5:.95:.05"], module.extract_number(output))


def perceptiontest(doc: dict[str, Any], output: str, module: Any) -> Verdict:
    row = module.perceptiontest_val_process_results_mc(doc, [output])["accuracy"]
    return verdict(row["correct"], "ABCD"[row["pred_id"]] if row["pred_id"] >= 0 else "")


def tempcompass(doc: dict[str, Any], output: str, module: Any) -> Verdict:
    task = doc["task"].replace("multi-choice", "multi_choice")
    process = getattr(module, f"tempcompass_process_results_{task}")
    rating = process(doc, [output])["avg_accuracy"]["rating"]
    if rating == JUDGE:
        return {"score": 0.0, "read": "", "judge": True}
    return verdict(rating, output)


def videommmu(doc: dict[str, Any], output: str, module: Any) -> Verdict:
    row = module.videommmu_process_results(doc, [output])["mmmu_acc"]
    if row["parsed_pred"] == "API Error":
        return verdict(0.0, "left out")  # of the mean
    return verdict(module.evaluate_videommmu([row])[1]["acc"], row["parsed_pred"])


def mmvu(doc: dict[str, Any], output: str, module: Any) -> Verdict:
    row = module.mmvu_process_results(doc, [output])["accuracy"]
    return verdict(row["correct"], row["pred_answer"])


GRADERS = {
    "videomme": videomme,
    "vsibench": vsibench,
    "perceptiontest": perceptiontest,
    "tempcompass": tempcompass,
    "videommmu": videommmu,
    "mmvu": mmvu,
}


def main() -> None:
    """Grade what standard input holds."""
    sys.path.pop(0)  # this folder, whose files are no packages of the peer's
    cases = json.load(sys.stdin)
    modules = load_modules()
    graded = [grade(case, modules) for case in cases]
    version = importlib.metadata.version("lmms_eval")
    # Its functions print; the verdicts are the last line.
    print("\n" + json.dumps({"version": version, "verdicts": graded}))


if __name__ == "__main__":
    main()
