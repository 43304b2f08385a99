"""The lab's questions: a world folder with one records file a split."""

from pathlib import Path

from strive.errors import MissingInputError
from strive.evaluate.benchmarks.base import Benchmark
from strive.evaluate.items import Item, Reading
from strive.records import read_records


class Lab(Benchmark):
    """`DATA_ROOT/SPLIT.jsonl`, the form in which `strive-cli lab build` leaves a world."""

    name = "lab"

    def read(self, root: Path, split: str) -> Reading:
        """Read one records file."""
        path = root / f"{split}.jsonl"
        if not path.is_file():
            found = sorted(p.stem for p in root.glob("*.jsonl"))
            raise MissingInputError(
                f"no '{split}' questions at {path}"
                + (f"; there are: {', '.join(found)}" if found else "")
                + "; give the folder of a lab world with --data-root (made by strive-cli lab "
                "build), or your own records with --data FILE --video-root DIR"
            )
        records = read_records([path]).records
        return Reading(tuple(Item.of(record) for record in records), files=(path,))
