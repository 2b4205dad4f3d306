"""What SageMaker's MXNet container does where a user's script has no function of its own.

Load the checkpoint ``model-*``, decode JSON, CSV and NPY, run a Module or a Block, and encode the
result as one of the types that the client accepts.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mms.archive.artefacts.sagemaker import CHECKPOINT, SHAPES, SYMBOL
from mms.engines.imports import import_mxnet
from mms.errors import (
    InvalidInputShape,
    InvalidRequest,
    ModelLoadFailed,
    RejectedByService,
    UnsupportedMedia,
)

JSON, CSV, NPY = "application/json", "text/csv", "application/x-npy"
ANY = "*/*"
#: The container's variables: rows of a forward pass, and the type of answers if any will do.
BATCH_SIZE, DEFAULT_ACCEPT = (
    "SAGEMAKER_DEFAULT_MODEL_FIRST_DIMENSION_SIZE",
    "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT",
)
#: Untyped.
_NPY_FORMAT: Any = np.lib.format
_MAX_SHAPES_BYTES = 1 << 20
_NOT_ACCEPTABLE = 406

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Accepted:
    """Media types that a client accepts, the preferred one first.

    Attributes:
        types: The types, wildcards included.
        header: The header they are from.
    """

    types: tuple[str, ...]
    header: str

    def choose(self, formats: Sequence[str]) -> str:
        """Return the format to answer in.

        Raises:
            RejectedByService: None of them is accepted: 406.
        """
        for wanted in self.types:
            group = wanted.removesuffix("*")
            for format_ in formats:
                if wanted in (format_, ANY) or (group != wanted and format_.startswith(group)):
                    return format_
        raise not_acceptable(
            f"the answer can be {', '.join(formats)}; Accept asks for {self.header[:200]!r}"
        )


def parse_accept(header: str) -> Accepted:
    """Return the types of an Accept header, or of one that only lists them (RFC 9110, 12.5.1)."""
    weighted = []
    for entry in header.split(","):
        type_, *parameters = (part.strip().lower() for part in entry.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        if type_ and weight > 0:
            weighted.append((-weight, type_))
    weighted.sort(key=lambda pair: pair[0])
    return Accepted(tuple(type_ for _, type_ in weighted), header)


def not_acceptable(message: str) -> RejectedByService:
    """Return the error for an answer that cannot be of any type that the client accepts."""
    return RejectedByService(message, _NOT_ACCEPTABLE)


def load_checkpoint(folder: str, gpu: int | None) -> Any:
    """Return the container's checkpoint as a bound Module.

    Args:
        folder: The model's folder.
        gpu: Number of the GPU to run on; None is the CPU.

    Raises:
        ModelLoadFailed: A file is missing, or they do not fit each other.
    """
    missing = [name for name in CHECKPOINT if not os.path.isfile(os.path.join(folder, name))]
    if missing:
        raise ModelLoadFailed(
            f"the default model_fn needs {', '.join(missing)}; add what is missing, or a script "
            "code/inference.py with a model_fn"
        )
    mx = import_mxnet()
    shapes = _read_shapes(os.path.join(folder, SHAPES))
    names = [name for name, _ in shapes]
    symbol, args, auxiliary = mx.model.load_checkpoint(os.path.join(folder, "model"), 0)
    # A loss has its label as an argument, which plays no part in predictions.
    needed = [name for name in symbol.list_arguments() if not name.endswith("label")]
    known = {*args, *auxiliary, *names}
    for name in (*needed, *symbol.list_auxiliary_states()):
        if name not in known:
            raise ModelLoadFailed(
                f"{SYMBOL} has {name!r}, which is neither in the .params file nor an input in "
                f"{SHAPES}"
            )
    context = mx.cpu() if gpu is None else mx.gpu(gpu)
    module = mx.mod.Module(symbol=symbol, context=context, data_names=names, label_names=None)
    module.bind(for_training=False, data_shapes=shapes)
    module.set_params(args, auxiliary, allow_missing=True)
    return module


def _read_shapes(path: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return the name and shape of each input, with as many rows as one forward pass has."""
    if os.path.getsize(path) > _MAX_SHAPES_BYTES:
        raise ModelLoadFailed(f"{SHAPES} is larger than {_MAX_SHAPES_BYTES} bytes")
    try:
        with open(path, encoding="utf-8-sig") as file:
            document = json.load(file)
        entries = [(entry["name"], [int(size) for size in entry["shape"]]) for entry in document]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelLoadFailed(
            f'{SHAPES} must be a list such as [{{"name": "data", "shape": [1, 3, 224, 224]}}]: '
            f"{type(error).__name__}: {error}"
        ) from None
    if not entries or not all(shape for _, shape in entries):
        raise ModelLoadFailed(f"{SHAPES} names no input, or one without a shape")
    rows = os.environ.get(BATCH_SIZE, "1")
    if not rows.isdigit() or int(rows) < 1:
        raise ModelLoadFailed(f"{BATCH_SIZE} must be a positive integer, got {rows!r}")
    # As the container does: the shape in the file is that of a batch in training.
    return [(name, (int(rows), *shape[1:])) for name, shape in entries]


def read_array(data: Any, content_type: str, formats: Sequence[str]) -> Array:
    """Return a request's body as an array of numbers.

    Args:
        data: Bytes, a string, parsed JSON, or an array, which is returned.
        content_type: Media type of the body; JSON if it has none.
        formats: Types that may be read.

    Raises:
        UnsupportedMedia: The type is another one.
        InvalidRequest: The body is none of that type, or does not hold numbers.
    """
    if isinstance(data, np.ndarray):
        return data
    content_type = content_type or JSON
    if content_type not in formats:
        raise UnsupportedMedia(
            f"the default input_fn reads {', '.join(formats)}, not {content_type[:100]!r}; define "
            "input_fn in code/inference.py to read others"
        )
    if content_type == NPY:
        return _read_npy(bytes(data))
    if isinstance(data, (bytes, bytearray)):
        data = utf8(data)
    if content_type == CSV:
        return _read_csv(data)
    if isinstance(data, str):
        try:
            data = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    try:
        array = np.array(data)
    except ValueError:
        raise InvalidRequest(
            "the body must be an array of numbers: its lists differ in length"
        ) from None
    if array.dtype.kind not in "biuf" or not array.ndim:
        raise InvalidRequest(
            "the body must be an array of numbers: a list, or lists of equal length in a list"
        )
    return array


def utf8(data: bytes | bytearray) -> str:
    """Return bytes as text.

    Raises:
        InvalidRequest: They are not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 text (byte {error.start})") from None


def _read_csv(text: str) -> Array:
    """Read rows of numbers; an empty field is NaN. One row is an array with one axis."""
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), 1):
        # As NumPy's reader, which the container uses: the rest of a line from # on is a comment.
        fields = line.partition("#")[0].strip()
        if not fields:
            continue
        try:
            row = [float(field) if field.strip() else math.nan for field in fields.split(",")]
        except ValueError:
            raise InvalidRequest(f"line {number} of the CSV is not a row of numbers") from None
        rows.append(row)
        if len(row) != len(rows[0]):
            raise InvalidRequest(
                f"line {number} of the CSV has {len(row)} columns, the first one {len(rows[0])}"
            )
    if not rows:
        raise InvalidRequest("the CSV has no rows")
    array = np.array(rows, dtype=np.float64)
    return array[0] if len(rows) == 1 else array


def _read_npy(data: bytes) -> Array:
    """Read an array without NumPy's own reader, which allocates whatever a header claims."""
    stream, format_ = io.BytesIO(data), _NPY_FORMAT
    try:
        is_first = format_.read_magic(stream) == (1, 0)
        read = format_.read_array_header_1_0 if is_first else format_.read_array_header_2_0
        shape, is_fortran, dtype = read(stream)
    except (ValueError, RecursionError, MemoryError) as error:
        raise InvalidRequest(f"the body is not a .npy file: {error}") from None
    if dtype.kind not in "biuf":
        raise InvalidRequest(f"the .npy file holds {dtype}, not numbers")
    place = stream.tell()
    size = math.prod(shape) * dtype.itemsize
    if size != len(data) - place or any(length < 0 for length in shape):
        raise InvalidRequest(
            f"the .npy file has {len(data) - place} bytes of data, its header claims {size}"
        )
    array = np.frombuffer(data, dtype, offset=place)
    return array.reshape(shape, order="F" if is_fortran else "C")


def block_input(array: Array, gpu: int | None) -> Any:
    """Return an array as an NDArray in single precision, which is what a Block is called with."""
    mx = import_mxnet()
    return mx.nd.array(array, ctx=mx.cpu() if gpu is None else mx.gpu(gpu))


class BoundModule:
    """Runs a Module on whatever rows fit its network, and keeps it fit to run the next ones.

    A Module binds itself anew to rows of another shape. If these do not fit the network, it fails
    only after it has noted the new shape, and fails on good rows, too, from then on.

    Args:
        module: A bound Module.
    """

    def __init__(self, module: Any) -> None:
        self._mx = import_mxnet()
        self._module = module
        self._shapes = [(entry[0], tuple(entry[1])) for entry in module.data_shapes]

    def read(self, array: Array, content_type: str) -> Any:
        """Return an array as the NDArrayIter that a Module's `predict` takes.

        Args:
            array: The request's array.
            content_type: Its media type; rows of CSV get the shape of the model's input.

        Raises:
            InvalidRequest: The model has several inputs, or the array no rows, or the numbers of a
                CSV do not fill them.
        """
        if len(self._shapes) != 1:
            raise InvalidRequest(
                f"the model has {len(self._shapes)} inputs; the default input_fn fills one: define "
                "input_fn in code/inference.py"
            )
        name, (batch_size, *row) = self._shapes[0]
        if content_type == CSV:
            if array.size % math.prod(row):
                raise InvalidInputShape(
                    f"the CSV has {array.size} numbers, a row of {name!r} takes {math.prod(row)}"
                )
            array = array.reshape(-1, *row)
        rows = len(array)
        if not rows:
            raise InvalidRequest("the body has no rows")
        padding = -rows % batch_size
        if padding:
            array = np.concatenate([array, np.zeros((padding, *array.shape[1:]), array.dtype)])
        iterator = self._mx.io.NDArrayIter(self._mx.nd.array(array), batch_size=batch_size)
        # `predict` leaves out as many rows of each batch: only the last one has any of them.
        iterator.getpad = lambda: padding if iterator.cursor + batch_size >= rows else 0
        return iterator

    def predict(self, data: Any) -> Any:
        """Return the outputs for all batches of an iterator, or for one NDArray.

        Raises:
            InvalidInputShape: The rows have a shape that the network does not take.
        """
        entries = getattr(data, "provide_data", None)
        given = [tuple(entry[1]) for entry in entries] if entries else [tuple(data.shape)]
        bound = [tuple(entry[1]) for entry in self._module.data_shapes]
        if given != bound and len(given) == len(bound):
            self._check(given)
        try:
            return self._module.predict(data)
        except self._mx.base.MXNetError:
            self._module.reshape(self._shapes)
            raise

    def _check(self, given: list[tuple[int, ...]]) -> None:
        """Let MXNet infer all shapes of the network from those of its inputs and parameters."""
        args, auxiliary = self._module.get_params()
        known = {name: array.shape for name, array in {**args, **auxiliary}.items()}
        # The label of a loss, which is among them, follows from the rows.
        known = {name: shape for name, shape in known.items() if not name.endswith("label")}
        known.update((name, shape) for (name, _), shape in zip(self._shapes, given, strict=True))
        try:
            # Unlike `infer_shape`, this prints nothing.
            self._module.symbol.infer_shape_partial(**known)
        except self._mx.base.MXNetError:
            raise InvalidInputShape(
                f"each row of the body has the shape ({_listed(given[0][1:])}), the model takes "
                f"({_listed(self._shapes[0][1][1:])})"
            ) from None


def write_answer(prediction: Any, format_: str) -> bytes:
    """Encode a prediction.

    Args:
        prediction: An NDArray or NumPy array, or several in a list; for JSON anything that has a
            JSON form.
        format_: Media type to encode it as.

    Raises:
        RejectedByService: It has no form of that type: 406.
    """
    if format_ == JSON:
        return orjson.dumps(prediction, default=_as_lists, option=orjson.OPT_NON_STR_KEYS)
    if isinstance(prediction, (list, tuple)) and any(hasattr(one, "asnumpy") for one in prediction):
        raise not_acceptable(f"the answer has {len(prediction)} outputs, {format_} takes one")
    array = np.asarray(_as_lists(prediction) if hasattr(prediction, "asnumpy") else prediction)
    if array.dtype.kind not in "biuf":
        raise not_acceptable(f"the answer is no array of numbers, which {format_} needs")
    if format_ == NPY:
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=False)
        return stream.getvalue()
    if array.ndim not in (1, 2):
        raise not_acceptable(f"the answer has {array.ndim} dimensions, CSV takes at most two")
    rows = array.tolist() if array.ndim == 2 else [[value] for value in array.tolist()]
    return "".join(",".join(map(str, row)) + "\n" for row in rows).encode()


def _as_lists(value: Any) -> Any:
    # By way of Python's own numbers, as the container does: single precision in all its digits.
    if hasattr(value, "asnumpy"):
        value = value.asnumpy()
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"values of type {type(value).__name__} have no JSON form")


def _listed(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
