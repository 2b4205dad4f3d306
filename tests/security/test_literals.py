"""Python literals from strangers: what `ast.literal_eval` reads, in linear time."""

from __future__ import annotations

import ast
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms.errors import InvalidRequest, PayloadTooLarge
from mms.wire.messages import RequestLimits
from mms.worker.literal import MAX_DEPTH, MalformedLiteral, read_literal
from mms.worker.request import parse_literal
from tests.security.work import calls_of, run_limited

MANY = 10**6
PIECES = [
    "1", "0", "-", "+", "2j", "1.5", ".5", "1e5", "1e400", "0x1F", "0b1", "0o7", "1_0", "007",
    "'a'", '"b"',
    "b'c'", "r'\\d'", "'''t\n'''", "'\\u00e9'", "'é\\\\'", "'\\é'", "'\\N{DIGIT ONE}'",
    "b'\\xff'", "u'x'", "f'{1}'", "rb'\\'", "(", ")", "[", "]", "{", "}", ",", ",", ":", " ", "\n",
    "# c\n", "\\\n", "True", "False", "None", "set()", "_", "j", "e", "'", '"', "\\", "b''", "(1)",
    "(2j)", "'\\''", "'\\x41\\101\\q'", "NaN", "\t", "1,", "2,", "-3,", "a.b", "f()",
]  # fmt: skip
keys = st.integers() | st.text() | st.tuples(st.integers())
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner) | st.sets(keys)
    ),
    max_leaves=15,
)


def by_python(text: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return repr(ast.literal_eval(text.strip()))
        except (ValueError, SyntaxError, TypeError):
            return "refused"


def by_us(text: str) -> str:
    try:
        return repr(read_literal(text, "it", MANY))
    except MalformedLiteral:
        return "refused"


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.booleans())
@settings(max_examples=1500, deadline=None)
def test_v05_any_pieces_mean_what_they_mean_to_python(text: str, is_within: bool) -> None:
    text = f"[{text}]" if is_within else text
    assert by_us(text) == by_python(text)


@given(values.map(repr))
@settings(max_examples=300, deadline=None)
def test_v05_any_value_comes_back(text: str) -> None:
    assert by_us(text) == by_python(text)


BOMBS = {
    "f-string": "f'" + "{1}" * 300_000 + "'",
    "or": "1or " * 200_000 + "1",
    "and": "1and " * 200_000 + "1",
    "attributes": "a" + ".a" * 200_000,
    "calls": "a" + "()" * 200_000,
    "sums": "1" + "+1" * 400_000,
    "escaped quotes": "'" + "\\'" * 400_000,
    "backslashes": "'" + "\\\\" * 400_000 + "\\",
    "open brackets": "[" * 800_000,
    "unary": "-" * 800_000 + "1",
    "comments": "[" + "#\n" * 400_000,
    "adjacent texts": "'' " * 300_000 + "x",
    "digits": "[" + "9" * 800_000 + ",'']",
    "underscores": "1_" * 400_000,
    "blanks": "[" + " \n" * 400_000,
    "names": "a" * 800_000,
    "spaces before an end": "[1" + " " * 800_000 + "x",
    "infinities": "[" + "1e999,1," * 100_000 + "x",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_v05_v06_a_literal_costs_neither_the_square_of_its_size_nor_the_process(bomb: str) -> None:
    code = """
    import sys
    import warnings
    warnings.simplefilter("error")
    from mms.errors import InvalidRequest
    from mms.worker.request import parse_literal
    from tests.security.test_literals import BOMBS
    data = BOMBS[NAME].encode()
    seen = []
    sys.addaudithook(lambda event, _: seen.append(event) if event == "compile" else None)
    limit()
    try:
        parse_literal("x", data)
    except InvalidRequest as error:
        assert len(str(error)) < 300
        assert not seen, "Python's own parser has seen it"
        print("refused")
    """
    assert run_limited(f"NAME = {bomb!r}\n" + _dedented(code), 100 << 20) == "refused"


def _dedented(code: str) -> str:
    return "\n".join(line[4:] for line in code.split("\n"))


@pytest.mark.parametrize("unit", ["1or ", "'a',", "(),", "'' ", "{'a':1},", "[[[1,],],],", "#\n"])
def test_v05_twice_the_literal_takes_twice_the_steps(unit: str) -> None:
    def cost(count: int) -> int:
        return calls_of(lambda: parse_literal("x", b"(" + unit.encode() * count + b",)"))

    assert cost(2000) < 2.2 * cost(1000)


def test_v05_numbers_of_the_same_hash_are_no_keys() -> None:
    """Each would be compared with all before it: in JSON all keys are texts, in literals not."""
    prime = 2**61 - 1
    for text in (
        "{" + ",".join(f"{n * prime}:0" for n in range(100)) + "}",
        "{" + ",".join(f"{n * prime}" for n in range(100)) + "}",
        "{" + ",".join(f"({n * prime},)" for n in range(100)) + "}",
    ):
        with pytest.raises(InvalidRequest, match="same hash"):
            read_literal(text, "input 'x'", MANY)
    assert read_literal("{" + "1:0," * 100 + "}", "it", MANY) == {1: 0}


def test_v05_depth_and_elements_are_limited() -> None:
    for text in (f"{'(' * 90}1,{')' * 90}", f"{'[' * MAX_DEPTH}'a'{']' * MAX_DEPTH}"):
        assert by_us(text) == by_python(text)
    with pytest.raises(InvalidRequest, match="deeper than 100 levels; send JSON"):
        read_literal("(" * 101, "it", MANY)
    limits = RequestLimits(max_json_elements=10)
    for data in (
        b"('a'," + b"1," * 20 + b")",
        b"(" + b"'a'," * 20 + b")",
        b"(" + b"()," * 20 + b")",
    ):
        with pytest.raises(PayloadTooLarge, match="--max-json-elements"):
            parse_literal("x", data, limits)


def test_v05_what_stands_in_texts_is_no_element() -> None:
    text = b"['" + b"a,[{" * 50 + b"', 2]"
    assert parse_literal("x", text, RequestLimits(max_json_elements=3))[1] == 2


def test_v05_integers_are_exact_or_refused() -> None:
    assert parse_literal("x", b"(9007199254740993, -36893488147419103233)") == (
        9007199254740993,
        -36893488147419103233,
    )
    with pytest.raises(InvalidRequest, match="5000 digits; at most 4300"):
        parse_literal("x", b"('', " + b"9" * 5000 + b")")


def test_v06_escapes_that_mean_nothing_are_not_written_to_the_log() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse_literal("x", rb"('\d', b'\q', '\777',)")[0] == "\\d"
