"""What the driver's tool says of the GPUs, where there is none."""

from __future__ import annotations

import pytest

from mms.serving.pool.placement import read_gpu_memory


def test_a_machine_without_the_drivers_tool_has_no_gpu_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert read_gpu_memory() == {}
