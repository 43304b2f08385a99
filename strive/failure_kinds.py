"""Every kind of failure of a video or a question: why it is one, and the way out.

A kind is the first argument of a `DecodeError`, the column `error` of a failure row. To add one,
raise it and give it a line here; a test finds kinds that are raised and have none.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FailureKind:
    """What a kind of failure means, and what a user can do; both are half a sentence."""

    reason: str
    way_out: str


_OTHER_COPY = "get the file anew; a file that changes is tried again by itself"
_REPAIR = "--repair --retry-failed decodes a repaired copy; or get the file anew"

FAILURE_KINDS: dict[str, FailureKind] = {
    # --- the file cannot be had
    "missing": FailureKind(
        "there is no such file under the video root",
        "put it there or correct --video-root; it is looked for again in every run",
    ),
    "outside_root": FailureKind(
        "its path, or a link on the way, leads out of the video root",
        "--allow-outside-root takes such paths and links, if you trust the records and the folder",
    ),
    "unreadable": FailureKind(
        "the system does not let it be read",
        "correct its permissions; it is tried again in every run",
    ),
    "changed": FailureKind(
        "it was written to while it was read",
        "run the same command again when it is complete",
    ),
    # --- the file is no video that is taken
    "empty_file": FailureKind("the file has no bytes", _OTHER_COPY),
    "not_a_video": FailureKind(
        "it is no container of videos that is taken (docs/files.md)", _REPAIR
    ),
    "playlist": FailureKind(
        "it is a list that may name other files or addresses, which are never followed",
        "join what it lists into one file (ffmpeg -i LIST -c copy FILE)",
    ),
    "no_video_stream": FailureKind(
        "it holds no pictures, or only a cover", "leave its questions out, or get the file anew"
    ),
    "no_frames": FailureKind("its video stream holds no frames", _OTHER_COPY),
    "unsupported": FailureKind(
        "the decoder that was asked for does not take such files",
        "--decoder auto, or --repair --retry-failed",
    ),
    "too_large": FailureKind(
        "its pictures have more pixels than are decoded",
        "make a smaller copy (ffmpeg -i FILE -vf scale=1920:-2 COPY)",
    ),
    # --- the file is damaged or not whole
    "incomplete": FailureKind(
        "it ends long before what its header states, and bytes are short",
        "get the file anew; or --max-missing any --retry-failed takes what is there",
    ),
    "truncated": FailureKind(
        "it ended before what it says it holds, to an earlier version", _REPAIR
    ),
    "damaged": FailureKind(
        "a picture that is wanted is damaged, or builds on one that is",
        "get the file anew; or --allow-damaged --retry-failed takes what players show",
    ),
    "undecodable": FailureKind("no decoder opens it", _REPAIR),
    "frames_missing": FailureKind("frames that it lists do not come out of it", _REPAIR),
    "frame_count": FailureKind(
        "the decoder that was asked for counts other frames than PyAV", "--decoder auto or pyav"
    ),
    "wrong_picture": FailureKind(
        "the decoder that was asked for gives other pictures than PyAV", "--decoder auto or pyav"
    ),
    "unavailable": FailureKind(
        "the decoder that was asked for cannot be loaded here",
        "strive-cli doctor says what it lacks; or --decoder auto",
    ),
    # --- the work went wrong
    "timeout": FailureKind(
        "decoding took longer than is allowed",
        "a longer --decode-timeout with --retry-failed",
    ),
    "crashed": FailureKind(
        "the process that worked on it died",
        "--retry-failed, with fewer --workers if memory is short; --decoder pyav",
    ),
    "out_of_memory": FailureKind(
        "its frames do not fit into the memory of one worker",
        "fewer --frames or a smaller --max-pixels; with --retry-failed on a larger machine",
    ),
    "unexpected": FailureKind(
        "a decoder or scorer failed in a way that nobody foresaw",
        "the message says how; --retry-failed once the cause is mended",
    ),
    "not_cached": FailureKind(
        "it is not in the cache that is read", "strive-cli precompute with the same records"
    ),
    # --- a question has no scores
    "no_text": FailureKind(
        "the question has no text",
        "mend it in the records, or --query question+options where it has options; "
        "it is then scored by itself",
    ),
    "too_long": FailureKind(
        "the question with its video is longer than the policy's context",
        "shorten it in the records, or take fewer --frames or a smaller --max-pixels",
    ),
    "nonfinite": FailureKind(
        "the scorer gives NaN or infinity for it",
        "--dtype float32 or another scorer; --retry-failed tries the same again",
    ),
}


def way_out(kind: str) -> str:
    """Return what a user can do about a kind of failure; one of another version has no line."""
    known = FAILURE_KINDS.get(kind)
    return known.way_out if known else "the message says how; --retry-failed tries it again"
