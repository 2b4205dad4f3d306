"""Sentences of real English that every Python installation holds, split into three parts.

The Penn Treebank, on which the original of this example was trained, may not be passed on. The
reference manual of Python, which `pydoc` prints (module `pydoc_data.topics`), may be read on any
machine with Python instead. Its text differs a little from one release of Python to the next,
and with it the figures.

The manual says some things twice, in two topics. So topics are what is split, not sentences, and
a sentence that was seen before is left out.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pydoc_data.topics import topics

from lstm_ptb_service import MAX_WORDS, UNKNOWN, words

# Every eighth topic in alphabetical order is held out, and every eighth of the others validates.
PART_STRIDE = 8
MIN_WORDS = 4
# Words that occur less often in the training part are unknown, as in the Penn Treebank's text.
MIN_COUNT = 3

_PARAGRAPH = re.compile(r"\n\s*\n")
_LIST_MARK = re.compile(r"^\s*(?:[*\-]|\d+\.)\s+")
# Tables, grammar, code and underlined headings, which are no sentences.
_NO_PROSE = re.compile(r"^\s*(?:[+|]|>>>|\.\.\.)|::=|[*=\-~^+]{4}", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"A-Z*(])")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Sentences as lists of words."""

    training: list[list[str]]
    validation: list[list[str]]
    held_out: list[list[str]]


def load() -> Corpus:
    """Return the three parts; unknown words stand as ``<unk>`` in all of them."""
    names = sorted(topics)
    rest = [name for index, name in enumerate(names) if index % PART_STRIDE]
    seen: set[tuple[str, ...]] = set()
    # The largest part first: what a smaller part shares with it counts as training text.
    training = _sentences([n for i, n in enumerate(rest) if i % PART_STRIDE], seen)
    validation = _sentences(rest[::PART_STRIDE], seen)
    held_out = _sentences(names[::PART_STRIDE], seen)
    counts = Counter(word for sentence in training for word in sentence)
    known = {word for word, count in counts.items() if count >= MIN_COUNT}
    return Corpus(*(_replace_rare(part, known) for part in (training, validation, held_out)))


def _sentences(names: Sequence[str], seen: set[tuple[str, ...]]) -> list[list[str]]:
    """Return each topic's sentences that are new, and record them."""
    found = []
    for name in names:
        for sentence in _prose(topics[name]):
            tokens = words(sentence)
            if MIN_WORDS <= len(tokens) <= MAX_WORDS and tuple(tokens) not in seen:
                seen.add(tuple(tokens))
                found.append(tokens)
    return found


def _prose(text: str) -> Iterator[str]:
    for paragraph in _PARAGRAPH.split(text):
        line = " ".join(_LIST_MARK.sub("", paragraph).split())
        if not _NO_PROSE.search(paragraph):
            # What does not end like a sentence is a heading or a line of code.
            yield from (s for s in _SENTENCE_END.split(line) if s.rstrip('")')[-1:] in ".!?:")


def _replace_rare(sentences: Sequence[Sequence[str]], known: set[str]) -> list[list[str]]:
    return [[word if word in known else UNKNOWN for word in sentence] for sentence in sentences]
