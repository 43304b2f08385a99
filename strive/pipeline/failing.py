"""Failure rows: of a video that has no frames, and of a question that has no scores."""

import unicodedata
from contextlib import suppress
from pathlib import Path

from strive.cache.failures import FailureRow
from strive.cache.scores import query_of
from strive.errors import DecodeError
from strive.files import locate_video, modified_ns
from strive.records import Record
from strive.scorers.session import ScorerSession

NO_TEXT = "no_text"


def has_text(text: str) -> bool:
    """Whether a text has anything to read: not only blanks and invisible characters."""
    return any(unicodedata.category(character)[0] not in "ZC" for character in text)


def video_failure(
    video_id: str, error: DecodeError, seconds: float, frames_key: str, video_root: Path
) -> FailureRow:
    """Return the row of a video that has no frames, with which file it was."""
    known_as = error.known_as
    if known_as is None:
        with suppress(OSError, ValueError):
            status = locate_video(video_root, video_id).stat()
            known_as = status.st_size, modified_ns(status), None
    return FailureRow(
        video_id,
        video_id,
        "decode",
        error.kind,
        _text_of(error),
        seconds,
        frames_key,
        *(known_as or (None, None, None)),
    )


def question_failure(
    record: Record, error: DecodeError, seconds: float, session: ScorerSession, checksum: str | None
) -> FailureRow:
    """Return the row of a question that a scorer has no scores for; `checksum` is of the frames."""
    return FailureRow(
        record.video_id,
        record.video_id,
        "score",
        error.kind,
        _text_of(error),
        seconds,
        session.key,
        question_id=record.question_id,
        query_digest=session.digest_of(record),
        frames_checksum=checksum,
    )


def _text_of(error: DecodeError) -> str:
    return ": ".join(str(item) for item in error.args[1:]) or error.kind


def no_text_failure(record: Record, session: ScorerSession) -> FailureRow | None:
    """Return the row of a question that has no text, whatever a scorer would make of that."""
    if has_text(query_of(record, session.template)):
        return None
    error = DecodeError(NO_TEXT, f"question {record.question_id} has no text to score")
    return question_failure(record, error, 0.0, session, None)
