"""Servers here are commands of their own, started as a shell would start them."""

from __future__ import annotations

import pytest

from tests.kit.processes import resign_as_subreaper


@pytest.fixture(scope="module", autouse=True)
def as_a_shell() -> None:
    resign_as_subreaper()
