"""What both sides of `bench.evaluate` are given: clips, questions, a model, and the peer's task."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from bench import step_model
from bench.clips import FFMPEG, make_clip
from bench.harness import BUILD
from strive.answers import build_question
from strive.records import read_records

FOLDER = BUILD / "evaluate"
SECONDS = 60
NUM_PARTS, PART_SECONDS = 10, 5
NUM_FRAMES, NUM_TOKENS = 32, 16
FRAME_SIZE = (336, 588)
"""Height and width of a frame of 16 to 9 within MAX_PIXELS on the grid of 28 pixels."""
MAX_PIXELS = 256 * 28 * 28
PROMPT_TEMPLATE = "direct"
VOCABULARY = 1024
TEXT: dict[str, Any] = {
    **step_model.TEXT,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "rope_parameters": {**step_model.TEXT["rope_parameters"], "mrope_section": [4, 6, 6]},
}
VISION: dict[str, Any] = {
    **step_model.VISION,
    "depth": 3,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_heads": 4,
    "out_hidden_size": 128,
    "fullatt_block_indexes": [2],
}
WORDINGS = (
    "Which animal is seen first?",
    "Which of these animals does the camera follow for the longest time in all?",
    "What comes out of the burrow under the tree?",
)
TASK = "strive_speed"
TASK_CODE = """def videos(doc):
    return [doc["video"]]


def grade(doc, results):
    return {"right": float(results[0].strip() == doc["answer"])}
"""


def make_clip_of_parts(path: Path, parts: Sequence[Path]) -> None:
    """Join encoded parts without encoding them again: a group of pictures each, as streams have."""
    names = path.with_suffix(".txt")
    names.write_text("".join(f"file '{part.resolve()}'\n" for part in parts))
    temporary = path.with_suffix(".part.mp4")
    command = [FFMPEG, "-v", "error", "-y", "-f", "concat", "-safe", "0", "-i", str(names)]
    subprocess.run([*command, "-c", "copy", str(temporary)], check=True)
    names.unlink()
    temporary.rename(path)


def make_clips(num_clips: int) -> None:
    """Make clips of 60 s, each the same ten encoded parts of 5 s in an order of its own."""
    parts = [
        make_clip(
            FOLDER / "parts" / f"part{number}.mp4",
            seconds=PART_SECONDS,
            start_seconds=number // 2 * 0.9,
            mirrored=number % 2 == 1,
        )
        for number in range(NUM_PARTS)
    ]
    (FOLDER / "videos").mkdir(exist_ok=True)
    for number in range(num_clips):
        path = FOLDER / "videos" / f"clip{number:02d}.mp4"
        if not path.is_file():
            stride = 1 if number < NUM_PARTS else 3
            order = [(number + stride * k) % NUM_PARTS for k in range(SECONDS // PART_SECONDS)]
            make_clip_of_parts(path, [parts[k] for k in order])


def make_records(num_clips: int) -> Path:
    """Make the clips and a records file whose questions go round the clips, once a wording."""
    make_clips(num_clips)
    rows = [
        {
            "problem_id": number,
            "problem": WORDINGS[number // num_clips],
            "data_type": "video",
            "problem_type": "multiple choice",
            "options": ["A. rabbit", "B. squirrel", "C. bird", "D. butterfly"],
            "solution": f"<answer>{'ABCD'[number % 4]}</answer>",
            "path": f"clip{number % num_clips:02d}.mp4",
        }
        for number in range(num_clips * len(WORDINGS))
    ]
    records = FOLDER / "records.jsonl"
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return records


def model_folder() -> Path:
    """Build the model once: the lab policy's widths, random weights, no token that ends an answer.

    Its processor takes frames of FRAME_SIZE as they are.
    """
    facts = json.dumps([TEXT, VISION, FRAME_SIZE, VOCABULARY], sort_keys=True)
    folder = FOLDER / f"model-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"
    if folder.is_dir():
        return folder
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    temporary = folder.with_suffix(".part")
    shutil.rmtree(temporary, ignore_errors=True)
    tokenizer = step_model.build_tokenizer(VOCABULARY)
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(
        step_model.build_config(tokenizer, VOCABULARY, TEXT, VISION)
    )
    step_model.sharpen_head(model)
    with torch.no_grad():  # a logit of 0 is never the largest of a thousand
        model.get_output_embeddings().weight[tokenizer.all_special_ids] = 0.0
    model.save_pretrained(temporary)
    step_model.build_processor(tokenizer, FRAME_SIZE).save_pretrained(temporary)
    temporary.rename(folder)
    return folder


def make_peer_task(records: Path) -> Path:
    """Make the folder of a task for lmms-eval: the same questions in the same words and order."""
    folder = FOLDER / "task"
    folder.mkdir(exist_ok=True)
    questions = folder / "questions.jsonl"
    rows = [
        {
            "prompt": build_question(record, PROMPT_TEMPLATE),
            "video": str(FOLDER / "videos" / record.video_id),
            "answer": record.solution,
        }
        for record in read_records([records]).records
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "questions_code.py").write_text(TASK_CODE)
    task = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(questions)},
            "cache_dir": str(folder / "datasets"),
        },
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "generation_kwargs": {"max_new_tokens": NUM_TOKENS, "temperature": 0},
        "metric_list": [{"metric": "right", "aggregation": "mean", "higher_is_better": True}],
    }
    # `!function` is lmms-eval's own tag, which no library writes.
    functions = (
        "doc_to_visual: !function questions_code.videos\n"
        "process_results: !function questions_code.grade\n"
    )
    (folder / f"{TASK}.yaml").write_text(yaml.safe_dump(task, sort_keys=False) + functions)
    return folder
