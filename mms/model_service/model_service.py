"""PUBLIC: the base classes of all v0.4 services. Imports neither mxnet nor numpy."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Collection
from types import ModuleType
from typing import Any, ClassVar

URL_PREFIX = ("http://", "https://", "s3://")


class ModelService:
    """One model behind one service; created once per worker process.

    Args:
        model_name: Name in the archive's manifest.
        model_dir: Folder of the unpacked archive.
        manifest: MANIFEST.json as a dict.
        gpu: Number of the GPU to run on; None is the CPU.
    """

    def __init__(
        self, model_name: str, model_dir: str, manifest: dict[str, Any], gpu: int | None = None
    ) -> None:
        self.ctx: Any = None

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
