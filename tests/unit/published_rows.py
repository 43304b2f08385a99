"""Rows of published benchmarks, written by hand, and the files in which they are published."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write rows as Parquet, JSON lines or a JSON list, as the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))


def video_r1_row(number: int, problem_type: str, path: str, **changes: Any) -> Row:
    """Return a row of Video-R1-eval."""
    is_choice = problem_type == "multiple choice"
    return {
        "problem_id": number,
        "problem": "What is shown?",
        "data_type": "video",
        "problem_type": problem_type,
        "options": ["A. a cat", "B. a dog"] if is_choice else [],
        "solution": f"<answer>{'B' if is_choice else '1.5'}</answer>",
        "path": path,
        "data_source": "",
        **changes,
    }


VSI_CHOICE: Row = {
    "id": 0,
    "dataset": "arkitscenes",
    "scene_name": "41069025",
    "question_type": "object_rel_direction_easy",
    "question": "If I am standing by the stove and facing the tv, is the sofa to the left or the "
    "right of the tv?",
    "ground_truth": "B",
    "options": ["A. left", "B. right"],
}
VSI_NUMBER: Row = {
    "id": 1,
    "dataset": "scannet",
    "scene_name": "scene0015_00",
    "question_type": "object_counting",
    "question": "How many chair(s) are in this room?",
    "ground_truth": "4",
    "options": None,
}

TEMPCOMPASS: dict[str, Row] = {
    "multi-choice": {
        "video_id": "1034419625",
        "question": "What is happening in the video?\nA. passing a basketball\n"
        "B. dunking a basketball\nC. dribbling a basketball",
        "answer": "B. dunking a basketball",
        "dim": "action",
    },
    "yes_no": {
        "video_id": "1034419625",
        "question": "Is the man dunking a basketball?",
        "answer": "yes",
        "dim": "action",
    },
    "caption_matching": {
        "video_id": "1034419625",
        "question": "Which description is a more suitable match for the video?\n"
        "Option 1: The man is dribbling a basketball.\nOption 2: A man is dunking a basketball.",
        "answer": "Option 2: A man is dunking a basketball.",
        "dim": "action",
    },
    "captioning": {
        "video_id": "1034419625",
        "question": "Please write a caption.\n"
        "Information A: {'subject': 'man', 'action': 'passing a basketball'}\n"
        "Information B: {'subject': 'man', 'action': 'dunking a basketball'}\nGenerated Caption:",
        "answer": "B. dunking a basketball",
        "dim": "action",
        "mc_question": "What is happening in the video?\nA. passing a basketball\n"
        "B. dunking a basketball\nC. dribbling a basketball",
        "mc_answer": "B. dunking a basketball",
    },
}


def tempcompass_questions(rows: dict[str, list[Row]]) -> dict[str, Any]:
    """Return {file: content} of the official repository's `questions/`."""
    files: dict[str, Any] = {}
    for task, some in rows.items():
        content: dict[str, Any] = {}
        for row in some:
            of_video = content.setdefault(row["video_id"], {})
            question = {"question": row["question"], "answer": row["answer"]}
            of_video.setdefault(row["dim"], []).append(question)
        files[f"questions/{task}.json"] = content
    return files


TEN = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"]
VIDEOMMMU: dict[str, Row] = {
    "Perception": {
        "id": "dev_Biology_3",
        "question": "Which step does the lecturer name first?",
        "options": TEN,
        "answer": "J",
        "question_type": "perception",
    },
    "Comprehension": {
        "id": "dev_Biology_3",
        "question": "Which of these follows from the lecture?",
        "options": ["one", "two", "three"],
        "answer": "A",
        "question_type": "comprehension",
    },
    "Adaptation": {
        "id": "dev_Biology_3",
        "question": "What does <image 1> show?",
        "options": ["a cell", "a leaf"],
        "answer": "B",
        "question_type": "multiple-choice",
        "image": {"bytes": b"png", "path": "image.png"},
    },
}
VIDEOMMMU_OPEN: Row = {
    **VIDEOMMMU["Adaptation"],
    "id": "validation_Architecture_and_Engineering_12",
    "question": "How large is the force in <image 1>?",
    "options": [],
    "answer": "12.97",
    "question_type": "open",
}
