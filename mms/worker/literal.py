"""Parse Python literals as v0.4 clients send them: like `ast.literal_eval`, in linear time.

Python's own parser takes time quadratic in a literal's length, a hundred times its memory, and on
some versions crashes the process. Here a literal is parsed token by token, without recursion.
"""

from __future__ import annotations

import codecs
import json
import re
import warnings
from typing import Any, NoReturn

import orjson

from mms.errors import InvalidRequest
from mms.worker.json_text import to_integer, too_many_elements

#: Maximum nesting of brackets. v0.4's own parser failed at about 90.
MAX_DEPTH = 100
#: Tokens parsed one by one, at about a microsecond each: values except rows of plain numbers,
#: adjacent strings, comments. JSON is the better choice for larger inputs.
MAX_STEPS = 1_000_000
#: A client can choose the hashes of numbers and tuples, and each key is compared with all those of
#: the same hash. Two or three equal hashes are already unlikely by chance.
MAX_EQUAL_HASHES = 16

_CLOSING = {"(": ")", "[": "]", "{": "}"}
_NAMES = {"True": True, "False": False, "None": None}
_BLANK_INSIDE = re.compile(r"[ \t\f\n]*")
_BLANK_OUTSIDE = re.compile(r"[ \t\f]*")
_COMMENT = re.compile(r"#[^\n]*")
_WORD = re.compile(r"[A-Za-z_]+")
_TEXT_START = re.compile(r"([uU]|[bB][rR]?|[rR][bB]?)?('''|\"\"\"|'|\")")
_NUMBER = re.compile(
    r"0[xXoObB][0-9a-fA-F_]+"
    r"|(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9][0-9_]*)?[jJ]?"
)
#: Rows of numbers that have the same form in JSON, a bounded number at once.
_ROW = re.compile(r"(?:-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?, ?\n?){2,5000}")
_EMPTY_CALL = re.compile(r"[ \t\f]*\([ \t\f\n]*\)")
_NOTHING: Any = object()


class MalformedLiteral(ValueError):
    """The text is not a Python literal."""


def read_literal(text: str, what: str, max_elements: int) -> Any:
    """Return the value of a Python literal.

    Args:
        text: The literal.
        what: Its name, for messages: "input 'x'".
        max_elements: Maximum number of values, containers included.

    Raises:
        MalformedLiteral: It is not a literal.
        InvalidRequest: It is nested too deeply or has too many tokens.
        PayloadTooLarge: It has more elements.
    """
    text = text.strip()
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        raise MalformedLiteral
    with warnings.catch_warnings():
        # For meaningless escapes, which Python intends to refuse in the future.
        warnings.simplefilter("ignore")
        return _Reader(text, what, max_elements).read()


class _Open:
    """An open bracket, or the whole text, and its content so far.

    Attributes:
        bracket: The bracket, "" for the whole text.
        items: The items before the last comma; for a dict, its values.
        keys: The keys of a dict, else None.
        key: The key before the last colon, once parsed.
        value: The value after the last comma or colon, once parsed.
        is_number: Whether `value` is a bare number, which may get a sign.
        is_term: Whether it is a number, possibly signed, to which an imaginary one may be added.
        sign: The sign that precedes a number still to come, or "".
        term: The real part that an imaginary number still to come is added to.
        operator: The operator between the two.
    """

    __slots__ = (
        "bracket", "is_number", "is_term", "items", "key", "keys", "operator", "sign", "term",
        "value",
    )  # fmt: skip

    def __init__(self, bracket: str) -> None:
        self.bracket = bracket
        self.items: list[Any] = []
        self.keys: list[Any] | None = None
        self.key = self.value = self.term = _NOTHING
        self.is_number = self.is_term = False
        self.sign = self.operator = ""

    @property
    def is_waiting(self) -> bool:
        """Whether a value has to follow."""
        return bool(self.sign) or self.term is not _NOTHING or self.key is not _NOTHING

    @property
    def takes_rows(self) -> bool:
        """Whether plain numbers and commas may follow."""
        return self.bracket in ("(", "[") and not self.is_waiting


class _Reader:
    """Parses one literal."""

    def __init__(self, text: str, what: str, max_elements: int) -> None:
        self._text = text
        self._what = what
        self._max_elements = max_elements
        self._elements_left = max_elements
        self._steps_left = MAX_STEPS
        self._at = 0
        self._open = [_Open("")]
        self._shadow = ""
        self._is_begun = self._is_indented = False

    def read(self) -> Any:
        while True:
            self._skip_blanks()
            place = self._open[-1]
            char = self._text[self._at : self._at + 1]
            if not char:
                return self._end(place)
            if self._is_indented and not self._is_begun:
                self._fail()
            if place.value is _NOTHING:
                self._read_value(place, char)
            else:
                self._read_separator(place, char)

    def _fail(self) -> NoReturn:
        raise MalformedLiteral

    def _step(self) -> None:
        self._steps_left -= 1
        if self._steps_left < 0:
            raise InvalidRequest(
                f"{self._what} has more than {MAX_STEPS} tokens, too many for a Python literal; "
                "send JSON"
            )

    def _count(self, elements: int) -> None:
        self._elements_left -= elements
        if self._elements_left < 0:
            raise too_many_elements(self._what, self._max_elements)

    def _skip_blanks(self) -> None:
        """Skip spaces, comments and line continuations; within brackets also line ends."""
        is_inside = len(self._open) > 1
        blank = _BLANK_INSIDE if is_inside else _BLANK_OUTSIDE
        while True:
            begun_at = self._at
            self._at = blank.match(self._text, self._at).end()  # type: ignore[union-attr]
            if not self._is_begun and begun_at < self._at:
                # A form feed ends the indentation before it.
                self._is_indented = self._text[self._at - 1] != "\f"
            char = self._text[self._at : self._at + 1]
            if char == "#":
                self._at = _COMMENT.match(self._text, self._at).end()  # type: ignore[union-attr]
            elif char == "\\" and self._text[self._at + 1 : self._at + 2] == "\n":
                self._at += 2
            elif char == "\n":
                self._end_line()
            else:
                return
            self._step()

    def _end_line(self) -> None:
        """Skip a line end outside brackets: one side of it may contain only comments."""
        rest = self._text[self._at :]
        if not self._is_begun:
            self._at += 1
            self._is_indented = False
        elif all(line.lstrip(" \t\f")[:1] in ("", "#") for line in rest.split("\n")):
            self._at = len(self._text)
        else:
            self._fail()

    def _end(self, place: _Open) -> Any:
        if place.bracket or place.is_waiting:
            self._fail()
        if place.value is _NOTHING:
            return tuple(place.items) if place.items else self._fail()
        return (*place.items, place.value) if place.items else place.value

    def _read_value(self, place: _Open, char: str) -> None:
        self._step()
        self._is_begun = True
        if place.takes_rows and (char.isdecimal() or char == "-") and self._read_row(place):
            return
        if char in "([{":
            self._at += 1
            self._open.append(_Open(char))
            if len(self._open) - 1 > MAX_DEPTH:
                raise InvalidRequest(
                    f"{self._what} is nested deeper than {MAX_DEPTH} levels; send JSON"
                )
        elif char in ")]}":
            self._close(place, char)
        elif char in "+-":
            if place.sign or place.term is not _NOTHING:
                self._fail()
            place.sign = char
            self._at += 1
        elif char in "0123456789." and not self._text.startswith("...", self._at):
            self._take(place, self._number(), is_number=True)
        elif _TEXT_START.match(self._text, self._at):
            self._take(place, self._texts())
        else:
            self._take(place, self._named())

    def _read_separator(self, place: _Open, char: str) -> None:
        self._at += 1
        if char == ",":
            _add(place)
        elif char == ":" and place.bracket == "{" and place.key is _NOTHING:
            if place.keys is None and place.items:
                self._fail()
            place.keys = [] if place.keys is None else place.keys
            place.key, place.value = place.value, _NOTHING
        elif char in ")]}":
            self._at -= 1
            self._close(place, char)
        elif char in "+-" and place.is_term:
            place.term, place.operator, place.value = place.value, char, _NOTHING
        else:
            self._fail()

    def _read_row(self, place: _Open) -> bool:
        """Parse a row of plain numbers, up to the row limit."""
        row = _ROW.match(self._text, self._at)
        if row is None:
            return False
        text = f"[{row[0].rstrip()[:-1]}]"
        # Two elements at least, and as many commas as elements.
        self._count(row[0].count(","))
        try:
            place.items += orjson.loads(text)
        except orjson.JSONDecodeError:
            # A number beyond the largest float, which Python parses as infinity.
            place.items += json.loads(text)
        self._at = row.end()
        return True

    def _take(
        self, place: _Open, value: Any, is_number: bool = False, is_term: bool = False
    ) -> None:
        """Store a parsed value, combined with a pending sign or real part."""
        self._count(1)
        is_term = is_term or is_number
        if place.sign:
            if not is_number:
                self._fail()
            value = -value if place.sign == "-" else +value
            place.sign, is_number = "", False
        if place.term is not _NOTHING:
            if not is_number or not isinstance(value, complex):
                self._fail()
            value = place.term - value if place.operator == "-" else place.term + value
            place.term, is_number, is_term = _NOTHING, False, False
        place.value, place.is_number = value, is_number
        place.is_term = is_term and not isinstance(value, complex)

    def _close(self, place: _Open, char: str) -> None:
        if _CLOSING.get(place.bracket) != char or (place.value is _NOTHING and place.is_waiting):
            self._fail()
        self._at += 1
        self._open.pop()
        outer = self._open[-1]
        if char == ")" and place.value is not _NOTHING and not place.items:
            # Not a tuple, only brackets: a number in them is still a number.
            self._take(outer, place.value, place.is_number, place.is_term)
            return
        if place.value is not _NOTHING:
            _add(place)
        self._take(outer, _container(place, self._what))

    def _number(self) -> Any:
        match = _NUMBER.match(self._text, self._at)
        if match is None:
            self._fail()
        self._at = match.end()
        text = match[0]
        if self._text[self._at : self._at + 1].isidentifier():
            self._fail()
        try:
            if text[:2].lower() in ("0x", "0o", "0b"):
                return int(text, 0)
            if text[-1] in "jJ":
                return complex(text)
            if "." in text or "e" in text or "E" in text:
                return float(text)
            return to_integer(text, base=0)
        except ValueError:
            self._fail()

    def _texts(self) -> str | bytes:
        """Parse a string and the adjacent ones, which are concatenated."""
        pieces = []
        match = _TEXT_START.match(self._text, self._at)
        while match is not None:
            pieces.append(self._piece(match))
            self._step()
            self._skip_blanks()
            match = _TEXT_START.match(self._text, self._at)
        try:
            return pieces[0][:0].join(pieces)  # type: ignore[arg-type]
        except TypeError:
            self._fail()

    def _piece(self, match: re.Match[str]) -> str | bytes:
        prefix, quote = (match[1] or "").lower(), match[2]
        shadow = self._hide_escapes()
        start, end = match.end(), shadow.find(quote, match.end())
        if end < 0 or (len(quote) == 1 and shadow.find("\n", start, end) >= 0):
            self._fail()
        self._at = end + len(quote)
        body = self._text[start:end]
        try:
            if "b" in prefix:
                data = body.encode("ascii")
                return data if "r" in prefix else codecs.escape_decode(data)[0]
            return body if "r" in prefix or "\\" not in body else _unescaped(body)
        except ValueError:
            self._fail()

    def _hide_escapes(self) -> str:
        """Return the text with escapes overwritten, so that any quote ends a string."""
        if not self._shadow:
            self._shadow = self._text
            if "\\" in self._text:
                for escape in ("\\\\", "\\'", '\\"', "\\\n"):
                    self._shadow = self._shadow.replace(escape, "__")
        return self._shadow

    def _named(self) -> Any:
        if self._text.startswith("...", self._at):
            self._at += 3
            return ...
        match = _WORD.match(self._text, self._at)
        if match is None:
            self._fail()
        self._at = match.end()
        if match[0] in _NAMES:
            return _NAMES[match[0]]
        call = _EMPTY_CALL.match(self._text, self._at)
        if match[0] != "set" or call is None:
            self._fail()
        self._at = call.end()
        return set()


def _add(place: _Open) -> None:
    """Add the parsed value to its container."""
    if place.keys is not None:
        if place.key is _NOTHING:
            raise MalformedLiteral
        place.keys.append(place.key)
        place.key = _NOTHING
    place.items.append(place.value)
    place.value = _NOTHING


def _container(place: _Open, what: str) -> Any:
    if place.bracket == "(":
        return tuple(place.items)
    if place.bracket == "[":
        return place.items
    keys = place.items if place.keys is None else place.keys
    try:
        _refuse_equal_hashes(keys, what)
        if place.keys is None and keys:
            return set(keys)
    except TypeError:
        # A list or a dict, which cannot be a key.
        raise MalformedLiteral from None
    return dict(zip(keys, place.items, strict=True))


def _refuse_equal_hashes(keys: list[Any], what: str) -> None:
    """Refuse keys whose insertion would take quadratic time."""
    if len(keys) <= MAX_EQUAL_HASHES:
        hash(tuple(keys))
        return
    by_hash: dict[int, set[Any]] = {}
    for key in keys:
        # Clients cannot choose the hash of strings.
        if isinstance(key, (str, bytes)):
            continue
        same = by_hash.setdefault(hash(key), set())
        same.add(key)
        if len(same) > MAX_EQUAL_HASHES:
            raise InvalidRequest(f"{what} has too many keys with the same hash")


def _unescaped(body: str) -> str:
    """Decode the escapes of a string that may contain any characters."""
    # The codec expects Latin-1, so other characters are escaped first. A backslash before such a
    # character is literal.
    data = body.replace("\\\\", "\\x5c").encode("ascii", "backslashreplace")
    return codecs.unicode_escape_decode(data.replace(b"\\\\", b"\\x5c\\"))[0]
