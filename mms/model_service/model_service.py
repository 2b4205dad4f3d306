"""PUBLIC: the base classes of all v0.4 services. Imports neither mxnet nor numpy."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import sys
from collections.abc import Collection
from types import ModuleType
from typing import Any, ClassVar

URL_PREFIX = ("http://", "https://", "s3://")
#: Python's parser takes a hundred times the memory of a literal.
_MAX_LITERAL_BYTES = 1 << 20


class ModelService:
    """One model behind one service; created once per worker process.

    Args:
        model_name: Name in the archive's manifest.
        model_dir: Folder of the unpacked archive.
        manifest: MANIFEST.json as a dict.
        gpu: Number of the GPU to run on; None is the CPU.
    """

    #: 1.x's `mms.context.Context`, once `initialize` has been called.
    _context: Any = None

    def __init__(
        self, model_name: str, model_dir: str, manifest: dict[str, Any], gpu: int | None = None
    ) -> None:
        self.ctx: Any = None

    def initialize(self, context: Any) -> None:
        """Keep the context as ``self._context``; called once after ``__init__``, as in 1.x."""
        if "_context" not in vars(self):
            self._context = context

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Any]:
        """Answer a request in 1.x's form, for subclasses that override this method.

        Args:
            data: The request as its only entry: values by name, or as ``body`` or ``data``.
            context: 1.x's context; not used.

        Returns:
            The answer of `inference` if it is a list, else a list of it.
        """
        signature = self.signature
        name = signature["inputs"][0]["data_name"]
        values = [data[0][key] for key in (name, "body", "data") if data[0].get(key) is not None]
        value = values[0] if values else None
        if signature["input_type"] == "application/json" and isinstance(value, (bytes, bytearray)):
            value = _literal(value)
        answer = self.inference([value])
        return answer if isinstance(answer, list) else [answer]

    def inference(self, data: list[Any]) -> Any:
        """Answer one request.

        Args:
            data: One entry per input of the signature: parsed JSON, or the bytes of an image.

        Returns:
            The answer to the client: anything that JSON can express, NDArrays and NumPy values
            included.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define inference(self, data)")

    def ping(self) -> Any:
        """Raise if the service cannot serve."""
        return "healthy!"

    @property
    def signature(self) -> dict[str, Any]:
        """signature.json as a dict; a subclass that reads one overrides this."""
        return {}


def _literal(text: bytes | bytearray) -> Any:
    """Return the value of JSON, or of a Python literal of moderate length.

    Raises:
        ValueError: It is neither.
    """
    try:
        return json.loads(text)
    except ValueError:
        if len(text) > _MAX_LITERAL_BYTES:
            raise
    try:
        return ast.literal_eval(text.decode())
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("the request is neither JSON nor a Python literal") from error


class SingleNodeService(ModelService):
    """A service in three stages, each of which a subclass may override.

    Requests are answered by ``_postprocess(_inference(_preprocess(data)))``, one after the other:
    a stage may return arrays in memory that its next call overwrites. With a batch size above 1
    the server runs ``_preprocess`` and ``_postprocess`` once per request, each pair on a shallow
    copy of the service, and ``_inference`` once for the batch, with its arrays joined along axis 0
    and its outputs split again; but only if a trial at load yields the same answers this way, and
    nothing but attributes is changed on ``self``. A service that overrides `inference` is never
    batched.

    Attributes:
        array_stages: The stages defined by this very class that also work on arrays: a
            ``_preprocess`` that accepts them as they are, a ``_postprocess`` that only formats the
            ones that ``_inference`` returned. Tensor requests (V2) then go in and out as arrays.
            A class that overrides a stage must list it itself; the base's list covers only the
            base's stages.
    """

    array_stages: ClassVar[Collection[str]] = ("_postprocess",)

    def inference(self, data: list[Any]) -> Any:
        """Run the three stages."""
        return self._postprocess(self._inference(self._preprocess(data)))

    def _inference(self, data: Any) -> Any:
        """Run the network: preprocessed arrays in, output arrays out."""
        return data

    def _preprocess(self, data: list[Any]) -> Any:
        """Turn a request's inputs into arrays with a leading batch axis."""
        return data

    def _postprocess(self, data: Any) -> Any:
        """Turn the network's outputs into the answer."""
        return data


class MultiNodesService(ModelService):
    """Does nothing, as in 0.4: services import the name."""


def load_service(path: str, name: str | None = None) -> ModuleType:
    """Import a service file as a module.

    Args:
        path: The ``.py`` file. Its folder is added to ``sys.path``, so that it can import modules
            beside it.
        name: Name of the module; the file's own by default.

    Raises:
        FileNotFoundError: There is no such file.
        Exception: Any exception of the file itself.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"service file {path} does not exist")
    folder = os.path.dirname(os.path.abspath(path))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = name or os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: dataclasses and pickle look their module up by name. But a service
    # called random.py must not replace the standard `random`.
    is_free = name not in sys.modules
    if is_free:
        sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if is_free:
            del sys.modules[name]
        raise
    return module
