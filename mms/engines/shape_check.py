"""Check arrays against the inputs of a network before it runs. Pure NumPy.

Engines do not refuse what does not fit: given a picture of another size, OpenVINO returned an
output without rows, and it casts other types silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mms.archive.candidates import Port
from mms.archive.data_types import TABLE
from mms.archive.onnx_graph import show_shape
from mms.errors import InvalidInputShape, ModelLoadFailed

Array = NDArray[Any]

#: NumPy's type for each of the V2 protocol's names.
DTYPES: dict[str, np.dtype[Any]] = {type_.name: np.dtype(type_.numpy) for type_ in TABLE}


class ShapeCheck:
    """Checks and casts the arrays of each call.

    Args:
        ports: The network's inputs; an empty shape matches any.
    """

    def __init__(self, ports: Sequence[Port]) -> None:
        self._ports = tuple(ports)
        self._expected = [
            (port, DTYPES[port.data_type], len(port.shape), _fixed(port)) for port in ports
        ]

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """Return the arrays, C-contiguous and of their input's type; copied only if they are not.

        Args:
            arrays: One per input.

        Raises:
            InvalidInputShape: Their number, a shape or a type does not match. The message names
                the input, what it expects and what it got.
        """
        if len(arrays) != len(self._expected):
            names = ", ".join(repr(port.name) for port in self._ports)
            raise InvalidInputShape(
                f"the network takes {len(self._expected)} inputs ({names}), got {len(arrays)}"
            )
        checked = []
        for array, (port, dtype, rank, fixed) in zip(arrays, self._expected, strict=True):
            shape = getattr(array, "shape", None)
            if not isinstance(array, np.ndarray) or shape is None:
                raise InvalidInputShape(
                    f"input {port.name!r} must be a NumPy array, got {type(array).__name__}"
                )
            if rank and (len(shape) != rank or any(shape[axis] != size for axis, size in fixed)):
                raise InvalidInputShape(
                    f"input {port.name!r} has shape {show_shape(shape)}, expected "
                    f"{show_shape(port.shape)} (axis 0 is the batch; ? is any size)"
                )
            if array.dtype != dtype:
                array = _cast(array, dtype, port)
            checked.append(array if array.flags.c_contiguous else array.copy(order="C"))
        return checked


def match_ports(
    ports: Sequence[Port], known: Mapping[str, Port], what: str, source: str
) -> tuple[Port, ...]:
    """Return ports whose open axes have the sizes that the network itself fixes.

    Args:
        ports: What the caller will give, or wants.
        known: What the network has, by name.
        what: ``input`` or ``output``, for messages.
        source: The network's file, for messages.

    Raises:
        ModelLoadFailed: The network lacks one, or has it with another type or shape.
    """
    matched = []
    for port in ports:
        own = known.get(port.name)
        if own is None:
            names = ", ".join(repr(name) for name in known) or "none"
            raise ModelLoadFailed(
                f"{source}: the network has no {what} {port.name!r}; its {what}s are {names}"
            )
        if port.data_type != own.data_type:
            raise ModelLoadFailed(
                f"{source}: the {what} {port.name!r} is {own.data_type}, not {port.data_type}"
            )
        matched.append(replace(port, shape=_merged(port, own, what, source)))
    return tuple(matched)


def check_none_missing(missing: Sequence[str], source: str) -> None:
    """Refuse a description that leaves out inputs of the network.

    Raises:
        ModelLoadFailed: It does.
    """
    if missing:
        names = ", ".join(repr(name) for name in missing)
        raise ModelLoadFailed(f"{source}: the network takes further inputs: {names}")


def _merged(port: Port, own: Port, what: str, source: str) -> tuple[int, ...]:
    if not port.shape or not own.shape:
        return port.shape or own.shape
    pairs = list(zip(port.shape, own.shape, strict=False))
    if len(port.shape) != len(own.shape) or any(
        0 not in pair and len({*pair}) > 1 for pair in pairs
    ):
        raise ModelLoadFailed(
            f"{source}: the {what} {port.name!r} has shape {show_shape(own.shape)}, not "
            f"{show_shape(port.shape)} (? is any size)"
        )
    return tuple(mine or theirs for mine, theirs in pairs)


def _fixed(port: Port) -> list[tuple[int, int]]:
    """Return (axis, size) of the axes that have one."""
    return [(axis, size) for axis, size in enumerate(port.shape) if size]


def _cast(array: Array, dtype: np.dtype[Any], port: Port) -> Array:
    """Return an array in another type that holds its values, but for the precision of floats.

    Raises:
        InvalidInputShape: The type cannot hold them.
    """
    if array.dtype.kind in "biuf" and dtype.kind in "biuf":
        # MXNet's arrays are float32 unless asked for, labels and word numbers included.
        with np.errstate(invalid="ignore", over="ignore"):
            cast = array.astype(dtype, order="C")
        if dtype.kind == "f" or np.array_equal(cast, array):
            return cast
        raise InvalidInputShape(
            f"input {port.name!r} is {port.data_type}, which cannot hold the values of the "
            f"{array.dtype} array that was given"
        )
    raise InvalidInputShape(
        f"input {port.name!r} has type {array.dtype}, expected {port.data_type}"
    )
