"""Read MXNet's parameter files, of which there are three kinds, and load them into Gluon networks.

``save_parameters`` writes names by structure (``0.weight``), ``export`` and ``save_checkpoint``
write full names after ``arg:`` or ``aux:``, ``collect_params().save`` full names alone. Full names
begin with the prefix that the network had when it was saved.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mms.engines.imports import import_mxnet
from mms.errors import ModelLoadFailed

mx = import_mxnet()

#: Names shown in a message; a network has hundreds.
_SHOWN_NAMES = 4
_NUMBERS = re.compile(r"\d+")


def bare_name(name: str) -> str:
    """Remove the ``arg:`` or ``aux:`` that save_checkpoint puts before a parameter's name."""
    return name[4:] if name.startswith(("arg:", "aux:")) else name


def read_arrays(path: str) -> dict[str, Any]:
    """Return a file's NDArrays by their names in it.

    Raises:
        ModelLoadFailed: It is no parameter file, or its arrays have no names.
    """
    name = os.path.basename(path)
    try:
        arrays = _load(path)
    except mx.base.MXNetError as error:
        if not os.path.isfile(path):
            raise ModelLoadFailed(f"the archive has no parameter file {name}") from None
        raise ModelLoadFailed(
            f"{name} is not a parameter file of MXNet, or was cut short: write it again with "
            "net.save_parameters(), net.export() or Module.save_checkpoint()"
        ) from error
    if not isinstance(arrays, dict):
        raise ModelLoadFailed(
            f"the arrays in {name} have no names; save them with net.save_parameters(), "
            "net.export() or Module.save_checkpoint()"
        )
    return arrays


def _load(path: str) -> Any:
    try:
        return mx.nd.load(path)
    except mx.base.MXNetError as error:
        # Saved while NumPy semantics (npx.set_np) were on.
        if "np_shape" not in str(error):
            raise
        with mx.util.np_shape(True), mx.util.np_array(True):
            arrays = mx.npx.load(path)
        return {name: array.as_nd_ndarray() for name, array in arrays.items()}


def load_into(net: Any, path: str, ctx: Any) -> None:
    """Load a parameter file of any kind into a Gluon network; never serve a random one.

    Raises:
        ModelLoadFailed: It does not fit; the message names the first parameter, as in the file.
    """
    arrays = read_arrays(path)
    what = f"parameter file {os.path.basename(path)} does not fit {type(net).__name__}"
    by_structure = net._collect_params_with_prefix()
    full_names = all("." not in name for name in arrays)
    if full_names and not set(by_structure) <= set(arrays):
        _load_full_names(net, arrays, ctx, what)
        return
    _check(by_structure, arrays, what)
    try:
        net.load_parameters(path, ctx=ctx)
    except (AssertionError, ValueError, RuntimeError, mx.base.MXNetError) as error:
        # MXNet appends every name in the file, and the path of the unpacked archive.
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0].replace(path, os.path.basename(path))[:300] if lines else ""
        raise ModelLoadFailed(f"{what}: {reason or type(error).__name__}") from error


def _load_full_names(net: Any, arrays: Mapping[str, Any], ctx: Any, what: str) -> None:
    """Load a file of full names, whose prefixes and numbers may be those of another process."""
    parameters = dict(net.collect_params().items())
    in_file = {bare_name(name): name for name in arrays}
    writer = (
        "net.export() or Module.save_checkpoint()"
        if any(bare != name for bare, name in in_file.items())
        else "net.collect_params().save()"
    )
    names = _by_prefix(net, parameters, in_file) or _by_order(parameters, in_file, arrays)
    advice = f"; {writer} wrote it: save this very network with net.save_parameters() instead"
    if names is None:
        raise ModelLoadFailed(
            f"{what}: the network has {_listed(list(parameters))}, the file "
            f"{_listed(list(arrays))}{advice}"
        )
    _check(
        {names[own]: parameter for own, parameter in parameters.items()},
        {bare: arrays[name] for bare, name in in_file.items()},
        what,
        advice,
    )
    is_np = mx.util.is_np_array()
    for own, parameter in parameters.items():
        array = arrays[in_file[names[own]]]
        parameter._load_init(array.as_np_ndarray() if is_np else array, ctx)


def _by_prefix(
    net: Any, parameters: Mapping[str, Any], in_file: Mapping[str, Any]
) -> dict[str, str] | None:
    """Return the name in the file of each parameter if they differ in the prefix at most."""
    if len(parameters) != len(in_file):
        return None
    rests = {own: own.removeprefix(net.prefix) for own in parameters}
    first = next(iter(rests.values()), "")
    for name in in_file:
        if not name.endswith(first):
            continue
        prefix = name[: len(name) - len(first)]
        names = {own: prefix + rest for own, rest in rests.items()}
        if all(name in in_file for name in names.values()):
            return names
    return None


def _by_order(
    parameters: Mapping[str, Any], in_file: Mapping[str, str], arrays: Mapping[str, Any]
) -> dict[str, str] | None:
    """Return the name in the file of each parameter if order, kinds and shapes are the same.

    Gluon numbers layers and networks through the whole process, so a network that was the second
    of its training script has other numbers than here.
    """
    if len(parameters) != len(in_file):
        return None
    names = dict(zip(parameters, in_file, strict=True))
    for own, name in names.items():
        # The network's own prefix may be anything; layer and role are the last two words.
        mine, other = (_NUMBERS.sub("", text).split("_")[-2:] for text in (own, name))
        if mine != other or not _fits(parameters[own].shape, arrays[in_file[name]].shape):
            return None
    return names


def _check(
    parameters: Mapping[str, Any], arrays: Mapping[str, Any], what: str, advice: str = ""
) -> None:
    """Compare names and shapes before MXNet does, in words of the file.

    Raises:
        ModelLoadFailed: A parameter is missing, unknown, or of another shape.
    """
    shared: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        shared.setdefault(id(parameter), []).append(name)
    for name, parameter in parameters.items():
        if name not in arrays:
            # One that several layers share is saved under one of its names.
            if any(other in arrays for other in shared[id(parameter)]):
                continue
            raise ModelLoadFailed(
                f"{what}: the network's parameter {name!r} is missing in it; it has "
                f"{_listed(list(arrays))}{advice}"
            )
        if not _fits(parameter.shape, arrays[name].shape):
            raise ModelLoadFailed(
                f"{what}: parameter {name!r} has the shape {tuple(arrays[name].shape)} in it, "
                f"{tuple(parameter.shape)} in the network{advice}"
            )
    for name in arrays:
        if name not in parameters:
            raise ModelLoadFailed(
                f"{what}: its parameter {name!r} is not in the network, which has "
                f"{_listed(list(parameters))}{advice}"
            )


def _fits(shape: Sequence[int] | None, saved: Sequence[int]) -> bool:
    """Return whether a parameter, whose sizes may still be unknown, can hold an array."""
    if not shape:
        return True
    return len(shape) == len(saved) and all(
        size in (0, -1, other) for size, other in zip(shape, saved, strict=True)
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN_NAMES])
    more = len(names) - _SHOWN_NAMES
    return (shown or "none") + (f" and {more} more" if more > 0 else "")
