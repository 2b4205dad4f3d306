"""Run the script of a SageMaker model as a 1.x handler, by the rules of its MXNet container.

A script defines any of ``model_fn``, ``input_fn``, ``predict_fn`` and ``output_fn``, or
``transform_fn`` in place of the last three; `mms.model_service.sagemaker_defaults` does the rest.
The rules are those of sagemaker-mxnet-inference 1.5 and sagemaker-inference 1.10, except that
``model_fn`` is called once, and that what is the client's fault is answered as such.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mms.archive.artefacts.sagemaker import CHECKPOINT, CODE, find_script
from mms.engines.error_text import short_text
from mms.errors import (
    InvalidRequest,
    InvalidServiceOutput,
    MMSError,
    ModelLoadFailed,
    RejectedByService,
    UnsupportedMedia,
)
from mms.model_service.sagemaker_defaults import (
    ANY,
    CSV,
    DEFAULT_ACCEPT,
    JSON,
    NPY,
    BoundModule,
    block_input,
    load_checkpoint,
    not_acceptable,
    parse_accept,
    read_array,
    utf8,
    write_answer,
)

_REQUIREMENTS = f"{CODE}/requirements.txt"
_MAX_REQUIREMENTS_BYTES = 64 << 10
#: The functions of a script, and the number of arguments that each is called with.
_ARGUMENTS = {
    "pre_model_fn": 1,
    "model_fn": 1,
    "model_warmup_fn": 2,
    "transform_fn": 4,
    "input_fn": 2,
    "predict_fn": 2,
    "output_fn": 2,
}
_PARTS = ("input_fn", "predict_fn", "output_fn")
#: What the default functions read and write.
_BLOCK_FORMATS, _FORMATS = (JSON, NPY), (JSON, CSV, NPY)


class SageMakerHandler:
    """Loads a SageMaker model, and answers its requests.

    Attributes:
        takes_bytes: Whether bodies must arrive as they came, since the script decodes them.
    """

    takes_bytes = False

    def initialize(self, context: Any) -> None:
        """Import the script, check its functions and load the model.

        Raises:
            ModelLoadFailed: The script, its functions or the model's files are not as they must be.
            Exception: Any exception of the script.
        """
        folder = context.system_properties["model_dir"]
        self._gpu: int | None = context.system_properties.get("gpu_id")
        self._default_accept = os.environ.get(DEFAULT_ACCEPT) or JSON
        script = find_script(Path(folder))
        with _missing_modules(folder, script):
            module = _import_script(folder, script) if script else None
            self._functions = _functions(module, script or "")
            self.takes_bytes = bool({"input_fn", "transform_fn"} & self._functions.keys())
            if "pre_model_fn" in self._functions:
                self._functions["pre_model_fn"](context, folder)
            self._model = self._load(context, folder, script)
            if "model_warmup_fn" in self._functions:
                self._functions["model_warmup_fn"](context, folder, self._model)
        is_module, self._is_block = _kind(self._model)
        self._module = BoundModule(self._model) if is_module else None
        self._formats: tuple[str, ...] = _BLOCK_FORMATS if self._is_block else _FORMATS
        is_complete = {"transform_fn", "predict_fn"} & self._functions.keys()
        if not (is_module or self._is_block or is_complete):
            raise ModelLoadFailed(
                f"{script}: model_fn returned a {type(self._model).__name__}, which is neither a "
                "Module nor a Block of MXNet; define predict_fn or transform_fn for it"
            )

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Any]:
        """Return the answer to each request of a batch.

        Raises:
            MMSError: A request is not as it must be.
            Exception: Any exception of the script.
        """
        if len(data) == 1:
            return [self._answer(data[0], context)]
        return [self._answer(one, _alone(context, index)) for index, one in enumerate(data)]

    def _load(self, context: Any, folder: str, script: str | None) -> Any:
        load = self._functions.get("model_fn")
        if load is not None:
            return load(context, folder)
        lacks = [name for name in CHECKPOINT if not os.path.isfile(os.path.join(folder, name))]
        if script and lacks:
            raise ModelLoadFailed(
                f"{script} defines no model_fn, and the default one needs {', '.join(lacks)}"
            )
        return load_checkpoint(folder, self._gpu)

    def _answer(self, fields: dict[str, Any], context: Any) -> Any:
        """Return the answer to the only request of a context, and set its content type."""
        content_type = context.get_request_header(0, "content-type")
        accept = context.get_request_header(0, "accept") or ""
        if accept.strip() in ("", ANY):
            accept = self._default_accept
        body = _body(fields)
        if self.takes_bytes:
            if isinstance(body, np.ndarray):
                body, content_type = _as_npy(body), NPY
            elif _media_type(content_type) in (JSON, CSV):
                body = utf8(body) if isinstance(body, (bytes, bytearray)) else body
        with _toolkit_errors(UnsupportedMedia):
            if "transform_fn" in self._functions:
                transform = self._functions["transform_fn"]
                result = transform(context, self._model, body, content_type, accept)
            else:
                prepared = self._input(context, body, content_type)
                predicted = self._predict(context, prepared)
                with _toolkit_errors(not_acceptable):
                    result = self._output(context, predicted, accept, body)
        if isinstance(result, tuple):
            if len(result) != 2:
                raise InvalidServiceOutput(
                    f"the script answered a tuple of {len(result)}; it must be (answer, type)"
                )
            result, type_ = result
            context.set_response_content_type(0, str(type_))
        elif context.get_response_content_type(0) is None and not isinstance(result, np.ndarray):
            context.set_response_content_type(0, self._answered_type(accept))
        return result

    def _input(self, context: Any, body: Any, content_type: str | None) -> Any:
        function = self._functions.get("input_fn")
        if function is not None:
            if function.takes_model:
                return function.function(body, content_type, self._model)
            return function(context, body, content_type)
        type_ = _media_type(content_type)
        array = read_array(body, type_, self._formats)
        if self._module:
            return self._module.read(array, type_)
        return block_input(array, self._gpu) if self._is_block else array

    def _predict(self, context: Any, data: Any) -> Any:
        function = self._functions.get("predict_fn")
        if function is not None:
            return function(context, data, self._model)
        return self._module.predict(data) if self._module else self._model(data)

    def _output(self, context: Any, prediction: Any, accept: str, body: Any) -> Any:
        function = self._functions.get("output_fn")
        if function is not None:
            return function(context, prediction, accept)
        if isinstance(body, np.ndarray) and hasattr(prediction, "asnumpy"):
            # It came as a tensor of the Open Inference Protocol, and returns as one.
            return prediction.asnumpy()
        # Where anything will do, the default comes first.
        preferred = self._default_accept
        formats = sorted(self._formats, key=lambda format_: format_ != preferred)
        format_ = parse_accept(accept).choose(formats)
        return write_answer(prediction, format_), format_

    def _answered_type(self, accept: str) -> str:
        """Return the content type of what a function answered without one: what was asked for.

        The container copies the header, even where that is a list.
        """
        types = parse_accept(accept).types
        if self._default_accept in types:
            return self._default_accept
        return next((type_ for type_ in types if "*" not in type_), self._default_accept)


class _Function:
    """A function of the script, called with the context if it takes it.

    Args:
        function: The function.
        name: Its name.
        script: The script, for messages.

    Attributes:
        takes_model: Whether it is an ``input_fn`` that takes the model, too.

    Raises:
        ModelLoadFailed: It takes more or fewer arguments.
    """

    def __init__(self, function: Callable[..., Any], name: str, script: str) -> None:
        self.function = function
        count = _ARGUMENTS[name]
        parameters = list(inspect.signature(function).parameters.values())
        positional = [
            p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        has_rest = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        extra = positional[count:]
        required = [p for p in extra if p.default is p.empty]
        if len(required) > 1 or (len(positional) < count and not has_rest):
            raise ModelLoadFailed(
                f"{script}: {name} takes {len(positional)} arguments; it is called with {count}, "
                f"or with {count + 1}, the last of which is the context"
            )
        self.takes_model = name == "input_fn" and bool(extra) and extra[0].name == "model"
        # An argument that has a default may be anything, such as a device.
        self._takes_context = bool(extra) and (bool(required) or extra[0].name == "context")

    def __call__(self, context: Any, *arguments: Any) -> Any:
        if self._takes_context:
            return self.function(*arguments, context)
        return self.function(*arguments)


def _functions(module: ModuleType | None, script: str) -> dict[str, _Function]:
    """Return the functions that a script defines.

    Raises:
        ModelLoadFailed: They may not be defined together.
    """
    if module is None:
        return {}
    found = {
        name: _Function(function, name, script)
        for name in _ARGUMENTS
        if callable(function := getattr(module, name, None))
    }
    parts = [name for name in _PARTS if name in found]
    if "transform_fn" in found and parts:
        raise ModelLoadFailed(
            f"{script} defines transform_fn and also {', '.join(parts)}; transform_fn does the "
            "work of these three, so define either it or them"
        )
    return found


def _import_script(folder: str, script: str) -> ModuleType:
    """Import the script, which finds the modules beside it first.

    Raises:
        ModelLoadFailed: A module of another origin has its name.
        Exception: Any exception of the script.
    """
    code = os.path.join(folder, CODE)
    if os.path.isdir(code) and code not in sys.path:
        sys.path.insert(0, code)
    importlib.invalidate_caches()
    path = Path(script)
    module = importlib.import_module(path.stem)
    origin = getattr(module, "__file__", None) or "a module built into Python"
    if not os.path.exists(origin) or not os.path.samefile(origin, os.path.join(folder, script)):
        raise ModelLoadFailed(f"{script} has the name of another module ({origin}); rename it")
    return module


@contextlib.contextmanager
def _missing_modules(folder: str, script: str | None) -> Iterator[None]:
    """Say of a module that is not installed whether the model asks for it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not error.name:
            raise
        package = error.name.partition(".")[0]
        if not os.path.isfile(os.path.join(folder, _REQUIREMENTS)):
            advice = f"install it in the image, or add it to {CODE}/"
        elif _lists(os.path.join(folder, _REQUIREMENTS), package):
            advice = (
                f"{_REQUIREMENTS} lists it: install it in the image "
                f"(pip install -r {_REQUIREMENTS})"
            )
        else:
            advice = (
                f"install it in the image; {_REQUIREMENTS} may list it under another name "
                f"(pip install -r {_REQUIREMENTS})"
            )
        raise ModelLoadFailed(
            f"{script or 'the model'}: module {package!r} is not installed; {advice}"
        ) from error


def _lists(path: str, package: str) -> bool:
    """Whether a requirements file names a package, in any spelling that pip takes for the same."""
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = file.read(_MAX_REQUIREMENTS_BYTES).splitlines()
    names = {re.split(r"[^A-Za-z0-9._-]", line.strip(), maxsplit=1)[0] for line in lines}
    return _same(package) in {_same(name) for name in names}


def _same(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _kind(model: Any) -> tuple[bool, bool]:
    """Return whether a model is a Module of MXNet, and whether it is a Block."""
    mx = sys.modules.get("mxnet")
    if mx is None:
        return False, False
    return isinstance(model, mx.module.BaseModule), isinstance(model, mx.gluon.Block)


def _alone(context: Any, index: int) -> Any:
    """Return the context of one request of a batch, as scripts know it: its index is 0."""
    alone = copy.copy(context)
    alone.request_processor = [context.request_processor[index]]
    alone.request_ids = {0: context.get_request_id(index)}
    return alone


def _body(fields: dict[str, Any]) -> Any:
    """Return a request's body, or the only tensor of the Open Inference Protocol.

    Raises:
        InvalidRequest: It came as a form, or has several tensors.
    """
    if "body" in fields:
        return fields["body"]
    values = list(fields.values())
    if len(values) == 1 and isinstance(values[0], np.ndarray):
        return values[0]
    raise InvalidRequest(
        "a SageMaker model takes one body or one tensor: send the data itself with its content "
        "type, such as application/json, and not as a form"
    )


def _media_type(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


def _as_npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


@contextlib.contextmanager
def _toolkit_errors(for_format: Callable[[str], MMSError]) -> Iterator[None]:
    """Turn the exceptions of SageMaker's toolkits into ours, by name: they need not be installed.

    Args:
        for_format: Makes the error for a type that a script does not read or write.
    """
    try:
        yield
    except Exception as error:
        names = {cls.__name__ for cls in type(error).__mro__}
        if "UnsupportedFormatError" in names:
            raise for_format(short_text(error)) from error
        status = getattr(error, "status_code", None)
        if "BaseInferenceToolkitError" in names and isinstance(status, int):
            message = short_text(getattr(error, "message", error))
            raise RejectedByService(message, status if 400 <= status <= 599 else 500) from error
        raise
