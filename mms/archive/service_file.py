"""Analyse a service file without running it: the classes it defines, and their bases."""

from __future__ import annotations

import ast
from collections.abc import Collection
from pathlib import Path

from mms.archive.manifest import ModelFormat
from mms.errors import ExportError

#: The base classes of services, and the model format that each is for.
_BASES = {
    "GluonImperativeBaseService": ModelFormat.GLUON,
    "GluonVisionService": ModelFormat.GLUON,
    "MXNetBaseService": ModelFormat.SYMBOLIC,
    "MXNetVisionService": ModelFormat.SYMBOLIC,
    "OnnxBaseService": ModelFormat.ONNX,
    "OnnxVisionService": ModelFormat.ONNX,
    "SingleNodeService": None,
    "ModelService": None,
}


def service_classes(path: Path) -> list[tuple[str, ModelFormat | None]]:
    """Return the service classes that a file defines, without running it.

    A class counts if it derives, directly or through others in the file, from a known base, and
    no other class derives from it.

    Returns:
        (name, the model format its base is for, if any) of each.

    Raises:
        ExportError: The file is not valid Python.
    """
    tree = _parse(path)
    aliases = _imported_names(tree)
    bases = {
        node.name: [aliases.get(name, name) for name in map(_last_name, node.bases)]
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    roots = {name: _root_base(name, bases, set()) for name in bases}
    derived_from = {base for name in bases if roots[name] for base in bases[name]}
    return [
        (name, _BASES[root])
        for name, root in roots.items()
        if root is not None and name not in derived_from
    ]


def has_imported_base(path: Path) -> bool:
    """Return whether a class has an imported base; only loading shows if that is a service.

    Raises:
        ExportError: The file is not valid Python.
    """
    tree = _parse(path)
    imported = _imported_names(tree)
    return any(
        _last_name(base) in imported or isinstance(base, ast.Attribute)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for base in node.bases
    )


def own_methods(path: Path, roots: Collection[str]) -> set[str] | None:
    """Return the names of the methods of all classes in a service file.

    Args:
        path: The service file.
        roots: Names of the bases of this package from which the service must derive.

    Returns:
        None if it does not, or may inherit methods from elsewhere.

    Raises:
        ExportError: The file is not valid Python.
    """
    tree = _parse(path)
    aliases = _imported_names(tree)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {aliases.get(name, name) for cls in classes for name in map(_last_name, cls.bases)}
    if not bases & {*roots} or not bases <= {*_BASES, *(cls.name for cls in classes)}:
        return None
    return {node.name for cls in classes for node in cls.body if isinstance(node, ast.FunctionDef)}


def _parse(path: Path) -> ast.Module:
    try:
        # Bytes, so that Python interprets a byte order mark and a coding line.
        return ast.parse(path.read_bytes(), filename=str(path))
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f"{path}:{line}" if line else str(path)
        raise ExportError(f"{where}: not valid Python: {getattr(error, 'msg', error)}") from None


def _imported_names(tree: ast.Module) -> dict[str, str]:
    """Return the original name of each alias in ``from ... import name as alias``."""
    return {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _root_base(name: str, bases: dict[str, list[str]], seen: set[str]) -> str | None:
    """Follow a class's bases within the file up to a known one."""
    if name in seen:
        return None
    for base in bases.get(name, ()):
        if base in _BASES:
            return base
        root = _root_base(base, bases, seen | {name})
        if root is not None:
            return root
    return None
