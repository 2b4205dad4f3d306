"""What holds of the tests themselves."""

from __future__ import annotations

import ast
import socket
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
#: What only `tests/kit/server.py` may use of a running server.
INSIDE = {"_server", "_servable"}


class TestUnitTests:
    def test_start_no_process(self) -> None:
        with pytest.raises(AssertionError, match="no unit test"):
            subprocess.run(["true"], check=True)

    def test_listen_on_no_port(self) -> None:
        with socket.socket() as listener, pytest.raises(AssertionError, match="no unit test"):
            listener.bind(("127.0.0.1", 0))

    def test_load_no_mxnet(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Another kind of test may have loaded it into this process.
        monkeypatch.delitem(sys.modules, "mxnet", raising=False)
        with pytest.raises(AssertionError, match="no unit test"):
            # As a statement does it; importlib's function is not audited.
            __import__("mxnet")


def test_only_the_kit_knows_how_a_server_is_built_inside() -> None:
    guilty = {
        f"{path.relative_to(TESTS)}:{node.lineno}"
        for path in TESTS.rglob("*.py")
        if path != TESTS / "kit" / "server.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in INSIDE
        # An object's own attribute may have any name.
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    }
    assert not guilty
