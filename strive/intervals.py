"""Time intervals as answers: how they are read from text, and how well they overlap.

An interval is (start, end) in seconds. Sources: Time-R1 (arXiv:2503.13377), whose reading, IoU and
timed IoU VideoChat-R1 (arXiv:2504.06958) shares but for the times, and whose lists of clues these
are. Their own code decides, not their texts; what differs here is said.
"""

import math
import re
from collections.abc import Iterable

Interval = tuple[float, float]

MOST_SECONDS = 1e9
"""A larger number is no time of a video, and is not read: a reward made of it might be no number.
Ours; the sources take any."""

# One blank on either side, no sign, as in the sources. A run of digits is read from its beginning,
# which finds the same and takes no longer for a longer run.
_NUMBER = r"(?<!\d)(\d+(?:\.\d*)?)"
_FROM_TO = re.compile(rf"{_NUMBER} (?:to|and) {_NUMBER}", re.IGNORECASE)
_CLUES_OPEN, _CLUES_CLOSE = "<glue>", "</glue>"  # the source's spelling of "clue"
_PAIR = r"\((\d+(?:\.\d+)?),\s*(\d+(?:\.\d+)?)\)"
_PAIRS = re.compile(_PAIR)
_LIST_OF_PAIRS = re.compile(rf"\[(?:{_PAIR}(?:,\s*{_PAIR})*,?)?\]")


def read_intervals(text: str) -> tuple[Interval, ...]:
    """Read every "10 to 20" or "10 and 20.5" of a text, in order; an end may precede its start."""
    found = [(float(start), float(end)) for start, end in _FROM_TO.findall(text)]
    return tuple(pair for pair in found if max(pair) <= MOST_SECONDS)


def read_interval(text: str) -> Interval | None:
    """Read the last interval of a text (Time-R1: of the last answer block); None without one."""
    found = read_intervals(text)
    return found[-1] if found else None


def temporal_iou(first: Interval, second: Interval) -> float:
    """Intersection over union of two intervals, in [0, 1].

    The denominator is max(ends) - min(starts), as in Time-R1: the union where they meet, and where
    they do not the intersection is 0. An interval without length, or whose end precedes its start,
    has IoU 0 with any.
    """
    intersection = min(first[1], second[1]) - max(first[0], second[0])
    if intersection <= 0:
        return 0.0
    return intersection / (max(first[1], second[1]) - min(first[0], second[0]))


def timed_iou(predicted: Interval, gold: Interval, duration_seconds: float) -> float:
    """Time-R1's reward `iou_v2`: IoU x (1 - |s - s'| / d) x (1 - |e - e'| / d), d the duration.

    Not clipped, as there: an end that is off by more than the duration makes it negative.

    Raises:
        ValueError: the duration is no positive number.
    """
    if not (math.isfinite(duration_seconds) and duration_seconds > 0):
        raise ValueError(f"duration_seconds is {duration_seconds}; a positive number is wanted")
    iou = temporal_iou(predicted, gold)
    if iou == 0:
        return 0.0
    start_off = abs(predicted[0] - gold[0]) / duration_seconds
    end_off = abs(predicted[1] - gold[1]) / duration_seconds
    return iou * (1 - start_off) * (1 - end_off)


def best_iou(predicted: Interval | None, golds: Iterable[Interval]) -> float:
    """Largest IoU of an interval with one of several golds (VideoAuto-R1); 0 without either."""
    if predicted is None:
        return 0.0
    return max((temporal_iou(predicted, gold) for gold in golds), default=0.0)


# --- clues: the spans that show an answer --------------------------------------------------------


def read_clues(text: str) -> tuple[Interval, ...] | None:
    """Read the list of pairs in the first `<glue>` block: "[(1, 4), (3.5, 6)]", or "[]" for none.

    The block holds the list and nothing else. None where there is no block, or the list is
    malformed, or a start lies after its end (VideoChat-R1).
    """
    start = text.find(_CLUES_OPEN)
    end = text.find(_CLUES_CLOSE, start)
    if not 0 <= start < end:
        return None
    listed = text[start + len(_CLUES_OPEN) : end]
    if not _LIST_OF_PAIRS.fullmatch(listed):
        return None
    pairs = [(float(first), float(last)) for first, last in _PAIRS.findall(listed)]
    if any(first > last or last > MOST_SECONDS for first, last in pairs):
        return None
    return tuple(pairs)


def split_clues(text: str) -> tuple[str, str]:
    """What stands before the one `<glue>` block that ends a text, and that block, or else ""."""
    before, tag, after = text.partition(_CLUES_OPEN)
    ends_it = after.endswith(_CLUES_CLOSE) and after.count(_CLUES_CLOSE) == 1
    return (before, tag + after) if ends_it else (text, "")


def merge_intervals(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """Join intervals that overlap or touch; the result is sorted and disjoint."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return tuple(merged)


def clue_iou(predicted: Iterable[Interval], gold: Iterable[Interval]) -> float:
    """Intersection over union of two unions of intervals, in [0, 1] (VideoChat-R1).

    Each side is merged first. Where neither side has any length (both are empty) it is 1.
    """
    merged, golds = merge_intervals(predicted), merge_intervals(gold)
    shared = math.fsum(
        max(0.0, min(one[1], other[1]) - max(one[0], other[0])) for one in merged for other in golds
    )
    union = math.fsum(end - start for start, end in merged + golds) - shared
    return min(1.0, shared / union) if union > 0 else 1.0
