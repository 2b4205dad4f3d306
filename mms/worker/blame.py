"""Decide whose fault a failed request is: the client's or the service's.

Services of 0.4 may take inputs that their signature does not describe: objects, texts, lists that
`_preprocess` reshapes. So inputs are not compared with the signature before a hook sees them, but
after it has failed: then a contradiction is the reason, unless the service is known to answer
inputs that contradict its signature in this respect.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any

from mms.archive.signature import Signature
from mms.engines.images import bad_image
from mms.errors import (
    ErrorDetail,
    InferenceFailed,
    InvalidInputShape,
    InvalidRequest,
    MMSError,
    OutOfMemory,
    RejectedByService,
    UndecodableImage,
)
from mms.wire.messages import Request, Stage
from mms.worker.mismatch import Kind, Mismatch, find_mismatch
from mms.worker.samples import SAMPLE_ID

#: What NumPy and MXNet raise for elements that are no numbers.
_OF_CONVERSION = ("TypeError", "ValueError", "MXNetError", "InvalidInputShape")
_OF_INPUTS = (Stage.PREPROCESS, Stage.INFERENCE, Stage.POSTPROCESS)


class Blame:
    """Judges the failures of one service.

    Args:
        service: The service.
        signature: The model's signature.
        folder: Folder of the service's code.

    Attributes:
        is_settled: Whether an answer has shown what the service takes.
    """

    def __init__(self, service: Any, signature: Signature, folder: str) -> None:
        self.is_settled = signature.takes_images
        self._folder = folder
        self._hook = _own_hook(service, "_preprocess")
        # How the service is known to take what contradicts its signature.
        self._tolerated: Kind | None = None

    def note_answer(self, inputs: Sequence[Any], signature: Signature) -> None:
        """Learn from the first answer whether the service takes other inputs than it states."""
        self.is_settled = True
        found = find_mismatch(inputs, signature)
        self._tolerated = found.kind if found else None

    def judge(
        self,
        failure: MMSError,
        request: Request,
        inputs: Sequence[Any],
        signature: Signature,
        stage: Stage,
    ) -> MMSError:
        """Return the error to answer with.

        Args:
            failure: The failure of a stage.
            request: The request.
            inputs: One value per input, as far as they were decoded.
            signature: What the service says of them.
            stage: The stage.
        """
        if stage not in _OF_INPUTS or isinstance(failure, RejectedByService):
            return failure
        if signature.takes_images:
            judged = _judge_images(failure, inputs, signature, stage)
        else:
            judged = self._judge_values(failure, request, inputs, signature, stage)
        return self._judge_shape(judged, stage) if judged is failure else judged

    def _judge_values(
        self,
        failure: MMSError,
        request: Request,
        inputs: Sequence[Any],
        signature: Signature,
        stage: Stage,
    ) -> MMSError:
        if request.meta.request_id == SAMPLE_ID:
            # The archive's own: whoever packs it needs the exception.
            return failure
        if self._hook is None and stage is Stage.PREPROCESS and type(failure) is InvalidRequest:
            return _in_clients_words(failure, inputs, signature)
        if isinstance(failure, OutOfMemory):
            # An array of strings that are as long as the longest may not fit into memory.
            is_candidate = self._hook is None and stage is Stage.PREPROCESS
        else:
            is_candidate = type(failure) is InferenceFailed or self._is_of_hook(failure, stage)
        if not is_candidate:
            return failure
        found = self._mismatch(inputs, signature)
        if found is None or not _explains(found, failure):
            return failure
        error = InvalidInputShape if found.kind is Kind.SHAPE else InvalidRequest
        return error(found.message, failure.detail)

    def _mismatch(self, inputs: Sequence[Any], signature: Signature) -> Mismatch | None:
        found = find_mismatch(inputs, signature)
        return None if found and found.kind is self._tolerated else found

    def _judge_shape(self, failure: MMSError, stage: Stage) -> MMSError:
        """Return the service's error for arrays of the wrong shape that its hook has made."""
        if self._hook is None or not self._is_of_hook(failure, stage):
            return failure
        code = self._hook.__code__
        where = f"{os.path.relpath(code.co_filename, self._folder)}:{code.co_firstlineno}"
        type_ = failure.detail.type if failure.detail else ""
        return InferenceFailed(
            f"`_preprocess` gave arrays that do not fit the signature: {failure}",
            ErrorDetail("preprocess", type_, where, reason="in _preprocess"),
        )

    def _is_of_hook(self, failure: MMSError, stage: Stage) -> bool:
        """Return whether arrays failed the check that follows the service's `_preprocess`."""
        return (
            self._hook is not None
            and stage is Stage.INFERENCE
            and isinstance(failure, InvalidInputShape)
        )


def _own_hook(service: Any, name: str) -> Any:
    """Return the function of a hook that the service's own code defines, or None."""
    hook = getattr(type(service), name, None) or vars(service).get(name)
    hook = inspect.unwrap(hook) if callable(hook) else None
    if hook is None or getattr(hook, "__module__", "").startswith("mms."):
        return None
    return hook if hasattr(hook, "__code__") else None


def _judge_images(
    failure: MMSError, inputs: Sequence[Any], signature: Signature, stage: Stage
) -> MMSError:
    """Distinguish a bad image from a bad service if the service decodes images itself."""
    is_clients = isinstance(failure, InvalidRequest) and not isinstance(
        failure, (UndecodableImage, InvalidInputShape)
    )
    if is_clients or stage is Stage.POSTPROCESS:
        return failure
    blamed = bad_image(signature.input_names, inputs)
    if blamed is None:
        return failure
    blamed.detail = failure.detail
    return blamed


def _in_clients_words(failure: MMSError, inputs: Sequence[Any], signature: Signature) -> MMSError:
    """Return a refusal of the base class with its reason in other words than NumPy's."""
    found = find_mismatch(inputs, signature)
    if found is None or not found.reason:
        return failure
    what = str(failure).partition(": ")[0]
    return InvalidRequest(f"{what}: {found.reason}", failure.detail)


def _explains(found: Mismatch, failure: MMSError) -> bool:
    """Return whether a contradiction is the reason of a failure.

    Texts and objects where the signature says numbers are common in services of 0.4: they
    explain only what converting them to numbers raises.
    """
    if isinstance(failure, OutOfMemory):
        return found.kind is Kind.ELEMENTS
    if found.kind is not Kind.ELEMENTS:
        return True
    return failure.detail is not None and failure.detail.type in _OF_CONVERSION
