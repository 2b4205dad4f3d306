"""Make a loaded model answer a request before it is declared ready.

The first forward pass also plans memory and is slow. Without a sample request in the archive, a
request of zeros is generated from the signature.
"""

from __future__ import annotations

import logging
from typing import Any

from mms.archive.manifest import Manifest
from mms.archive.signature import Signature
from mms.errors import MMSError, ModelLoadFailed, ProtocolError
from mms.wire.codec import decode_error, encode_error
from mms.wire.messages import LoadSpec, Request
from mms.worker.failure import reason_of
from mms.worker.isolated import run_isolated
from mms.worker.process import may_fork
from mms.worker.runner import ServiceRunner
from mms.worker.samples import zero_requests
from mms.worker.slips import refuse_uncalled_stages, warn_of_ignored_declarations

logger = logging.getLogger("mms.worker")

#: Exceptions of a network that does not accept its inputs.
_NETWORK_ERRORS = ("MXNetError", "InvalidInputShape")
#: Time limit of user code for a request of zeros, seconds.
_ZEROS_LIMIT_S = 20.0


def warm_up(
    runner: ServiceRunner,
    service: Any,
    signature: Signature,
    manifest: Manifest,
    sample: Request | None,
    spec: LoadSpec,
) -> None:
    """Run the archive's sample request, or one of zeros.

    Raises:
        ModelLoadFailed: It fails, and so would every request; or, if the spec is strict, a stage
            was never called.
    """

    def answers() -> bool:
        if sample is None:
            return _try_zeros(runner, service, signature, spec)
        return _run_sample(runner, sample, manifest)

    warn_of_ignored_declarations(service, signature)
    if spec.is_strict:
        refuse_uncalled_stages(service, answers)
    else:
        answers()


def _run_sample(runner: ServiceRunner, sample: Request, manifest: Manifest) -> bool:
    """Run the archive's sample request once: the first forward pass plans memory and is slow.

    Returns:
        True: it succeeded.

    Raises:
        ModelLoadFailed: It failed.
    """
    # Quietly: the error that is raised carries the traceback.
    answer = runner.answer_quietly(sample)
    if isinstance(answer, MMSError):
        name = manifest.serving.sample.file if manifest.serving.sample else ""
        raise ModelLoadFailed(
            f"the archive's sample request {name!r} failed: {reason_of(answer)}", answer.detail
        ) from answer
    return True


def _try_zeros(runner: ServiceRunner, service: Any, signature: Signature, spec: LoadSpec) -> bool:
    """Run a request of zeros that matches the signature, so that a broken model is never READY.

    User code may need more than zeros, and may keep state: it runs in a fork only, and a failure
    counts only if it is the network's, whose inputs match the signature.

    Returns:
        Whether it succeeded.

    Raises:
        ModelLoadFailed: Every request would fail as well.
    """
    stages = ("inference", "_preprocess", "_inference", "_postprocess")
    is_ours = {stage: _owner(service, stage).startswith("mms.") for stage in stages}
    if all(is_ours.values()) or spec.is_strict:
        failure = _answer_zeros(runner, signature)
    elif is_ours["inference"] and is_ours["_preprocess"] and may_fork(spec) and runner.can_fork:
        failure = _answer_zeros_in_fork(runner, signature)
    else:
        return False
    if failure is None:
        return True
    shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in signature.inputs)
    has_free = any(0 in spec.shape[1:] for spec in signature.inputs)
    stage, type_ = (failure.detail.stage, failure.detail.type) if failure.detail else ("", "")
    is_networks = is_ours.get(f"_{stage}", False) or type_ in _NETWORK_ERRORS
    if is_ours["_preprocess"] and is_networks and not has_free:
        raise ModelLoadFailed(
            f"the model cannot answer a request that fits its signature ({shapes}): "
            f"{reason_of(failure)}",
            failure.detail,
        ) from failure
    logger.info(
        "a request of zeros, generated from the signature (%s), failed: %s; add a sample request "
        "(%s) to have the model tested when it is loaded",
        shapes,
        reason_of(failure),
        "sample.jpg" if signature.takes_images else "sample.json",
    )
    return False


def _answer_zeros(runner: ServiceRunner, signature: Signature) -> MMSError | None:
    """Return the error of requests of zeros if all sizes fail; None if one succeeds."""
    failure: MMSError | None = None
    for request in zero_requests(signature):
        answer = runner.answer_quietly(request)
        if not isinstance(answer, MMSError):
            return None
        failure = failure or answer
    return failure


def _answer_zeros_in_fork(runner: ServiceRunner, signature: Signature) -> MMSError | None:
    def work() -> str:
        failure = _answer_zeros(runner, signature)
        return encode_error(failure).decode() if failure else ""

    try:
        text = run_isolated(work, _ZEROS_LIMIT_S)
        return decode_error(text.encode()) if text else None
    except (OSError, ValueError, ProtocolError) as error:
        return MMSError(f"its process failed: {error}")


def _owner(service: Any, method: str) -> str:
    """Return the module of the class that defines a service's method; "" if none does."""
    owner = next((cls for cls in type(service).__mro__ if method in vars(cls)), None)
    return owner.__module__ if owner else ""
