"""Text cut into documents, and documents placed into splits: pure functions of the text alone.

Every choice here depends only on content, so two machines that hold the same text make the same data.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator

SPLITS = ("val", "held", "train")  # in the order they are written: a training document must not repeat an earlier one
MIN_CHUNK = 2_000  # characters: below this a document is not worth a BOS token of its own
MID_CHUNK = 4_000  # characters: from here on any blank line ends the document
MAX_CHUNK = 8_000  # characters: from here on any line end does
_PYTHON_START = re.compile(r"(?:async def|def|class|if __name__)\b|@")


def digest(text: str) -> int:
    """64-bit hash of the document's words: equal for texts that differ only in white space (blake2b)."""
    words = " ".join(text.split()).encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")


def split_by_digest(value: int, eval_share: float) -> str:
    """The split of a document with this digest: `eval_share` of all go to `val`, as many to `held`, the rest train."""
    place = value / 2**64
    if place < eval_share:
        return "val"
    return "held" if place < 2 * eval_share else "train"


def python_chunks(source: str) -> Iterator[str]:
    """One module as documents of about 2 to 8 thousand characters, cut before top-level definitions if possible."""
    return _chunks(source.splitlines(keepends=True), lambda line: _PYTHON_START.match(line) is not None)


def text_chunks(lines: Iterable[str]) -> Iterator[str]:
    """Running text as documents of about 2 to 8 thousand characters, cut at blank lines if possible."""
    return _chunks(lines, lambda _line: True)


def _chunks(lines: Iterable[str], starts_document: Callable[[str], bool]) -> Iterator[str]:
    """Cuts before a line that follows a blank one: early where `starts_document` agrees, later regardless.

    Nothing is lost: the chunks joined are the text.
    """
    held: list[str] = []
    size = 0
    after_blank = False
    for line in lines:
        if size >= _needed(line, after_blank, starts_document):
            yield "".join(held)
            held, size = [], 0
        held.append(line)
        size += len(line)
        after_blank = not line.strip()
    if held:
        yield "".join(held)


def _needed(line: str, after_blank: bool, starts_document: Callable[[str], bool]) -> int:
    if not after_blank:
        return MAX_CHUNK
    return MIN_CHUNK if starts_document(line) else MID_CHUNK
