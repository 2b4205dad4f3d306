"""Tests that need no process, no socket and no MXNet: here, they cannot have any."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

#: What the interpreter says before it does it. uvloop's own sockets are not seen; our server binds
#: its ports in Python.
_FORBIDDEN = {
    "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system",
    "socket.bind", "socket.connect", "subprocess.Popen",
}  # fmt: skip
_is_unit = False


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if not _is_unit:
        return
    if event in _FORBIDDEN or (event == "import" and arguments[0] == "mxnet"):
        raise AssertionError(f"no unit test: {event} {arguments[:2]}")


# For the life of the process, since hooks cannot be taken back: other tests run in it, too.
sys.addaudithook(_refuse)


@contextmanager
def _only_units() -> Iterator[None]:
    global _is_unit
    _is_unit = True
    try:
        yield
    finally:
        _is_unit = False


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """Refuse it to what runs when a module is imported."""
    with _only_units():
        return (yield)


@pytest.fixture(autouse=True)
def needs_no_process() -> Iterator[None]:
    """Refuse it to a test."""
    with _only_units():
        yield


@pytest.fixture(scope="session", autouse=True)
def imported_modules_are_not_searched_for_garbage() -> Iterator[None]:
    """Without this, each collection walks all imported modules: 40 ms, ten times the test."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
