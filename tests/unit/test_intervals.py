"""Intervals: golden numbers of Time-R1 and VideoChat-R1, worked out by hand, and properties."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strive.intervals import (
    MOST_SECONDS,
    best_iou,
    clue_iou,
    merge_intervals,
    read_clues,
    read_interval,
    read_intervals,
    split_clues,
    temporal_iou,
    timed_iou,
)

seconds = st.floats(0, 1e4, allow_nan=False).map(lambda value: round(value, 2))
intervals = st.tuples(seconds, seconds)
spans = intervals.map(lambda pair: (min(pair), max(pair)))
GOLD, DURATION = (10.0, 20.0), 40.0


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("10 to 20", (10, 20)),
        ("from 10.5 and 20. seconds", (10.5, 20)),
        ("The event lasts from 1 to 2, no: 12.54 TO 17.83", (12.54, 17.83)),  # the last one counts
        ("1 to 2 to 3", (1, 2)),  # what a match has taken begins no other
        ("20 to 10", (20, 10)),  # backwards, which overlaps nothing
        ("v1.5.2 to 3", (5.2, 3)),
        ("-5 to 10", (5, 10)),  # a sign is not read, as in the source
        ("10to20", None),
        ("10  to 20", None),  # one blank, as in the source
        ("10s to 20s", None),
        ("10-20", None),
        ("", None),
        (f"0 to {10 * MOST_SECONDS:.0f}", None),
        ("1" + "0" * 400 + " to 5", None),  # no float holds it
    ],
)
def test_intervals_are_read_as_the_source_reads_them(text, interval):
    assert read_interval(text) == interval


def test_all_intervals_of_a_text():
    assert read_intervals("1 to 2; 3 and 4.5; 6") == ((1, 2), (3, 4.5))


def test_long_digits_take_no_time():
    start = time.monotonic()
    assert read_interval("1" * 100_000) is None
    assert read_interval("1." * 50_000) is None
    assert read_clues("<glue>[" + "(1, 2)," * 20_000) is None
    assert read_clues("<glue>[" + "(1, 2)," * 20_000 + "x</glue>") is None
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("predicted", "iou", "timed"),
    [
        # Gold (10, 20), 40 s. Equal: 10/10, and no time is off.
        ((10, 20), 1, 1),
        # (20 - 12) / (22 - 10) = 8/12; both ends 2 of 40 s off: 0.95^2 * 2/3.
        ((12, 22), 2 / 3, 0.601667),
        # 10/40; 10 and 20 of 40 s off: 0.75 * 0.5 * 0.25.
        ((0, 40), 0.25, 0.09375),
        ((25, 30), 0, 0),
        # 10/90; the end is 80 of 40 s off: 1 - 2 = -1 is not clipped.
        ((10, 100), 1 / 9, -0.111111),
        ((20, 10), 0, 0),  # backwards
        ((15, 15), 0, 0),  # no length
    ],
)
def test_time_r1_by_hand(predicted, iou, timed):
    assert temporal_iou(predicted, GOLD) == pytest.approx(iou, abs=1e-6)
    assert timed_iou(predicted, GOLD, DURATION) == pytest.approx(timed, abs=1e-6)


@pytest.mark.parametrize("duration", [0, -1, math.nan, math.inf])
def test_a_duration_that_is_none_is_an_error(duration):
    with pytest.raises(ValueError, match=r"duration_seconds is .*; a positive number is wanted"):
        timed_iou(GOLD, GOLD, duration)


def test_the_best_of_several_golds():
    golds = [(0.0, 5.0), (12.0, 22.0)]
    assert best_iou(GOLD, golds) == pytest.approx(2 / 3)
    assert best_iou(None, golds) == 0 and best_iou(GOLD, []) == 0


@pytest.mark.parametrize(
    ("first", "second", "iou"),
    [
        # (1, 4) and (3, 6) are (1, 6): 3 s shared of 5.
        ([(1, 4), (3, 6)], [(2, 5)], 0.6),
        # 1 + 1 s shared of 2 + 2 + 2 + 1 - 2 = 5.
        ([(0, 2), (8, 10)], [(1, 3), (8, 9)], 0.4),
        ([], [], 1),
        ([], [(1, 2)], 0),
        ([(1, 2)], [], 0),
        ([(3, 3)], [], 1),  # no length on either side
        ([(0, 1), (1, 2)], [(0, 2)], 1),  # touching ones are one
    ],
)
def test_clues_by_hand(first, second, iou):
    assert clue_iou(first, second) == pytest.approx(iou)


def test_intervals_that_overlap_touch_or_lie_within_are_one():
    assert merge_intervals([(10, 12), (0, 10), (2, 3), (20, 21)]) == ((0, 12), (20, 21))
    assert merge_intervals([]) == ()
    # 10 s and 1 s, of which 5 s are shared: 5 / 11.
    assert clue_iou([(0, 10), (2, 3), (20, 21)], [(0, 5)]) == pytest.approx(5 / 11)


@pytest.mark.parametrize(
    ("text", "clues"),
    [
        ("<answer>B</answer><glue>[(5.2, 10.4)]</glue>", ((5.2, 10.4),)),
        ("<glue>[(1, 4),(3, 6),]</glue><glue>[]</glue>", ((1, 4), (3, 6))),  # the first block
        ("<glue>[]</glue>", ()),
        ("<glue>[(4, 4)]</glue>", ((4, 4),)),
        ("<glue>[(4, 1)]</glue>", None),  # start > end
        ("<glue>[(1, 2), (4, 1)]</glue>", None),
        ("<glue>(1, 4)</glue>", None),
        ("<glue>[[1, 4]]</glue>", None),
        ("<glue>[(1, 4) (5, 6)]</glue>", None),
        ("<glue>[(-1, 4)]</glue>", None),
        ("<glue>[(1, 4, 5)]</glue>", None),
        ("<glue> [(1, 4)] </glue>", None),  # the list and nothing else, as in the source
        ("<glue>[(1, 99999999999)]</glue>", None),
        ("<glue>[(1, 4)]", None),
        ("[(1, 4)]", None),
        ("", None),
    ],
)
def test_clues_are_read_as_the_source_reads_them(text, clues):
    assert read_clues(text) == clues


def test_the_block_of_clues_ends_the_text():
    assert split_clues("a <glue>[]</glue>") == ("a ", "<glue>[]</glue>")
    for text in ("a <glue>[]</glue> b", "a", "<glue>abcdef", "<glue></glue></glue>"):
        assert split_clues(text) == (text, "")


@given(intervals, intervals)
def test_iou_is_symmetric_and_within_the_unit_interval(first, second):
    iou = temporal_iou(first, second)
    assert 0 <= iou <= 1 and iou == temporal_iou(second, first)
    assert (iou > 0) == (min(first[1], second[1]) > max(first[0], second[0]))


@given(spans)
def test_an_interval_is_its_own_best_match(span):
    assert temporal_iou(span, span) == (span[1] > span[0])


@given(intervals, spans, st.floats(0.01, 1e4))
def test_the_timed_iou_is_never_above_the_iou_while_the_ends_lie_in_the_video(
    predicted, gold, duration
):
    timed, iou = timed_iou(predicted, gold, duration), temporal_iou(predicted, gold)
    assert math.isfinite(timed) and (timed == 0) >= (iou == 0)
    if max(*predicted, *gold) <= duration:
        assert 0 <= timed <= iou


@given(st.lists(spans, max_size=5), st.lists(spans, max_size=5), st.randoms())
def test_unions_have_no_order(first, second, random):
    iou = clue_iou(first, second)
    assert 0 <= iou <= 1 and iou == clue_iou(second, first)
    shuffled = random.sample(first, len(first))
    assert merge_intervals(shuffled) == merge_intervals(first)
    assert clue_iou(shuffled, second) == iou
    # A part of what is there already changes nothing.
    assert clue_iou([*first, *first[:1]], second) == iou
    if sum(end - start for start, end in first) > 0:
        assert clue_iou(first, first) == pytest.approx(1)


@given(spans.filter(lambda span: span[1] > span[0]), spans.filter(lambda span: span[1] > span[0]))
def test_one_clue_is_one_interval(first, second):
    assert clue_iou([first], [second]) == pytest.approx(temporal_iou(first, second), abs=1e-9)


@given(st.lists(spans, max_size=4))
def test_a_list_is_read_back(clues):
    listed = ", ".join(f"({start:.2f}, {end:.2f})" for start, end in clues)
    assert read_clues(f"<glue>[{listed}]</glue>") == tuple(clues)
    for start, end in clues:
        assert read_interval(f"from {start:.2f} to {end:.2f} s") == (start, end)


@given(st.text(alphabet="<glue>/[](),. 0123456789toandx", max_size=80))
def test_no_text_breaks_a_reader(text):
    for clues in (read_clues(text), read_clues(f"<glue>{text}</glue>")):
        assert clues is None or all(start <= end <= MOST_SECONDS for start, end in clues)
    assert all(max(pair) <= MOST_SECONDS for pair in read_intervals(text))
