"""Read the text files of users that archives contain: UTF-8, with a mark or without. Pure."""

from __future__ import annotations

from pathlib import Path

from mms.errors import ModelLoadFailed

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: str | Path) -> str:
    """Return the content of a text file in UTF-8, without its byte order mark.

    Raises:
        ModelLoadFailed: It is in another encoding, or cannot be read; the message names the file.
    """
    name = Path(path).name
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ModelLoadFailed(f"{name} cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        other = "UTF-16" if data.startswith(_UTF16_MARKS) else "another encoding"
        raise ModelLoadFailed(
            f"{name} is not in UTF-8 but in {other} (line {line}); save it as UTF-8 (utf-8)"
        ) from None


def read_labels(path: str | Path) -> list[str]:
    """Return the lines of a synset.txt, stripped: one label per class, in order.

    Blank lines at the end are no classes. One within keeps its place, as in 0.4: whatever follows
    would otherwise move to another class.

    Raises:
        ModelLoadFailed: See `read_text`.
    """
    # Only these line ends: `str.splitlines` knows further ones, which a label may contain.
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    labels = [line.strip() for line in text.split("\n")]
    while labels and not labels[-1]:
        labels.pop()
    return labels


def blank_labels(labels: list[str]) -> list[int]:
    """Return the numbers of the lines without a label, which name no class; the first is 1."""
    return [number for number, label in enumerate(labels, 1) if not label]
