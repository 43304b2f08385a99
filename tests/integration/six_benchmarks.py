"""Small copies of the six benchmarks in their published schemas, their videos from the lab.

The videos of each are of five kinds: `good` and `other` are clips of the lab, `corrupt` is no video
at all, `missing` no file, `short` a clip of two frames. One row of each cannot be asked.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from published_rows import Row, tempcompass_questions, write_rows
from video.coded_clips import write_clip

from strive.lab.world import build_world

WHERE, HOW_MANY = "In which corner does the star appear?", "How many shapes appear?"
"""Questions that the lab's model knows, so that its answers do not hang on a rounding."""
CORNERS = ("top left", "top right", "bottom left", "bottom right")
LETTERED = [f"{letter}. {corner}" for letter, corner in zip("ABCD", CORNERS, strict=True)]


@dataclass(frozen=True)
class Made:
    """A benchmark's folder, and what is to come of it."""

    root: Path
    num_rows: int
    """All of them, the one that cannot be asked among them."""


def make_six(root: Path) -> dict[str, Made]:
    """Write the files of all six, each under its own name."""
    build_world(root / "lab", num_clips=2, seed=3)
    first, second = sorted((root / "lab" / "clips").glob("*.mp4"))
    sources = {"good": first, "other": second, "short": root / "short.mp4"}
    write_clip(sources["short"], 2)
    writers = {
        "videomme": _videomme,
        "vsibench": _vsibench,
        "perceptiontest": _perceptiontest,
        "tempcompass": _tempcompass,
        "videommmu": _videommmu,
        "mmvu": _mmvu,
    }
    made = {}
    for name, write in writers.items():
        asked = write(root / name)
        for video, kind in asked:
            _place(root / name / f"{video}.mp4", kind, sources)
        made[name] = Made(root / name, len(asked))
    return made


def _place(path: Path, kind: str, sources: Mapping[str, Path]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "corrupt":
        path.write_bytes(b"no video at all")
    elif kind in sources and not path.exists():
        shutil.copy(sources[kind], path)


Asked = list[tuple[str, str]]
"""(video relative to the benchmark's folder, its kind) of every row, in their order."""


def _videomme(root: Path) -> Asked:
    kinds = ("good", "good", "other", "corrupt", "missing", "short", "good")
    rows: list[Row] = [
        {
            "video_id": f"{number:03}",
            "duration": ("short", "medium", "long")[number % 3],
            "domain": "Knowledge",
            "sub_category": "Geometry",
            "url": "https://www.youtube.com/watch?v=x",
            "videoID": f"yt_{kind}",
            "question_id": f"{number:03}-1",
            "task_type": "Spatial Perception",
            "question": WHERE,
            "options": LETTERED,
            "answer": "CBCDACE"[number],  # the last one is no option
        }
        for number, kind in enumerate(kinds)
    ]
    write_rows(root / "videomme" / "test-00000-of-00001.parquet", rows)
    return [(f"data/yt_{kind}", kind) for kind in kinds]


def _vsibench(root: Path) -> Asked:
    choice = {"question": WHERE, "options": LETTERED, "ground_truth": "C"}
    number = {"question": HOW_MANY, "options": None, "ground_truth": "4"}
    rows = [
        ("object_rel_direction_easy", "good", choice),
        ("object_rel_direction_hard", "other", choice),
        ("object_rel_distance", "short", choice),
        ("route_planning", "corrupt", choice),
        ("obj_appearance_order", "good", choice),
        ("object_counting", "good", number),
        ("object_counting", "other", number),
        ("object_abs_distance", "missing", number),
        ("room_size_estimation", "short", number),
        ("colour", "good", number),  # no type of the benchmark
    ]
    # No question of object_size_estimation: the official average is one over fewer types.
    write_rows(
        root / "test.jsonl",
        [
            {
                "id": place,
                "dataset": "scannet",
                "scene_name": f"scene_{kind}",
                "question_type": question_type,
                **answer,
            }
            for place, (question_type, kind, answer) in enumerate(rows)
        ],
    )
    return [(f"scannet/scene_{kind}", kind) for _, kind, _ in rows]


def _perceptiontest(root: Path) -> Asked:
    kinds = ("good", "other", "corrupt", "missing", "short", "good")
    rows: list[Row] = [
        {
            "video_name": f"video_{kind}",
            "question": WHERE,
            "question_id": str(number),
            "options": list(CORNERS[:3]),
            "answer_id": "212023"[number],  # the last one is no option
            "area": ("Memory", "Physics")[number % 2],
            "reasoning": "Descriptive",
            "tag": ["Sequencing"],
        }
        for number, kind in enumerate(kinds)
    ]
    write_rows(root / "mc_question_val" / "validation-00000-of-00001.parquet", rows)
    return [(f"videos/video_{kind}", kind) for kind in kinds]


def _tempcompass(root: Path) -> Asked:
    choice = {"question": "\n".join((WHERE, *LETTERED)), "answer": LETTERED[2]}
    caption = {
        "question": "Which caption matches better?\nCaption A: A star.\nCaption B: A ring.",
        "answer": "Caption A: A star.",
    }
    information = {"question": "Information A: {'subject': 'ring'}\nGenerated Caption:"}
    rows: dict[str, list[Row]] = {
        "multi-choice": [
            {"video_id": kind, "dim": dim, **choice}
            for kind, dim in (("good", "action"), ("short", "order"), ("corrupt", "order"))
        ],
        "yes_no": [
            {"video_id": "good", "dim": "action", "question": "Is it a ring?", "answer": "no"},
            {"video_id": "missing", "dim": "speed", "question": "Is it fast?", "answer": "yes"},
            {"video_id": "other", "dim": "speed", "question": "Is it?", "answer": "perhaps"},
        ],
        "caption_matching": [{"video_id": "other", "dim": "action", **caption}],
        "captioning": [{"video_id": "good", "dim": "action", **information, "answer": "A. x"}],
    }
    for name, content in tempcompass_questions(rows).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))
    videos = [row["video_id"] for some in rows.values() for row in some]
    return [(f"videos/{video}", video) for video in videos]


MMMU_VIDEOS = {
    "good": "Science/dev_Biology_1",
    "other": "Art/dev_Art_Theory_2",
    "corrupt": "Business/test_Finance_3",
    "missing": "Medicine/new_Pharmacy_4",
    "short": "Engineering/validation_Energy_and_Power_5",
}


def _videommmu(root: Path) -> Asked:
    many = {"options": [*CORNERS, *(f"choice {n}" for n in range(10))], "answer": "C"}
    few = {"options": list(CORNERS), "answer": "C"}
    number = {"question": HOW_MANY, "options": [], "answer": "5", "question_type": "open"}
    tracks: dict[str, list[tuple[str, Row]]] = {
        "Perception": [("good", many), ("short", few), ("corrupt", few)],
        "Comprehension": [("other", few), ("missing", few)],
        "Adaptation": [
            ("good", {**few, "question_type": "multiple-choice"}),
            ("short", number),
            ("other", {**number, "question_type": None}),  # neither options nor a type
        ],
    }
    for track, some in tracks.items():
        rows = [
            {
                "id": MMMU_VIDEOS[kind].split("/")[1],
                "question": WHERE,
                "question_type": track.lower(),
                **row,
            }
            for kind, row in some
        ]
        write_rows(root / f"{track}.jsonl", rows)
    return [(MMMU_VIDEOS[kind], kind) for some in tracks.values() for kind, _ in some]


def _mmvu(root: Path) -> Asked:
    folders = {"good": "Art/0", "other": "Law/1", "corrupt": "Pharmacy/2", "missing": "Biology/3"}
    folders["short"] = "Computer_Science/4"
    kinds = ("good", "other", "corrupt", "missing", "short", "good")
    places = (*CORNERS, "nowhere")
    rows: list[Row] = [
        {
            "id": f"validation_{number}",
            "video": f"https://huggingface.co/datasets/yale-nlp/MMVU/resolve/main/videos/"
            f"{folders[kind]}.mp4",
            "youtube_url": "",
            "question_type": "multiple-choice",
            "metadata": {"subject": "Art", "textbook": "", "rationale": "", "knowledge": []},
            "question": WHERE,
            "choices": dict(zip("ABCDE", places, strict=True)),
            "answer": "CCDEAB"[number],
        }
        for number, kind in enumerate(kinds)
    ]
    rows[-1]["question_type"] = None
    write_rows(root / "validation.json", rows)
    return [(f"videos/{folders[kind]}", kind) for kind in kinds]


def shown(value: Any) -> Any:
    """Return results for a golden file: a score as one text, other numbers to 4 digits."""
    if isinstance(value, dict) and "accuracy_percent" in value:
        names = ("accuracy_percent", "standard_error", "low", "high")
        numbers = ["null" if value[n] is None else f"{value[n]:.4f}" for n in names]
        counts = f"{value['num_questions']} questions, {value['num_videos']} videos"
        return "{} ± {} ({} to {}), {}".format(*numbers, counts)
    if isinstance(value, dict):
        return {key: shown(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shown(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value
