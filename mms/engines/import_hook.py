"""Run an action as soon as a module has been imported, whatever imports it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def after_import(name: str, action: Callable[[], None]) -> None:
    """Call `action` after module `name` has run, before its importer sees it; now if it has run.

    A second call for the same module replaces the action of the first.
    """
    sys.meta_path[:] = [
        finder
        for finder in sys.meta_path
        if not (isinstance(finder, _Finder) and finder.name == name)
    ]
    sys.meta_path.insert(0, _Finder(name, action))
    if name in sys.modules:
        action()


class _Finder(MetaPathFinder):
    """Finds one module as Python itself does, with a loader that calls the action at its end."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self.name = name
        self._action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's own spec with a wrapped loader; None for any other module."""
        if fullname != self.name:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_act(module: ModuleType) -> None:
            run(module)
            self._action()

        spec.loader.exec_module = run_and_act  # type: ignore[method-assign]
        return spec
