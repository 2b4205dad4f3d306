"""``mxnet-model-server dev FOLDER``: what is edited is served."""

from __future__ import annotations

import contextlib
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.test_cli import LIMIT_S, Serve, ask, run, serve, wait_for

__all__ = ["serve"]

HANDLER = (
    "def handle(data, context):\n    return None if data is None else [{answer!r}] * len(data)\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "svc.py").write_text(HANDLER.format(answer={"version": "old"}))
    return folder


def test_it_serves_a_folder_and_follows_its_edits(serve: Serve, folder: Path) -> None:
    command = serve("dev", str(folder), "--handler", "svc:handle", "--watch-interval", "0.05")
    url = command.url()
    assert f"Documentation on {url}/docs\n" in command.output
    with urllib.request.urlopen(f"{url}/docs", timeout=LIMIT_S) as response:
        assert response.status == 200
    assert ask(f"{url}/predictions/model", [1]) == {"version": "old"}

    def answers_anew() -> bool:
        # A request may meet the change of workers.
        with contextlib.suppress(OSError):
            return bool(ask(f"{url}/predictions/model", [1]) == {"version": "new"})
        return False

    (folder / "svc.py").write_text(HANDLER.format(answer={"version": "new"}))
    wait_for(answers_anew)


def test_it_is_one_worker_that_shows_errors_unless_flags_say_otherwise(folder: Path) -> None:
    args = ["dev", str(folder), "--handler", "svc:handle", "--print-config"]
    printed = run("serve", *args, MMS_WORKERS="4").stdout
    for line in ("workers: 1  # dev", "watch: true  # dev", "debug_errors: 'on'  # dev"):
        assert f"\n{line}\n" in printed
    assert "\nworkers: 2  # flag\n" in run("serve", *args, "--workers", "2").stdout
