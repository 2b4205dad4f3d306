"""Logging of the server process, and the line format in which workers send it their records.

A worker writes each log record to its standard error as one line: a record separator (RFC 7464)
and a JSON object. The server reads the pipe, formats those records like its own and logs any
other line (prints, a native crash's traceback) as output of the model. So one process decides on
format, file and rotation, and every line of a request carries its id.
"""

from __future__ import annotations

import contextvars
import logging
import logging.handlers
import re
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from mms.errors import ConfigError

#: Marks a line on a worker's standard error as a log record: ASCII record separator.
RECORD_MARK = b"\x1e"

#: Keeps years at four digits (2**37 is the year 6325). Printed output may look like a record.
_MAX_TIMESTAMP = 2.0**37

#: At most six digits: an interval of years already.
_ROTATION = re.compile(
    r"(?:(?P<interval>0*[1-9]\d{0,5})\s+)?(?P<unit>[SMHD]|midnight|W[0-6])",
    re.ASCII | re.IGNORECASE,
)

_MAX_WORKER_LOGGERS = 1000
_MAX_LOGGER_NAME = 200
_worker_loggers: set[str] = set()
#: Loggers that `get_logger` has set up.
_named: set[str] = set()

#: Id of the request that this task (server) or stage (worker) is handling.
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")


#: PUBLIC, from v0.4, as are `get_logger` and `getLogger`.
LOG_LEVEL_DICT = {
    name: getattr(logging, name)
    for name in ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG", "NOTSET")
}


def get_logger(
    name: str | None = None,
    filename: str | None = None,
    level: str | int = "NOTSET",
    rotate_value: str = "H",
    rotate_interval: int = 1,
) -> logging.Logger:
    """Return a logger, as services of v0.4 ask for one.

    The first call for a name sets its level and opens its file. Without a file v0.4 gave it a
    handler for standard error, which would show each line twice here: the server logs it already.

    Args:
        name: Its name; the root logger, unchanged, if None.
        filename: File to log to as well.
        level: A key of `LOG_LEVEL_DICT`, or a number.
        rotate_value: Unit of time after which a new file is started, see
            `logging.handlers.TimedRotatingFileHandler`.
        rotate_interval: How many of it.

    Raises:
        KeyError: The level is unknown.
    """
    logger = logging.getLogger(name)
    if name is None or name in _named:
        return logger
    number = level if isinstance(level, int) else LOG_LEVEL_DICT[level]
    if filename:
        logger.addHandler(
            logging.handlers.TimedRotatingFileHandler(
                filename, when=rotate_value, interval=rotate_interval
            )
        )
    logger.setLevel(number)
    _named.add(name)
    return logger


def getLogger(
    name: str | None = None,
    filename: str | None = None,
    filemode: str | None = None,
    level: str | int = "NOTSET",
) -> logging.Logger:
    """Return what `get_logger` returns; v0.4's name from before that."""
    return get_logger(name, filename, level)


class _ContextFilter(logging.Filter):
    """Adds `request_id` and `model` to records that lack them."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "request_id"):
            record.request_id = request_id.get()
        if not hasattr(record, "model"):
            record.model = ""
        return True


class TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.123Z INFO mms.serving [crepe] message (request 7f3a)``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, followed by the traceback if the record has one."""
        extra = vars(record)
        model = f" [{extra['model']}]" if extra.get("model") else ""
        request = f" (request {extra['request_id']})" if extra.get("request_id") else ""
        line = (
            f"{_timestamp(record)} {record.levelname} {record.name}{model} {record.getMessage()}"
            f"{request}"
        )
        traceback = _traceback(record, self)
        # A client's text must not be able to forge a line of the log. A traceback is indented,
        # since the exception's message may quote a client, line ends included.
        return "\n  ".join(map(_printable, [line, *traceback.splitlines()]))


class JsonFormatter(logging.Formatter):
    """One JSON object per record, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object: time, level, logger, message; model, request and traceback if set."""
        document: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key in ("model", "request_id"):
            if getattr(record, key, ""):
                document[key] = getattr(record, key)
        traceback = _traceback(record, self)
        if traceback:
            document["traceback"] = traceback
        return _dump(document).decode()


class WorkerHandler(logging.Handler):
    """Writes records in the format that `emit_worker_line` reads; used inside workers."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record in a single write, so that lines of several workers never interleave."""
        try:
            document = {
                "level": record.levelno,
                "logger": record.name,
                "message": record.getMessage(),
                "created": record.created,
                "request_id": request_id.get(),
                "traceback": vars(record).get("traceback")
                or _traceback(record, logging.Formatter()),
            }
            line = RECORD_MARK + _dump(document) + b"\n"
            sys.stderr.flush()
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
        except Exception:  # noqa: BLE001 - logging must never take its caller down
            self.handleError(record)


def emit_worker_line(line: bytes, model: str) -> None:
    """Log one line from a worker's standard output or error.

    Args:
        line: Without its newline.
        model: Name of the model that the worker serves.
    """
    document = None
    if line.startswith(RECORD_MARK):
        try:
            document = orjson.loads(line[len(RECORD_MARK) :])
        except orjson.JSONDecodeError:
            document = None
    if not isinstance(document, dict):
        text = line.decode(errors="replace")
        if text.strip():
            logging.getLogger("mms.output").info("%s", text, extra={"model": model})
        return
    logger = _worker_logger(str(document.get("logger", "mms.worker")))
    level = document.get("level")
    level = level if isinstance(level, int) else logging.INFO
    if not logger.isEnabledFor(level):
        return
    record = logger.makeRecord(
        logger.name, level, "", 0, "%s", (document.get("message", ""),), None
    )
    created = document.get("created")
    if isinstance(created, float) and 0.0 <= created < _MAX_TIMESTAMP:
        record.created = created
        record.msecs = (created % 1) * 1000
    record.model = model
    record.request_id = str(document.get("request_id", ""))
    record.exc_text = str(document.get("traceback") or "") or None
    logger.handle(record)


def configure_logging(
    level: str = "INFO",
    format_: str = "text",
    file: Path | None = None,
    rotation: str | None = None,
) -> logging.Handler:
    """Send the root logger's records to standard error, or to `file` if set.

    Args:
        level: NOTSET, DEBUG, INFO, WARNING, ERROR or CRITICAL, in any case.
        format_: ``text`` or ``json``.
        file: Where to log instead of standard error.
        rotation: When to start a new file: ``"1 H"`` as v0.4 wrote it.

    Returns:
        The handler, so that the caller can close or reopen it.

    Raises:
        ConfigError: The file cannot be opened, or a value is not one of the above.
    """
    number = logging.getLevelName(level.upper())
    if not isinstance(number, int):
        raise ConfigError(f"log level {level!r} is unknown; use DEBUG, INFO, WARNING or ERROR")
    handler = _handler(file, rotation)
    handler.setFormatter(JsonFormatter() if format_ == "json" else TextFormatter())
    handler.addFilter(_ContextFilter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(number)
    return handler


def configure_worker_logging(level: int) -> None:
    """Send the records of all loggers in a worker to the server process."""
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(WorkerHandler())
    root.setLevel(level)


def _worker_logger(name: str) -> logging.Logger:
    """Return the logger a worker named; loggers are never freed, so their number is bounded."""
    if name not in _worker_loggers:
        if len(_worker_loggers) >= _MAX_WORKER_LOGGERS or len(name) > _MAX_LOGGER_NAME:
            return logging.getLogger("mms.worker")
        _worker_loggers.add(name)
    return logging.getLogger(name)


def _handler(file: Path | None, rotation: str | None) -> logging.Handler:
    if file is None:
        return logging.StreamHandler(sys.stderr)
    try:
        if rotation is None:
            return logging.handlers.WatchedFileHandler(file)
        when, interval = _parse_rotation(rotation)
        return logging.handlers.TimedRotatingFileHandler(
            file, when=when, interval=interval, backupCount=10
        )
    except OSError as error:
        raise ConfigError(f"log file {file} cannot be opened: {error.strerror}") from None


def _parse_rotation(text: str) -> tuple[str, int]:
    """Return unit and interval, as v0.4 wrote them: ``1 H``, ``W2``, ``2 midnight``."""
    match = _ROTATION.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"log rotation {text!r} is not valid; write an interval and a unit, such as '1 H': S, "
            "M, H, D, midnight, or a weekday from W0 (Monday) to W6"
        )
    return match["unit"].upper(), int(match["interval"] or 1)


def _dump(document: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(document, default=str)
    except TypeError:
        # A lone surrogate (in a file name, say), which UTF-8 cannot hold, or a number that JSON
        # cannot.
        texts = {
            key: str(value).encode(errors="backslashreplace").decode()
            for key, value in document.items()
            if key not in ("level", "created")
        }
        return orjson.dumps(document | texts, default=str)


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _traceback(record: logging.LogRecord, formatter: logging.Formatter) -> str:
    if record.exc_info and not record.exc_text:
        record.exc_text = formatter.formatException(record.exc_info)
    return record.exc_text or ""


def _printable(text: str) -> str:
    return (
        text
        if text.isprintable()
        else "".join(
            char if char.isprintable() or char == "\t" else f"\\x{ord(char):02x}" for char in text
        )
    )
