"""Turn exceptions of user code into our errors, cut to what the user can act on."""

from __future__ import annotations

import builtins
import linecache
import logging
import os
import sys
import traceback
from types import TracebackType
from typing import Any

from mms.engines.error_text import is_out_of_memory, reason_line, short_text
from mms.errors import (
    Conflict,
    ErrorDetail,
    Forbidden,
    InferenceFailed,
    InvalidRequest,
    MMSError,
    ModelLoadFailed,
    ModelNotFound,
    OutOfMemory,
    PayloadTooLarge,
    RejectedByService,
    SlowClient,
    Unauthorized,
    UnsupportedMedia,
)
from mms.service import PredictionException
from mms.worker.confine import limit_hint

logger = logging.getLogger("mms.worker")

#: Logged briefly, and never as errors: all that clients are answered with 4xx for.
FAULTS_OF_CLIENTS = (
    InvalidRequest,
    PayloadTooLarge,
    UnsupportedMedia,
    SlowClient,
    ModelNotFound,
    Conflict,
    Forbidden,
    Unauthorized,
    RejectedByService,
)

#: Python 3.10 lacks it.
_GROUP: Any = getattr(builtins, "BaseExceptionGroup", ())

_OUR_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LIBRARY_FOLDERS = tuple({sys.prefix + os.sep, sys.base_prefix + os.sep})
#: Maximum length of messages and of tracebacks that leave a worker, for answers and the log.
_MAX_MESSAGE_CHARS, _MAX_TRACEBACK_CHARS = 2048, 16 << 10


def from_exception(error: BaseException, stage: str, model_dir: str) -> MMSError:
    """Return the error to answer with for an exception raised by a service.

    Args:
        error: The exception.
        stage: decode, preprocess, inference, postprocess or encode.
        model_dir: Folder of the service's own code.
    """
    detail = describe(error, stage, model_dir)
    if isinstance(error, MMSError):
        # It lives on as an answer. Any other exception ends here, unless user code keeps it.
        release(error)
        return _cut_error(error, detail)
    if isinstance(error, PredictionException):
        return RejectedByService(short_text(error.message), _error_status(error.error_code), detail)
    if is_out_of_memory(error):
        return OutOfMemory(f"out of memory in {stage}{limit_hint()}", detail)
    return InferenceFailed(f"the service raised an exception in {stage}", detail)


def release(error: BaseException) -> None:
    """Release everything that an exception keeps alive: its frames, and those of its causes.

    An error is kept until its batch has been answered, and a cycle through its frames until the
    garbage collector runs; the arrays in those frames may be larger than any answer.
    """
    waiting = [error]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        waiting += [one for one in (found.__cause__, found.__context__) if one is not None]
        if isinstance(found, _GROUP):
            waiting += found.exceptions
        for name in ("__traceback__", "__cause__", "__context__"):
            # Not by assignment: user code may have a `__setattr__` of its own.
            BaseException.__setattr__(found, name, None)


def load_failure(error: BaseException, model_dir: str) -> MMSError:
    """Return the error to report for an exception raised while the model was loaded."""
    detail = describe(error, "load", model_dir)
    if isinstance(error, MMSError):
        return _cut_error(error, detail)
    if is_out_of_memory(error):
        return OutOfMemory(f"out of memory while the model was loaded{limit_hint()}", detail)
    return ModelLoadFailed(f"{detail.type}: {_first_line(error)}{_hint(error)}", detail)


def reason_of(failure: MMSError) -> str:
    """Return a failure's message and its cause, on one line."""
    if failure.detail is None or not isinstance(failure, InferenceFailed):
        return str(failure)
    return f"{failure}: {reason_line(failure.detail.traceback)}"


def log_failure(failure: MMSError) -> None:
    """Log a failed request: client errors briefly, the service's with a traceback."""
    detail = failure.detail
    if isinstance(failure, FAULTS_OF_CLIENTS):
        logger.info("%s: %s%s", failure.code, failure, _raised(failure))
        return
    logger.error("%s", failure, extra={"traceback": detail.traceback if detail else ""})


def _raised(failure: MMSError) -> str:
    """Return what the service raised, if that is another exception than the answer's."""
    detail = failure.detail
    if detail is None or detail.type in ("", type(failure).__name__, PredictionException.__name__):
        return ""
    where = f" ({detail.where})" if detail.where else ""
    return f"; the service raised {reason_line(detail.traceback)}{where}"


def describe(error: BaseException, stage: str, model_dir: str) -> ErrorDetail:
    """Return type, location and traceback of an exception, cut to the user's own frames."""
    frames = list(_frames(error.__traceback__))
    own = [frame for frame in frames if _is_own(frame.filename, model_dir)]
    where = ""
    if own:
        where = f"{os.path.relpath(own[-1].filename, model_dir)}:{own[-1].lineno}"
    elif isinstance(error, SyntaxError) and error.filename:
        where = f"{os.path.basename(error.filename)}:{error.lineno}"
    return ErrorDetail(stage, type(error).__name__, where, _format(error, model_dir))


def _format(error: BaseException, model_dir: str) -> str:
    """Format the traceback without the frames above the user's outermost one.

    The frames below it, inside a library the user called, often show the reason, and stay.
    """
    summary = traceback.TracebackException.from_exception(error)
    frames = list(summary.stack)
    outermost = next(
        (i for i, frame in enumerate(frames) if _is_own(frame.filename, model_dir)), None
    )
    if outermost is not None:
        summary.stack = traceback.StackSummary.from_list(frames[outermost:])
    elif isinstance(error, (SyntaxError, MMSError)):
        summary.stack = traceback.StackSummary.from_list([])
    linecache.checkcache()
    return _cut_middle("".join(summary.format()).rstrip(), _MAX_TRACEBACK_CHARS)


def _frames(tb: TracebackType | None) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(tb))


def _is_own(filename: str, model_dir: str) -> bool:
    """Return whether a frame is the user's: from the archive, or neither ours nor a library's."""
    path = os.path.abspath(filename)
    if path.startswith(os.path.abspath(model_dir) + os.sep):
        return True
    return not (
        path.startswith(_OUR_FOLDER + os.sep)
        or path.startswith(_LIBRARY_FOLDERS)
        or filename.startswith("<")
    )


def _cut_error(error: MMSError, detail: ErrorDetail) -> MMSError:
    """Return one of our own errors, which a service may have raised, with its message cut."""
    error.detail = error.detail or detail
    error.args = (short_text(error), *error.args[1:])
    return error


def _cut_middle(text: str, limit: int) -> str:
    """Cut the middle out of a string; its beginning and end are the most informative."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... ({len(text) - 2 * half} characters cut)\n{text[-half:]}"


def _hint(error: BaseException) -> str:
    """Return advice for a missing package, the most common reason of all."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    package = error.name.split(".")[0]
    if package == "ts":
        return (
            "; that is TorchServe's own package, which is not available: a handler must import "
            "mms.service and mms.context instead, and must not derive from its classes"
        )
    return f"; install {package!r} in the environment of the server, or put it into the archive"


def _first_line(error: BaseException) -> str:
    lines = short_text(error).splitlines()
    return lines[0] if lines else "(no message)"


def _error_status(code: object) -> int:
    """Return the service's status if it is an error status: a 200 would hide the failure."""
    return code if isinstance(code, int) and 400 <= code <= 599 else 500
