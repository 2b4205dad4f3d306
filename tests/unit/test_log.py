"""The log: formats, the workers' lines, and that nobody forges one."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mms import log
from mms.errors import ConfigError
from mms.log import RECORD_MARK, JsonFormatter, TextFormatter, configure_logging, emit_worker_line


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """Return the root logger; what the test leaves on it is removed, pytest's own handlers stay."""
    logger = logging.getLogger()
    level = logger.level
    yield logger
    for handler in list(logger.handlers):
        if not type(handler).__module__.startswith("_pytest"):
            logger.removeHandler(handler)
            handler.close()
    logger.setLevel(level)


class Lines(logging.Handler):
    """Keeps what is formatted; an error in formatting is an error of the test."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


@pytest.fixture
def lines(root: logging.Logger) -> Lines:
    handler = Lines(TextFormatter())
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    return handler


def record(message: str, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("mms.test", logging.INFO, "", 0, message, (), None)
    made.created, made.msecs = 1769860800.25, 250.0
    vars(made).update(extra)
    return made


def test_a_line_says_when_what_whose_and_of_which_request() -> None:
    text = TextFormatter().format(record("hello", model="crepe", request_id="7f3a"))
    assert text == "2026-01-31T12:00:00.250Z INFO mms.test [crepe] hello (request 7f3a)"
    assert TextFormatter().format(record("x")) == "2026-01-31T12:00:00.250Z INFO mms.test x"


def test_a_json_line_holds_the_same() -> None:
    text = JsonFormatter().format(record("a\nb", model="crepe", request_id="7f3a"))
    assert "\n" not in text
    assert json.loads(text) == {
        "time": "2026-01-31T12:00:00.250Z",
        "level": "INFO",
        "logger": "mms.test",
        "message": "a\nb",
        "model": "crepe",
        "request_id": "7f3a",
    }


@given(st.text(alphabet=st.characters(), max_size=80))
@settings(max_examples=100, deadline=None)
def test_no_message_makes_a_second_line_or_moves_the_cursor(message: str) -> None:
    text = TextFormatter().format(record(message))
    assert len(text.splitlines()) == 1
    assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]", text)
    text.encode()
    document = JsonFormatter().format(record(message))
    assert "\n" not in document
    assert isinstance(json.loads(document.encode())["message"], str)


def test_a_traceback_cannot_forge_a_line() -> None:
    forged = "2026-01-31T12:00:00.250Z INFO mms.access all is well"
    try:
        raise ValueError(f"bad input\n{forged}\x1b[2J")
    except ValueError:
        made = record("failed")
        made.exc_info = sys.exc_info()
    text = TextFormatter().format(made)
    first, *rest = text.splitlines()
    assert first.endswith("failed")
    assert rest[0] == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") for line in rest)
    assert f"  {forged}\\x1b[2J" in rest
    assert "\x1b" not in text


def test_text_that_is_no_unicode_is_logged_escaped() -> None:
    assert r"caf\xdce9" in TextFormatter().format(record("caf\udce9"))
    assert json.loads(JsonFormatter().format(record("caf\udce9")))["message"] == r"caf\udce9"


def worker_line(**fields: Any) -> bytes:
    return RECORD_MARK + orjson.dumps(
        {"level": 20, "logger": "my.service", "message": "hi"} | fields
    )


def test_a_worker_s_record_becomes_one_of_ours(lines: Lines) -> None:
    emit_worker_line(worker_line(created=1769860800.25, request_id="7f3a"), "crepe")
    assert lines.texts == ["2026-01-31T12:00:00.250Z INFO my.service [crepe] hi (request 7f3a)"]


def test_a_worker_s_traceback_comes_along(lines: Lines) -> None:
    emit_worker_line(worker_line(level=40, traceback="Traceback:\nValueError: x"), "crepe")
    assert lines.texts[0].splitlines()[1:] == ["  Traceback:", "  ValueError: x"]


def test_a_print_of_a_service_is_its_model_s_output(lines: Lines) -> None:
    emit_worker_line(b"loaded \xff net", "crepe")
    [text] = lines.texts
    assert text.endswith("INFO mms.output [crepe] loaded \N{REPLACEMENT CHARACTER} net")


def test_empty_output_is_not_logged(lines: Lines) -> None:
    emit_worker_line(b"  ", "crepe")
    assert lines.texts == []


def test_records_below_the_level_are_dropped(lines: Lines, root: logging.Logger) -> None:
    root.setLevel(logging.WARNING)
    emit_worker_line(worker_line(level=20), "crepe")
    emit_worker_line(worker_line(level=30), "crepe")
    assert len(lines.texts) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
records = st.dictionaries(
    st.sampled_from(["level", "logger", "message", "created", "request_id", "traceback"]),
    json_values,
)


@given(
    st.binary(max_size=80)
    | st.binary(max_size=40).map(lambda data: RECORD_MARK + data)
    | records.map(lambda document: RECORD_MARK + orjson.dumps(document))
)
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_a_worker_writes_is_at_most_one_record(lines: Lines, data: bytes) -> None:
    lines.texts.clear()
    emit_worker_line(data, "crepe")
    assert len(lines.texts) <= 1
    for text in lines.texts:
        first, *rest = text.splitlines()
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", first)
        assert all(line.startswith("  ") for line in rest)


def test_a_worker_s_handler_writes_what_the_server_reads(
    lines: Lines, root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", stream)
    token = log.request_id.set("7f3a")
    try:
        handler = log.WorkerHandler()
        handler.handle(record("two\nlines \udc80"))
        handler.handle(record("huge: %s", args=(2**80,)))
    finally:
        log.request_id.reset(token)
    written = stream.buffer
    assert isinstance(written, io.BytesIO)
    first, second = written.getvalue().splitlines()
    emit_worker_line(first, "crepe")
    emit_worker_line(second, "crepe")
    assert lines.texts[0].endswith(r"mms.test [crepe] two\x0alines \udc80 (request 7f3a)")
    assert f"huge: {2**80}" in lines.texts[1]


def test_a_log_file_gets_the_records(root: logging.Logger, tmp_path: Path) -> None:
    path = tmp_path / "mms.log"
    configure_logging("warning", "json", path)
    logging.getLogger("mms.x").info("quiet")
    logging.getLogger("mms.x").warning("loud")
    [line] = path.read_text().splitlines()
    assert json.loads(line)["message"] == "loud"


def test_a_rotated_file_is_found_again(root: logging.Logger, tmp_path: Path) -> None:
    """As logrotate does it: the file is moved away under the running server."""
    path = tmp_path / "mms.log"
    configure_logging(file=path)
    logging.getLogger("mms.x").warning("first")
    path.rename(tmp_path / "old.log")
    logging.getLogger("mms.x").warning("second")
    assert "first" in (tmp_path / "old.log").read_text()
    assert path.read_text().endswith("second\n")


def test_configuring_twice_leaves_one_handler(root: logging.Logger, tmp_path: Path) -> None:
    configure_logging(file=tmp_path / "a.log")
    handler = configure_logging(file=tmp_path / "b.log")
    assert root.handlers == [handler]


def test_without_a_file_the_log_goes_to_standard_error(root: logging.Logger) -> None:
    handler = configure_logging()
    assert isinstance(handler, logging.StreamHandler)
    assert handler.stream is sys.stderr


@pytest.mark.parametrize(
    ("rotation", "when", "seconds"),
    [
        ("1 H", "H", 3600),
        ("30 s", "S", 30),
        ("5 M", "M", 300),
        ("2 D", "D", 172_800),
        ("midnight", "MIDNIGHT", 86_400),
        # A unit alone, a weekday, and an interval before any of them: 0.4 took all of these.
        ("H", "H", 3600),
        ("D", "D", 86_400),
        ("W0", "W0", 604_800),
        ("W6", "W6", 604_800),
        ("3 W2", "W2", 1_814_400),
        ("2 midnight", "MIDNIGHT", 172_800),
    ],
)
def test_v04_s_rotation_times_are_understood(
    root: logging.Logger, tmp_path: Path, rotation: str, when: str, seconds: int
) -> None:
    handler = configure_logging(file=tmp_path / "x.log", rotation=rotation)
    assert isinstance(handler, logging.handlers.TimedRotatingFileHandler)
    assert (handler.when, handler.interval) == (when, seconds)


@pytest.mark.parametrize(
    "rotation", ["", "1", "0 H", "-1 H", "1 Y", "1 H 2", "W", "1 W", "W7", "1H"]
)
def test_other_rotation_times_are_refused_with_an_example(tmp_path: Path, rotation: str) -> None:
    with pytest.raises(ConfigError, match=f"log rotation '{rotation}' .* such as '1 H'"):
        configure_logging(file=tmp_path / "x.log", rotation=rotation)


def test_notset_logs_every_level(root: logging.Logger) -> None:
    # 0.4's LOG_LEVEL_DICT has it.
    configure_logging("NOTSET")
    assert root.level == logging.NOTSET


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="log level 'loud' is unknown; use DEBUG, INFO"):
        configure_logging("loud")


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no/x\.log cannot be opened: No such file"):
        configure_logging(file=tmp_path / "no" / "x.log")


def test_a_failed_configuration_leaves_the_log_as_it_was(
    lines: Lines, root: logging.Logger, tmp_path: Path
) -> None:
    before = list(root.handlers)
    with pytest.raises(ConfigError):
        configure_logging(file=tmp_path / "no" / "x.log")
    assert lines in before
    assert root.handlers == before
