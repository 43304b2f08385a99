"""The lab's questions: a world folder with one records file a split, or any records file."""

from pathlib import Path

from strive.errors import MissingInputError
from strive.records import Record, read_records


def read_questions(data_root: Path, split: str) -> list[Record]:
    """Read `DATA_ROOT/SPLIT.jsonl`, the form in which `strive-cli lab build` leaves a world."""
    path = data_root / f"{split}.jsonl"
    if not path.is_file():
        found = sorted(p.stem for p in data_root.glob("*.jsonl"))
        raise MissingInputError(
            f"no '{split}' questions at {path}"
            + (f"; there are: {', '.join(found)}" if found else "")
            + "; give the folder of a lab world with --data-root (made by strive-cli lab build), "
            "or your own records with --data FILE --video-root DIR"
        )
    return list(read_records([path]).records)
