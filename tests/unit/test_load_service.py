"""Importing a service file: its module has the bare name that it had in 0.4."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from mms.model_service.model_service import ModelService, MultiNodesService, load_service
from mms.worker.loader import find_service_class
from mms.worker.shared_state import SharedState

SERVICE = """
import dataclasses
from mms.model_service.model_service import MultiNodesService, SingleNodeService

KEPT = {}

@dataclasses.dataclass
class Row:
    number: int

class Service(SingleNodeService):
    row = Row(1)

    def __init__(self):
        pass

    def keep(self, value):
        KEPT["last"] = value
"""


@pytest.fixture(autouse=True)
def _leave_no_modules() -> object:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(folder: Path, name: str) -> str:
    path = folder / f"{name}.py"
    path.write_text(SERVICE)
    return str(path)


def test_it_has_the_files_name_and_can_be_looked_up(tmp_path: Path) -> None:
    module = load_service(write(tmp_path, "my_service"))
    assert (module.__name__, module.Service.__module__) == ("my_service", "my_service")
    assert sys.modules["my_service"] is module
    assert load_service(write(tmp_path, "other"), "named").__name__ == "named"


@pytest.mark.parametrize("name", ["random", "re", "threading"])
def test_it_replaces_no_other_module_and_its_state_is_seen(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    module = load_service(path)
    assert (module.__name__, module.Service.__module__) == (name, name)
    assert sys.modules[name] is not module
    assert random.random() < 1
    service = find_service_class(module, path)()
    shared = SharedState(service)
    before = shared.snapshot()
    service.keep(5)
    assert shared.changed(before) == f"{name}.KEPT"


def test_a_file_that_raises_leaves_no_module(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        load_service(str(path))
    assert "broken" not in sys.modules


def test_the_base_of_services_on_several_nodes_can_be_imported() -> None:
    assert issubclass(MultiNodesService, ModelService)
