"""Turn exceptions of user code into our errors, cut to what the user can act on."""

from __future__ import annotations

import builtins
import linecache
import logging
import os
import re
import sys
import traceback
from itertools import dropwhile
from types import TracebackType
from typing import Any

from mms.engines.error_text import is_out_of_memory, reason_line, short_text
from mms.errors import (
    ErrorDetail,
    InferenceFailed,
    MMSError,
    ModelLoadFailed,
    OutOfMemory,
    RejectedByService,
)
from mms.service import PredictionException
from mms.worker.confine import limit_hint
from mms.worker.headers import is_final_status

logger = logging.getLogger("mms.worker")

#: Python 3.10 lacks it.
_GROUP: Any = getattr(builtins, "BaseExceptionGroup", ())

_OUR_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LIBRARY_FOLDERS = tuple({sys.prefix + os.sep, sys.base_prefix + os.sep})
#: Python's complaint about a service whose `__init__` takes other arguments than the server passes.
_WRONG_INIT = re.compile(r"__init__\(\) (takes|missing|got)")
#: Maximum length of a traceback that leaves a worker, for the log.
_MAX_TRACEBACK_CHARS = 16 << 10


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
    return ModelLoadFailed(detail.cause, detail)


def reason_of(failure: MMSError) -> str:
    """Return a failure's message and its cause, on one line."""
    cause = failure.detail.cause if failure.detail else ""
    return f"{failure}: {cause}" if cause else str(failure)


def log_failure(failure: MMSError) -> None:
    """Log a failed request: client errors briefly, the service's with a traceback."""
    if failure.is_fault_of_client:
        logger.info("%s: %s%s", failure.code, failure, _raised(failure))
        return
    detail = failure.detail
    logger.error("%s", failure, extra={"traceback": detail.traceback if detail else ""})


def _raised(failure: MMSError) -> str:
    """Return what the service raised, if that is another exception than the answer's."""
    detail = failure.detail
    if detail is None or not detail.reason or detail.type == PredictionException.__name__:
        return ""
    return f"; the service raised {detail.cause}"


def describe(error: BaseException, stage: str, model_dir: str) -> ErrorDetail:
    """Return type, location and traceback of an exception, cut to the user's own frames."""
    frames = list(_frames(error.__traceback__))
    own = [frame for frame in frames if _is_own(frame.filename, model_dir)]
    where = ""
    if own:
        where = f"{os.path.relpath(own[-1].filename, model_dir)}:{own[-1].lineno}"
    elif isinstance(error, SyntaxError) and error.filename:
        where = f"{os.path.basename(error.filename)}:{error.lineno}"
    type_ = type(error).__name__
    reason = ""
    # One of our own errors states it already.
    if not isinstance(error, MMSError):
        # The text of a SyntaxError repeats its place.
        message = error.msg if isinstance(error, SyntaxError) else short_text(error)
        reason = reason_line(message).removeprefix(f"{type_}: ")
        reason = f"{type_}: {reason}{_hint(error, model_dir)}"
    return ErrorDetail(stage, type_, where, _format(error, model_dir), reason)


def _format(error: BaseException, model_dir: str) -> str:
    """Format the traceback without the frames above the user's outermost one.

    The frames below it, inside a library the user called, often show the reason, and stay. One of
    our own errors states its reason itself: there, only the user's frames are left.
    """
    summary = traceback.TracebackException.from_exception(error)
    frames = list(summary.stack)
    is_own = [_is_own(frame.filename, model_dir) for frame in frames]
    if isinstance(error, MMSError):
        if not any(is_own):
            return ""
        summary.__cause__ = summary.__context__ = None
        frames = [frame for frame, own in zip(frames, is_own, strict=True) if own]
        summary.stack = traceback.StackSummary.from_list(frames)
    elif any(is_own):
        summary.stack = traceback.StackSummary.from_list(frames[is_own.index(True) :])
    else:
        # Raised by a library that we called, or by Python: our own frames tell the user nothing.
        theirs = [] if isinstance(error, SyntaxError) else dropwhile(_is_ours, frames)
        summary.stack = traceback.StackSummary.from_list(theirs)
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


def _is_ours(frame: traceback.FrameSummary) -> bool:
    return os.path.abspath(frame.filename).startswith(_OUR_FOLDER + os.sep)


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


def _hint(error: BaseException, model_dir: str) -> str:
    """Return advice for the commonest mistakes in a service, to be put after the reason."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _missing_module(error.name.split(".")[0])
    if isinstance(error, FileNotFoundError) and isinstance(error.filename, str):
        name = error.filename
        if not os.path.isabs(name) and os.path.exists(os.path.join(model_dir, name)):
            return f"; the archive's files lie in model_dir: use os.path.join(model_dir, {name!r})"
    if isinstance(error, AttributeError) and error.name == "labels":
        return "; add synset.txt with one class per line, or set self.labels in __init__"
    if isinstance(error, RuntimeError) and "has not been initialized" in str(error):
        return "; is the parameter file (NAME-0000.params) missing in the model's folder?"
    if isinstance(error, TypeError) and _WRONG_INIT.search(str(error)):
        return (
            "; the server creates a service as Service(model_name, model_dir, manifest, gpu), so "
            "define __init__(self, model_name, model_dir, manifest, gpu=None)"
        )
    return ""


def _missing_module(package: str) -> str:
    if package == "ts":
        return (
            "; that is TorchServe's own package, which is not available: a handler must import "
            "mms.service and mms.context instead, and must not derive from its classes"
        )
    return f"; install {package!r} in the environment of the server, or put it into the archive"


def _error_status(code: Any) -> int:
    """Return the service's status if HTTP can express it as that of a final answer."""
    return code if is_final_status(code) else 500
