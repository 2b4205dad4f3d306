"""Replace MXNet's image decoder with ours, in worker processes.

This covers every function with which a service decodes or reads an image, under any name it
imports: ``mx.image.imdecode``, ``mx.image.imread``, ``mx.nd._internal._cvimdecode``,
``mx.npx.image.imdecode``, ``ImageIter``. The functions are replaced while mxnet is being imported,
before other code can take a reference to the originals.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mms.engines import images
from mms.engines.import_hook import after_import
from mms.errors import UndecodableImage

#: The module that makes the functions public. Once it has run, the modules below exist; those that
#: import the functions from here come later.
_PUBLIC = "mxnet.image.image"
#: Names of the generated functions and of their wrappers.
_DECODERS = ("imdecode", "_cvimdecode", "cvimdecode")
_READERS = ("imread", "_cvimread", "cvimread")
_MODULES = (
    _PUBLIC,
    "mxnet.image",
    "mxnet.numpy_extension.image",
    "mxnet.ndarray._internal",
    "mxnet.ndarray.gen__internal",
    "mxnet.ndarray.numpy._internal",
)


def install() -> None:
    """Replace the decoder of mxnet now, or as soon as mxnet is imported."""
    after_import(_PUBLIC, _replace)


def _replace() -> None:
    for name in _MODULES:
        module = sys.modules.get(name)
        for attribute in () if module is None else vars(module).keys() & {*_DECODERS}:
            setattr(module, attribute, imdecode)
        for attribute in () if module is None else vars(module).keys() & {*_READERS}:
            setattr(module, attribute, imread)


def imdecode(
    buf: Any,
    flag: int = 1,
    to_rgb: bool = True,
    out: Any = None,
    name: str | None = None,
    **options: Any,
) -> Any:
    """Decode an image, as ``mx.image.imdecode`` does.

    Args:
        buf: The encoded bytes, or a uint8 array of them.
        flag: 1 for three channels, 0 for grey.
        to_rgb: RGB order (MXNet's) rather than BGR (OpenCV's).
        out: NDArray to write to.
        name: Ignored, as MXNet does.
        options: None are supported.

    Returns:
        uint8 NDArray of (H, W, 3), or (H, W, 1) for grey.

    Raises:
        UndecodableImage: Also an MXNetError. The bytes are not an image.
        ValueError: `buf` is a string or of another unsupported type.
    """
    import mxnet as mx

    if options:
        raise mx.base.MXNetError(f"imdecode has no argument {', '.join(map(repr, options))}")
    try:
        pixels = images.decode(_as_bytes(buf, mx), grey=int(flag) == 0)
    except UndecodableImage as error:
        raise undecodable(mx)(str(error)) from error
    if not _is_true(to_rgb):
        pixels = pixels[..., ::-1]
    if out is not None:
        if out.shape != pixels.shape:
            raise mx.base.MXNetError(f"out has shape {out.shape}, the image {pixels.shape}")
        out[:] = pixels
        return out
    make = mx.np.array if mx.util.is_np_array() else mx.nd.array
    return make(pixels, dtype=np.uint8, ctx=mx.cpu())


def imread(filename: str, flag: int = 1, to_rgb: bool = True, **options: Any) -> Any:
    """Read an image from a file, as ``mx.image.imread`` does, and decode it like any other.

    Some services write a client's data to a file and read it from there.

    Raises:
        UndecodableImage: Also an MXNetError. The file is missing or is not an image.
    """
    try:
        data = Path(filename).read_bytes()
    except OSError as error:
        import mxnet as mx

        raise mx.base.MXNetError(f"{filename} cannot be read: {error.strerror}") from error
    return imdecode(data, flag, to_rgb, **options)


@functools.cache
def undecodable(mx: Any) -> type[UndecodableImage]:
    """Return a subclass of UndecodableImage that is an MXNetError as well.

    v0.4 services catch MXNetError where they decode images.
    """

    class UndecodableByMXNet(UndecodableImage, mx.base.MXNetError):  # type: ignore[misc]
        pass

    UndecodableByMXNet.__name__ = UndecodableByMXNet.__qualname__ = UndecodableImage.__name__
    return UndecodableByMXNet


def _as_bytes(buf: Any, mx: Any) -> bytes:
    if isinstance(buf, mx.nd.NDArray):
        buf = buf.asnumpy()
    if not isinstance(buf, (bytes, bytearray, memoryview, np.ndarray)):
        raise ValueError(
            "buf must be of type bytes, bytearray, memoryview or numpy.ndarray, not "
            f"{type(buf).__name__}"
        )
    return buf.tobytes() if isinstance(buf, np.ndarray) else bytes(buf)


def _is_true(flag: Any) -> bool:
    """Interpret a flag as the engine does, which accepts numbers also as strings."""
    return flag not in (0, False, "0", "False", "false")
