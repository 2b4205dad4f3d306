"""Have a loaded model answer a request before it is called ready.

The first forward also plans memory and is slow. Without a sample request in the archive, one of
zeros is made from the signature.
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
from mms.worker.slips import refuse_uncalled_stages

logger = logging.getLogger("mms.worker")

#: What a network raises that cannot take what it is given.
_NETWORK_ERRORS = ("MXNetError", "InvalidInputShape")
#: Longest that user code gets for a request of zeros, seconds.
_ZEROS_LIMIT_S = 20.0


def warm_up(
    runner: ServiceRunner,
    service: Any,
    signature: Signature,
    manifest: Manifest,
    sample: Request | None,
    spec: LoadSpec,
) -> None:
    """Answer the archive's sample request, or one of zeros.

    Raises:
        ModelLoadFailed: It is not answered, and every request would fail as well; or, where the
            spec is strict, a stage was never called.
    """

    def answers() -> bool:
        if sample is None:
            return _try_zeros(runner, service, signature, spec)
        return _run_sample(runner, sample, manifest)

    if spec.is_strict:
        refuse_uncalled_stages(service, answers)
    else:
        answers()


def _run_sample(runner: ServiceRunner, sample: Request, manifest: Manifest) -> bool:
    """Answer the archive's sample request once: the first forward plans memory and is slow.

    Returns:
        True: it is answered.

    Raises:
        ModelLoadFailed: It is not answered.
    """
    answer = runner.run([sample]).answers[0]
    if isinstance(answer, MMSError):
        name = manifest.serving.sample.file if manifest.serving.sample else ""
        raise ModelLoadFailed(
            f"the archive's sample request {name!r} failed: {reason_of(answer)}", answer.detail
        ) from answer
    return True


def _try_zeros(runner: ServiceRunner, service: Any, signature: Signature, spec: LoadSpec) -> bool:
    """Answer a request of zeros that fits the signature, so that what cannot run is not READY.

    User code may want more than zeros, and keeps what it has seen: it is tried in a fork only, and
    its failure counts only if it is the network's, which got what the signature promises.

    Returns:
        Whether it is answered.

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
        "a request of zeros, made from the signature (%s), is not answered: %s; add a sample "
        "request (sample.json) to have the model tried when it is loaded",
        shapes,
        reason_of(failure),
    )
    return False


def _answer_zeros(runner: ServiceRunner, signature: Signature) -> MMSError | None:
    """Return why no request of zeros is answered, of whatever size; None if one is."""
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
