"""The error tree: stable codes, one status each, and the trip over the wire."""

from __future__ import annotations

import logging

import orjson
import pytest

from mms import errors
from mms.errors import ErrorDetail, MMSError, Unavailable, from_wire, subclasses
from mms.http.errors import KINDS, error_body, error_response, is_v2, kind_of, status_of
from mms.worker.failure import log_failure

#: Status and, at the top level of the answer, the Java class that 1.1.11 has for it.
DOCUMENTED = {
    errors.MMSError: (500, "InternalServerException"),
    errors.StartupError: (500, "InternalServerException"),
    errors.StorageFull: (507, "InternalServerException"),
    errors.ConfigError: (400, "BadRequestException"),
    errors.EngineMissing: (500, "InternalServerException"),
    errors.ArchiveError: (400, "InvalidModelException"),
    errors.ManifestError: (400, "InvalidModelException"),
    errors.SignatureError: (400, "InvalidModelException"),
    errors.ExportError: (400, "InvalidModelException"),
    errors.ConversionFailed: (400, "InvalidModelException"),
    errors.DownloadFailed: (400, "DownloadModelException"),
    errors.ModelLoadFailed: (500, "InternalServerException"),
    errors.AddressInUse: (500, "InternalServerException"),
    errors.InvalidRequest: (400, "BadRequestException"),
    errors.InvalidInputShape: (400, "BadRequestException"),
    errors.UndecodableImage: (400, "BadRequestException"),
    errors.SlowClient: (408, "RequestTimeoutException"),
    errors.PayloadTooLarge: (413, "BadRequestException"),
    errors.UnsupportedMedia: (415, "BadRequestException"),
    errors.ModelNotFound: (404, "ModelNotFoundException"),
    errors.VersionNotFound: (404, "ModelNotFoundException"),
    errors.Conflict: (409, "ConflictStatusException"),
    errors.Forbidden: (403, "BadRequestException"),
    errors.Unauthorized: (401, "BadRequestException"),
    errors.InferenceFailed: (500, "InternalServerException"),
    errors.InvalidServiceOutput: (500, "InternalServerException"),
    errors.WorkerDied: (500, "InternalServerException"),
    errors.Unavailable: (503, "ServiceUnavailableException"),
    errors.ModelNotReady: (503, "ServiceUnavailableException"),
    errors.Draining: (503, "ServiceUnavailableException"),
    errors.QueueFull: (503, "ServiceUnavailableException"),
    errors.BufferFull: (503, "ServiceUnavailableException"),
    errors.TooManyConnections: (503, "ServiceUnavailableException"),
    errors.DeadlineExceeded: (504, "InternalServerException"),
    errors.OutOfMemory: (507, "InternalServerException"),
    errors.ProtocolError: (500, "InternalServerException"),
}
#: The exceptions that 1.1.11 has; no answer has another type.
OF_1X = {
    f"{name}Exception"
    for name in (
        "BadRequest",
        "ConflictStatus",
        "DownloadModel",
        "InternalServer",
        "InvalidModel",
        "MethodNotAllowed",
        "ModelNotFound",
        "RequestTimeout",
        "ResourceNotFound",
        "ServiceUnavailable",
    )
}
OURS = [cls for cls in subclasses() if cls.__module__ == errors.__name__]
PLAIN = [cls for cls in OURS if cls is not errors.RejectedByService]
DETAIL = ErrorDetail(
    "inference", "ValueError", "service.py:3", "Traceback: 3\nValueError: no", "ValueError: no"
)


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [cls.code for cls in OURS]
    assert len(set(codes)) == len(codes)
    assert all("code" in vars(cls) for cls in OURS)


def test_every_error_has_a_documented_status_and_type() -> None:
    kinds = {cls: kind_of(cls("x")) for cls in PLAIN}
    assert {cls: (kind.status, kind.type) for cls, kind in kinds.items()} == DOCUMENTED
    assert {type_ for _, type_ in DOCUMENTED.values()} <= OF_1X


def test_what_is_no_error_of_the_tree_has_a_type_of_1x_too() -> None:
    types = {
        status: orjson.loads(error_body(status, "X", "x", "m", "id"))["type"]
        for status in (400, 404, 405, 414, 417, 431, 500)
    }
    assert set(types.values()) <= OF_1X
    assert (types[404], types[405]) == ("ResourceNotFoundException", "MethodNotAllowedException")
    assert (types[431], types[500]) == ("BadRequestException", "InternalServerException")


@pytest.mark.parametrize("cls", PLAIN)
def test_a_fault_of_the_client_is_never_called_or_logged_as_one_of_the_server(
    cls: type[MMSError], caplog: pytest.LogCaptureFixture
) -> None:
    kind = kind_of(cls("x"))
    assert cls.is_fault_of_client == (kind.status < 500)
    assert (kind.type == "InternalServerException") <= (kind.status >= 500)
    with caplog.at_level(logging.INFO):
        log_failure(cls("x"))
    assert [record.levelno for record in caplog.records] == [
        logging.INFO if kind.status < 500 else logging.ERROR
    ]


@pytest.mark.parametrize(
    ("status", "type_"),
    [(400, "BadRequestException"), (404, "BadRequestException"), (503, "InternalServerException")],
)
def test_a_service_that_refuses_has_a_type_by_its_status(status: int, type_: str) -> None:
    """1.1.11 says InternalServerException to all of them."""
    assert kind_of(errors.RejectedByService("no", status)).type == type_


def test_no_status_stands_for_a_class_that_is_gone() -> None:
    assert set(KINDS) <= set(OURS)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = {word for line in str(errors.__doc__).splitlines() for word in line.split()}
    assert {cls.__name__ for cls in OURS} <= drawn


def test_a_service_chooses_its_own_status() -> None:
    assert status_of(errors.RejectedByService("no", 422)) == 422


def test_start_up_errors_end_with_a_status_above_zero() -> None:
    assert all(cls.exit_status > 0 for cls in OURS if issubclass(cls, errors.StartupError))


@pytest.mark.parametrize("cls", [cls for cls in PLAIN if not issubclass(cls, Unavailable)])
def test_an_error_crosses_the_wire_unchanged(cls: type[MMSError]) -> None:
    error = from_wire(cls.code, "what happened", DETAIL, 0)
    assert type(error) is cls
    assert str(error) == "what happened"
    assert error.detail == DETAIL


def test_a_rejection_keeps_its_status_on_the_wire() -> None:
    error = from_wire("rejected_by_service", "not today", DETAIL, 451)
    assert isinstance(error, errors.RejectedByService)
    assert (error.status, str(error)) == (451, "not today")


@pytest.mark.parametrize("code", ["", "no_such_code", errors.QueueFull.code])
def test_a_code_that_no_worker_may_send_is_a_failed_inference(code: str) -> None:
    assert type(from_wire(code, "x", None, 0)) is errors.InferenceFailed


def test_a_shape_error_is_the_assertion_error_that_v04_services_catch() -> None:
    assert isinstance(errors.InvalidInputShape("x"), AssertionError)


def body(error: MMSError, debug: bool) -> dict[str, object]:
    content = error_response(error, "id-1", debug).body
    assert isinstance(content, bytes)
    document = orjson.loads(content)
    assert isinstance(document, dict)
    return document


def test_an_error_answer_serves_both_generations_of_clients() -> None:
    document = body(errors.ModelNotFound("no model 'x'"), debug=False)
    assert document == {
        "error": {
            "code": "model_not_found",
            "type": "ModelNotFound",
            "message": "no model 'x'",
            "request_id": "id-1",
        },
        "code": 404,
        "type": "ModelNotFoundException",
        "message": "no model 'x'",
    }


def test_what_a_service_raised_is_only_told_with_debug_errors() -> None:
    error = errors.InferenceFailed("the service raised an exception", DETAIL)
    hidden, shown = body(error, debug=False), body(error, debug=True)
    assert "ValueError" not in str(hidden)
    assert "service.py" not in str(hidden)
    assert "ValueError: no" in str(shown["message"])
    assert "service.py:3" in str(shown["error"])
    assert "Traceback" not in str(shown)


def test_under_v2_an_error_is_one_text() -> None:
    error = errors.InferenceFailed("the service raised an exception", DETAIL)
    for debug, text in (
        (False, "the service raised an exception"),
        (True, "the service raised an exception: ValueError: no (service.py:3)"),
    ):
        answer = error_response(error, "id-1", debug, in_v2=True)
        assert (answer.status, answer.headers["X-Request-Id"]) == (500, "id-1")
        assert isinstance(answer.body, bytes)
        assert orjson.loads(answer.body) == {"error": text}


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/v2", True), ("/v2/models/x/infer", True), ("/v2x", False), ("/v2x/predict", False)],
)
def test_the_paths_of_v2(path: str, expected: bool) -> None:
    assert is_v2(path) is expected


def test_an_unavailable_model_says_when_to_come_back() -> None:
    answer = error_response(errors.QueueFull("full", 2.1), "id", debug=False)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "3")
