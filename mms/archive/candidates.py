"""Candidates: forms of an archive's network for other engines, with what was measured. Pure.

``Serving.candidates`` of a manifest lists them, fastest first. Old servers ignore the key and run
the network as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import msgspec

from mms.archive.signature import DATA_TYPES, TensorSpec
from mms.errors import ManifestError
from mms.quoting import quoted

EngineName = Literal["mxnet", "onnxruntime", "openvino"]
Precision = Literal["f32", "bf16", "int8"]
Task = Literal["classes", "values", "boxes"]
#: Names of engines and precisions, as settings and manifests use them.
ENGINES: tuple[EngineName, ...] = ("mxnet", "onnxruntime", "openvino")
PRECISIONS: tuple[Precision, ...] = ("f32", "bf16", "int8")
#: A manifest lists no more: each costs the size of the network.
MAX_CANDIDATES = 16

_Size = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
_Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Error = Annotated[float, msgspec.Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a converted network.

    Attributes:
        name: Its name in the converted network.
        data_type: Element type that the engine takes or gives, one of `DATA_TYPES`.
        shape: Size of each axis, axis 0 being the batch; 0 is any size.
    """

    name: str
    data_type: str
    shape: tuple[_Size, ...]

    def to_spec(self) -> TensorSpec:
        """Return it as part of a signature."""
        return TensorSpec(self.name, self.shape, self.data_type)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the answers of a candidate are those of MXNet in single precision.

    Attributes:
        task: What was compared: the largest output of each row, all values, or detected boxes.
        rows: Number of rows compared, over all batch sizes.
        batch_sizes: Sizes of the batches that they were run in.
        score: Fraction of the rows that agree, see `mms.convert.agreement`. ``min_agreement`` is
            compared with it.
        median_error: Median over the rows of the largest difference of a row, divided by the
            largest magnitude in it.
        max_error: The largest of these.
    """

    task: Task
    rows: _Size
    batch_sizes: tuple[_Size, ...]
    score: _Fraction
    median_error: _Error
    max_error: _Error


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a candidate was measured.

    Attributes:
        cpu: Name of the CPU's model.
        flags: Those of its flags that matter to engines, see `mms.engines.cpu`.
        versions: Version by package of the engines.
    """

    cpu: str = ""
    flags: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tail:
    """The part of a network that stays on MXNet, behind the converted part.

    Attributes:
        symbol: Path in the archive of its ``-symbol.json``.
        parameters: Path in the archive of its ``.params``.
        inputs: Names of its inputs, in the order of the converted part's outputs; inputs of the
            whole network that it reads as well stand behind them, by their own names.
        operators: The operators because of which the network was cut.
    """

    symbol: str
    parameters: str
    inputs: tuple[str, ...]
    operators: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A form of an archive's network for one engine in one precision.

    Attributes:
        engine: The engine that runs it.
        precision: What it computes in. bf16 is the f32 form, run in half the bits.
        model: Path in the archive: ``.xml`` or ``.onnx``, of MXNet ``-symbol.json``.
        weights: Path in the archive of a file beside it with its weights; "" if it has none.
        inputs: Its inputs, in the order in which the service calls the network.
        outputs: Its outputs, in the order in which the network returns them.
        agreement: How far it agrees with MXNet.
        speed: Speed as a multiple of MXNet's in single precision, by batch size, on one thread.
        machine: Where both were measured.
        tail: The part that stays on MXNet; None if all of it was converted.
    """

    engine: EngineName
    precision: Precision
    model: str
    weights: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    agreement: Agreement
    speed: Mapping[str, float] = field(default_factory=dict)
    machine: Machine = Machine()
    tail: Tail | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Paths in the archive of its files."""
        tail = (self.tail.symbol, self.tail.parameters) if self.tail else ()
        return tuple(path for path in (self.model, self.weights, *tail) if path)

    @property
    def name(self) -> str:
        """Engine and precision, for tables and messages."""
        return f"{self.engine} {self.precision}"


def parse_candidates(value: Any, source: str) -> tuple[Candidate, ...]:
    """Validate ``Serving.candidates`` of a manifest and return it typed.

    Raises:
        ManifestError: The message names the key and what is wrong with it.
    """
    key = "Serving.candidates"
    if value is None:
        return ()
    if isinstance(value, Sequence) and len(value) > MAX_CANDIDATES:
        raise ManifestError(f"{source}: {key} lists {len(value)}, at most {MAX_CANDIDATES} count")
    try:
        candidates = msgspec.convert(value, tuple[Candidate, ...])
    except msgspec.ValidationError as error:
        raise ManifestError(f"{source}: {key}: {quoted(str(error))}") from None
    for candidate in candidates:
        for path in candidate.files:
            parts = PurePosixPath(path)
            if "\\" in path or "\0" in path or parts.is_absolute() or ".." in parts.parts:
                raise ManifestError(
                    f"{source}: {key}: a file must be a relative path inside the archive, "
                    f"got {quoted(path)}"
                )
        for port in (*candidate.inputs, *candidate.outputs):
            if port.data_type not in DATA_TYPES:
                raise ManifestError(
                    f"{source}: {key}: unknown data_type {quoted(port.data_type)} of "
                    f"{quoted(port.name)}"
                )
    return candidates


def candidates_document(candidates: Sequence[Candidate]) -> list[Any]:
    """Return the JSON document that `parse_candidates` reads."""
    document: list[Any] = msgspec.to_builtins(list(candidates))
    return document
