"""What user code raises, as our errors, cut to what the user can act on."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mms.engines.error_text import is_out_of_memory
from mms.errors import (
    InferenceFailed,
    InvalidInputShape,
    MMSError,
    ModelLoadFailed,
    OutOfMemory,
    RejectedByService,
    StartupError,
)
from mms.http.errors import STATUSES
from mms.service import PredictionException
from mms.worker.failure import FAULTS_OF_CLIENTS, describe, from_exception, load_failure

SERVICE = """\
import json


def fail(kind, *args):
    raise kind(*args)


def deeper(text):
    return json.loads(text)


def chained():
    try:
        deeper("{")
    except ValueError as error:
        raise KeyError("no answer") from error
"""


#: Catches like the worker does. Its own frame is neither the user's nor a library's; a frame of
#: this file would count as the user's.
CATCH = """
def catch(function, *args):
    try:
        function(*args)
    except Exception as error:
        return error
"""


def compiled(source: str, filename: str) -> dict[str, Any]:
    """Run a module's source under a file name."""
    names: dict[str, Any] = {}
    exec(compile(source, filename, "exec"), names)
    return names


catch: Callable[..., Exception] = compiled(CATCH, "<worker>")["catch"]


class Service:
    """Functions of a service file in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        (folder / "service.py").write_text(SERVICE)
        self.functions = compiled(SERVICE, str(folder / "service.py"))

    def raised(self, name: str, *args: object) -> Exception:
        return catch(self.functions[name], *args)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def test_an_exception_is_a_failed_inference_that_hides_its_text(service: Service) -> None:
    error = from_exception(
        service.raised("fail", ValueError, "secret"), "inference", service.folder
    )
    assert type(error) is InferenceFailed
    assert str(error) == "the service raised an exception in inference"
    assert error.detail is not None
    assert (error.detail.stage, error.detail.type) == ("inference", "ValueError")
    assert error.detail.where == "service.py:5"
    assert error.detail.traceback.endswith("ValueError: secret")


def test_a_traceback_begins_with_the_user_s_own_code(service: Service) -> None:
    detail = describe(service.raised("deeper", "{"), "preprocess", service.folder)
    lines = detail.traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "service.py" in lines[1]
    assert "tests/unit" not in detail.traceback
    assert "json/decoder.py" in detail.traceback
    assert detail.where == "service.py:9"
    assert detail.type == "JSONDecodeError"


def test_the_cause_of_an_exception_stays_in_its_traceback(service: Service) -> None:
    text = describe(service.raised("chained"), "inference", service.folder).traceback
    assert "JSONDecodeError" in text
    assert "direct cause" in text
    assert text.endswith("KeyError: 'no answer'")


def test_a_rejection_keeps_its_words_and_its_status(service: Service) -> None:
    error = from_exception(
        service.raised("fail", PredictionException, "too dark", 422), "preprocess", service.folder
    )
    assert isinstance(error, RejectedByService)
    assert (str(error), error.status) == ("too dark", 422)


@pytest.mark.parametrize("code", [200, 302, 0, -1, 600, 10**9, "404", None, True])
def test_a_rejection_never_looks_like_a_success(code: int) -> None:
    error = from_exception(PredictionException("no", code), "inference", "/x")
    assert isinstance(error, RejectedByService)
    assert error.status == 500


def test_an_error_of_ours_passes_with_its_place_added(service: Service) -> None:
    raised = service.raised("fail", InvalidInputShape, "input 'data' has shape (1,)")
    error = from_exception(raised, "preprocess", service.folder)
    assert error is raised
    assert isinstance(error, MMSError)
    assert error.detail is not None
    assert error.detail.stage == "preprocess"


MEMORY = [
    MemoryError(),
    RuntimeError("CUDA: Out of memory"),
    RuntimeError("Check failed: cudaMalloc failed: 2"),
    ValueError("Failed to allocate CPU Memory"),
]


@pytest.mark.parametrize("error", MEMORY, ids=str)
def test_memory_that_ran_out_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert str(from_exception(error, "inference", "/x")) == "out of memory in inference"
    assert isinstance(load_failure(error, "/x"), OutOfMemory)


def test_other_errors_are_not_taken_for_it() -> None:
    assert not is_out_of_memory(ValueError("memory is fine"))


def test_a_model_that_does_not_load_says_why_in_one_line(service: Service) -> None:
    error = load_failure(service.raised("fail", OSError, "net.params\nis missing"), service.folder)
    assert type(error) is ModelLoadFailed
    assert str(error) == "OSError: net.params"
    assert error.detail is not None
    assert (error.detail.stage, error.detail.where) == ("load", "service.py:5")


def test_an_exception_without_words_is_named_all_the_same() -> None:
    assert str(load_failure(KeyError(), "/x")) == "KeyError: (no message)"


def test_a_syntax_error_is_placed_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "service.py"
    error = catch(compile, "x = 1\ny = (\n", str(path), "exec")
    assert isinstance(error, SyntaxError)
    detail = describe(error, "load", str(tmp_path))
    assert detail.where == "service.py:2"
    assert "<worker>" not in detail.traceback
    assert "was never closed" in detail.traceback


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even a text")


def test_an_exception_that_cannot_be_printed_is_an_error_like_any_other() -> None:
    failed, unloaded = from_exception(Mute(), "inference", "/x"), load_failure(Mute(), "/x")
    assert type(failed) is InferenceFailed
    assert failed.detail is not None
    assert failed.detail.type == "Mute"
    assert str(unloaded).startswith("Mute: (Mute whose message cannot be read)")


def test_a_rejection_that_cannot_be_printed_is_a_rejection() -> None:
    rejection = PredictionException("x", 400)
    # Users assign anything.
    rejection.message = Mute()  # type: ignore[assignment]
    error = from_exception(rejection, "inference", "/x")
    assert isinstance(error, RejectedByService)
    assert error.status == 400


def test_the_exception_itself_is_left_as_it_was(service: Service) -> None:
    raised = service.raised("deeper", "{")
    before = traceback.format_exception(raised)
    from_exception(raised, "inference", service.folder)
    assert traceback.format_exception(raised) == before


def test_system_exit_of_a_service_is_an_error_too() -> None:
    error = from_exception(SystemExit(3), "inference", "/x")
    assert error.detail is not None
    assert error.detail.type == "SystemExit"


def test_a_worker_knows_each_fault_of_clients() -> None:
    """What is answered with 4xx is never logged as an error. Loading has faults of its own."""
    refusals = {cls for cls, status in STATUSES.items() if 400 <= status < 500}
    assert {cls for cls in refusals if not issubclass(cls, StartupError)} == {
        cls for cls in FAULTS_OF_CLIENTS if cls is not RejectedByService
    }
