"""Watch the Python state of a Gluon network: what its code may read besides its inputs."""

from __future__ import annotations

import logging
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from mms.engines.imports import import_mxnet

mx = import_mxnet()

#: Packages whose blocks change no attribute of theirs after they were made.
_STATELESS = ("mxnet", "gluoncv", "gluonnlp")
#: Values that can be compared.
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_CONTAINERS = (list, dict, set, deque)
#: Values that are compared by identity: code, or state of the engine's.
_OPAQUE = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    logging.Logger,
    property,
    staticmethod,
    classmethod,
)
#: Entries of containers that are watched, all together, and how deeply nested. Each costs some
#: nanoseconds in each forward pass.
_MAX_ENTRIES = 256
_MAX_DEPTH = 4
#: What every block keeps; the network itself changes it.
_OF_BLOCKS = frozenset(vars(mx.gluon.HybridBlock()))
_GONE = object()


class PythonState:
    """A snapshot of the attributes, class attributes and globals that a network's code may read.

    Args:
        net: A Block.
        ignored: Names of attributes of ours on it.

    Attributes:
        unwatched: A path to something that cannot be watched; "" if there is nothing.
    """

    def __init__(self, net: Any, ignored: frozenset[str] = frozenset()) -> None:
        self.unwatched = ""
        self._ignored = _OF_BLOCKS | ignored
        self._values: list[tuple[Mapping[str, Any], str, Any]] = []
        self._sizes: list[tuple[Mapping[str, Any], int]] = []
        self._cells: list[tuple[Any, Any]] = []
        self._contents: list[tuple[Any, list[Any]]] = []
        self._entries = 0
        seen_classes: set[type[Any]] = set()
        for block in blocks_of(net):
            if block is not net:
                # Those within a hybridized network are never called.
                for hooks in (block._forward_hooks, block._forward_pre_hooks):
                    self._sizes.append((hooks, len(hooks)))
                    if hooks:
                        self.unwatched = f"a hook of {block.name}"
            if not _is_stateless(type(block)):
                self._sizes.append((vars(block), len(vars(block))))
                self._watch_all(vars(block), type(block).__name__)
                for cls in type(block).__mro__:
                    if cls not in seen_classes and not _is_stateless(cls) and cls is not object:
                        seen_classes.add(cls)
                        self._watch_class(cls)
            # A HybridLambda is a layer of MXNet's around a function of the user's.
            function = vars(block).get("_func")
            if isinstance(function, types.FunctionType):
                self._watch_code(function)

    def has_changed(self) -> bool:
        """Return whether anything has another value now."""
        for owner, name, value in self._values:
            now = owner.get(name, _GONE)
            if now is not value and not (isinstance(value, _PLAIN) and now == value):
                return True
        return (
            any(len(owner) != size for owner, size in self._sizes)
            or any(not _is_same([cell.cell_contents], [value]) for cell, value in self._cells)
            or any(not _is_same(_entries(value), before) for value, before in self._contents)
        )

    def _watch_all(self, owner: Mapping[str, Any], path: str) -> None:
        for name, value in owner.items():
            if name not in self._ignored:
                self._values.append((owner, name, value))
                self._watch(value, f"{path}.{name}")

    def _watch_class(self, cls: type[Any]) -> None:
        for name, value in vars(cls).items():
            if isinstance(value, types.FunctionType):
                self._watch_code(value)
            elif isinstance(value, (*_PLAIN, *_CONTAINERS)) and not name.startswith("__"):
                self._values.append((vars(cls), name, value))
                self._watch(value, f"{cls.__name__}.{name}")

    def _watch_code(self, function: types.FunctionType) -> None:
        """Watch the globals that a function names, and the variables that it closes over."""
        names = function.__code__.co_names
        if "random" in names:
            # Drawing twice would change what is drawn next.
            self.unwatched = "random numbers"
        for name in names:
            value = function.__globals__.get(name, _GONE)
            if value is not _GONE and not isinstance(value, _OPAQUE):
                self._values.append((function.__globals__, name, value))
                self._watch(value, f"the global {name}")
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:
                continue
            if not isinstance(value, _OPAQUE):
                self._cells.append((cell, value))
                self._watch(value, "a variable of an enclosing function")

    def _watch(self, value: Any, path: str, depth: int = 0) -> None:
        if isinstance(value, (*_CONTAINERS, tuple, frozenset)):
            self._entries += len(value)
            if self._entries > _MAX_ENTRIES or depth > _MAX_DEPTH:
                self.unwatched = path
                return
            entries = _entries(value)
            if isinstance(value, _CONTAINERS):
                self._contents.append((value, entries))
            for entry in entries:
                self._watch(entry, path, depth + 1)
        elif not isinstance(value, (*_PLAIN, *_OPAQUE, mx.gluon.Block)) and not _is_stateless(
            type(value)
        ):
            self.unwatched = path


def blocks_of(net: Any) -> Iterator[Any]:
    """Yield a block and all those within it, each once."""
    seen: set[int] = set()
    todo = [net]
    while todo:
        block = todo.pop()
        if id(block) not in seen:
            seen.add(id(block))
            yield block
            todo.extend(block._children.values())


def _is_stateless(cls: type[Any]) -> bool:
    return cls.__module__.partition(".")[0] in (*_STATELESS, "numpy")


def _entries(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return sorted(value, key=id) if isinstance(value, (set, frozenset)) else list(value)


def _is_same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        a is b or (isinstance(b, _PLAIN) and a == b) for a, b in zip(one, other, strict=True)
    )
