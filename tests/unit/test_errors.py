"""The error tree: stable codes, one status each, and the trip over the wire."""

from __future__ import annotations

import orjson
import pytest

from mms import errors
from mms.errors import ErrorDetail, MMSError, Unavailable, from_wire, subclasses
from mms.http.errors import STATUSES, error_response, is_v2, status_of

DOCUMENTED = {
    errors.MMSError: 500,
    errors.StartupError: 500,
    errors.StorageFull: 507,
    errors.ConfigError: 400,
    errors.EngineMissing: 500,
    errors.ArchiveError: 400,
    errors.ManifestError: 400,
    errors.SignatureError: 400,
    errors.ExportError: 400,
    errors.DownloadFailed: 400,
    errors.ModelLoadFailed: 500,
    errors.AddressInUse: 500,
    errors.InvalidRequest: 400,
    errors.InvalidInputShape: 400,
    errors.UndecodableImage: 400,
    errors.SlowClient: 408,
    errors.PayloadTooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.ModelNotFound: 404,
    errors.VersionNotFound: 404,
    errors.Conflict: 409,
    errors.Forbidden: 403,
    errors.Unauthorized: 401,
    errors.InferenceFailed: 500,
    errors.InvalidServiceOutput: 500,
    errors.WorkerDied: 500,
    errors.Unavailable: 503,
    errors.ModelNotReady: 503,
    errors.Draining: 503,
    errors.QueueFull: 503,
    errors.BufferFull: 503,
    errors.TooManyConnections: 503,
    errors.DeadlineExceeded: 504,
    errors.OutOfMemory: 507,
    errors.ProtocolError: 500,
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


def test_every_error_has_a_documented_status() -> None:
    assert {cls: status_of(cls("x")) for cls in PLAIN} == DOCUMENTED


def test_no_status_stands_for_a_class_that_is_gone() -> None:
    assert set(STATUSES) <= set(OURS)


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
