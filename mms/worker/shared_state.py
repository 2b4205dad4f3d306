"""Find the state that requests of one batch would share through a service.

Each request of a batch runs its stages on a shallow copy of the service, so attributes that it
sets are its own. All other state of the service is shared by the batch: containers, arrays,
objects, attributes of the class and the module, and the original service itself, which bound
methods created in ``__init__`` still refer to. Never imports mxnet.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections import deque
from collections.abc import Iterator
from operator import is_
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from mms.worker.arrays import is_ndarray

#: Objects of these packages are not searched: they are large, and do not hold a request's state
#: except for those that `engine_object` finds.
_OPAQUE = frozenset(
    ("mxnet", "numpy", "mms", "logging", "onnxruntime", "PIL", "cv2", "threading", "re", "builtins")
)
#: Depth of the search (attributes of attributes, entries of containers): as far as a service's own
#: code usually reaches.
_MAX_DEPTH = 4
#: Bounds the cost of one snapshot: containers watched, and entries examined in each.
_MAX_WATCHED = 1000
_MAX_ENTRIES = 256
#: Arrays up to this size are compared completely around every batch, larger ones only in the trial.
_SMALL_ARRAY_BYTES = 4096


def engine_object(service: Any) -> str:
    """Return a description of an executor or Module that a service owns; "" if it owns none.

    Every forward pass overwrites its output arrays. The base class's own model is a Module as well,
    but runs as none unless the service uses it as one.
    """
    mx = sys.modules.get("mxnet")
    if mx is None:
        return ""
    kinds = (mx.executor.Executor, mx.mod.BaseModule)
    for path, value in _reachable(service):
        if isinstance(value, kinds) and getattr(value, "is_bound", True):
            return f"{path}, a {type(value).__name__}"
    return ""


def lazy_model(service: Any) -> Any:
    """Return the service's `SymbolModel`; None if it has none."""
    module = sys.modules.get("mms.engines.symbol_model")
    model = getattr(service, "mx_model", None)
    return model if module is not None and isinstance(model, module.SymbolModel) else None


class SharedState:
    """Watches the state that copies of a service share.

    Args:
        service: The original, fully loaded.
    """

    def __init__(self, service: Any) -> None:
        self._own = vars(service) if hasattr(service, "__dict__") else {}
        self._watched = [
            (path, value)
            for path, value in _reachable(service)
            if isinstance(value, (dict, list, set, deque, bytearray, np.ndarray))
            or is_ndarray(value)
        ][:_MAX_WATCHED]

    def snapshot(self, is_thorough: bool = False) -> list[Any]:
        """Return a snapshot for `changed`.

        Args:
            is_thorough: Whether to compare arrays of any size.
        """
        contents = [_content(value, is_thorough) for _, value in self._watched]
        return [*contents, _content(self._own, False)]

    def changed(self, before: list[Any], is_thorough: bool = False, is_copy: bool = True) -> str:
        """Return a description of something that has changed; "" if nothing has.

        Args:
            before: A snapshot taken with the same `is_thorough`.
            is_thorough: As for `snapshot`.
            is_copy: Whether the stages ran on copies, so that the original must be unchanged.
        """
        for (path, value), content in zip(self._watched, before[:-1], strict=True):
            if not _is_same(content, _content(value, is_thorough)):
                return path
        if is_copy and not _is_same(before[-1], _content(self._own, False)):
            return "an attribute of the original service"
        return ""


def _content(value: Any, is_thorough: bool) -> list[Any] | bytes:
    """Return a fingerprint of a container for comparison, its entries by identity."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, (list, deque)):
        return list(value)
    if isinstance(value, set):
        return sorted(value, key=id)
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            return list(value.flat) if value.size <= _MAX_ENTRIES or is_thorough else []
        if value.nbytes <= _SMALL_ARRAY_BYTES or is_thorough:
            return hashlib.sha256(np.ascontiguousarray(value).data).digest()
    elif is_thorough:
        return hashlib.sha256(value.asnumpy().tobytes()).digest()
    return b""


def _is_same(before: list[Any] | bytes, now: list[Any] | bytes) -> bool:
    if isinstance(before, bytes) or isinstance(now, bytes):
        return before == now
    return len(before) == len(now) and all(map(is_, before, now))


def _reachable(service: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of all state that copies of a service share, each value once."""
    seen = {id(service)}
    todo: deque[tuple[str, Any, int]] = deque(_roots(service))
    while todo:
        path, value, depth = todo.popleft()
        if id(value) in seen or isinstance(value, (type, ModuleType, FunctionType)):
            continue
        seen.add(id(value))
        yield path, value
        if depth < _MAX_DEPTH:
            todo.extend((name, part, depth + 1) for name, part in _parts(path, value))


def _roots(service: Any) -> Iterator[tuple[str, Any, int]]:
    for name, value in getattr(service, "__dict__", {}).items():
        yield f"self.{name}", value, 0
    for cls in type(service).__mro__:
        if _is_opaque(cls):
            continue
        for name, value in vars(cls).items():
            if not name.startswith("__"):
                yield f"{cls.__name__}.{name}", value, 0
        for name, value in _module_of(cls).items():
            if not name.startswith("__"):
                yield f"{cls.__module__}.{name}", value, 0


def _parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in list(value.items())[:_MAX_ENTRIES]:
            yield f"{path}[{key!r}]"[:100], item
    elif isinstance(value, (list, tuple, deque)):
        for index, item in enumerate(list(value)[:_MAX_ENTRIES]):
            yield f"{path}[{index}]", item
    elif not _is_opaque(value.__class__):
        attributes = getattr(value, "__dict__", None)
        if not isinstance(attributes, dict):
            return
        if any(_is_opaque(cls) for cls in type(value).__mro__[:-1]):
            # A user's own network: the framework's state in it is not watched.
            yield from (
                (f"{path}.{name}", part)
                for name, part in attributes.items()
                if not name.startswith("_")
            )
        else:
            # The dict itself as well: a new value of an attribute is a change.
            yield path, attributes


def _module_of(cls: type[Any]) -> dict[str, Any]:
    """Return the content of the module that defines a class.

    Not by its name alone: a service file may be called like a module that was there before.
    """
    named = sys.modules.get(cls.__module__)
    content: dict[str, Any] = vars(named) if named is not None else {}
    others = [
        value.__globals__
        for value in vars(cls).values()
        if isinstance(value, FunctionType) and value.__module__ == cls.__module__
    ]
    # Decorated methods have the globals of their decorator's module.
    return content if not others or any(found is content for found in others) else others[0]


@functools.lru_cache(maxsize=1024)
def _is_opaque(cls: type[Any]) -> bool:
    if cls.__module__.partition(".")[0] not in _OPAQUE:
        return False
    named = sys.modules.get(cls.__module__)
    return named is None or _module_of(cls) is vars(named)
