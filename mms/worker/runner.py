"""Run batches through a v0.4 service: decode, preprocess, forward, postprocess, encode.

With a batch size above 1, any service can be batched without being written for it: each
request's `_preprocess` and `_postprocess` run on a shallow copy of their own, so what one
request stores on ``self`` is never seen by another, and only `_inference` sees the joined
arrays. Whatever goes wrong with one request stays with it.
"""

from __future__ import annotations

import copy
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from mms import log
from mms.archive.signature import Signature
from mms.errors import (
    DeadlineExceeded,
    InvalidRequest,
    MMSError,
    RejectedByService,
    UndecodableImage,
)
from mms.model_service.model_service import SingleNodeService
from mms.protocol import MAX_PAYLOAD_BYTES, Answer, Request, Result, Stage
from mms.worker.engine import import_mxnet
from mms.worker.failure import from_exception
from mms.worker.request import decode_inputs
from mms.worker.response import encode_output

mx = import_mxnet()
logger = logging.getLogger("mms.worker")

#: Joint forwards may fail this often in a row, with the requests then succeeding one by one,
#: before the service is taken for one that cannot be batched.
_MAX_JOINT_FAILURES = 3
#: Leaves room in the frame for its table and metas.
_MAX_ANSWERS_BYTES = MAX_PAYLOAD_BYTES - (64 << 20)


class _Job:
    """One request on its way through the stages; `answer` ends it."""

    __slots__ = ("answer", "inputs", "request", "service", "value")

    def __init__(self, request: Request, service: Any) -> None:
        self.request = request
        self.service = service
        self.inputs: list[Any] = []
        self.value: Any = None
        self.answer: Answer | MMSError | None = None


class ServiceRunner:
    """Runs one service.

    Args:
        service: A ModelService, or whatever else answers `inference`.
        signature: The model's.
        model_dir: Folder of the service's code, for error messages.
        batch_size: Most requests joined in one forward pass.
        max_response_bytes: Longest answer that may be sent.
    """

    def __init__(
        self,
        service: Any,
        signature: Signature,
        model_dir: str,
        batch_size: int,
        max_response_bytes: int,
    ) -> None:
        self._service = service
        self._signature = signature
        self._model_dir = model_dir
        self.batch_size = batch_size
        self._max_response_bytes = max_response_bytes
        self._has_stages = (
            isinstance(service, SingleNodeService)
            and type(service).inference is SingleNodeService.inference
        )
        self._joint_failures = 0
        self._seconds = [0.0] * len(Stage)
        self._room_bytes = _MAX_ANSWERS_BYTES
        self._started = 0.0

    @property
    def is_batchable(self) -> bool:
        """Whether requests can be joined in one forward pass."""
        return self._has_stages and self._joint_failures < _MAX_JOINT_FAILURES

    def run(self, requests: Sequence[Request]) -> Result:
        """Answer each request, in order."""
        self._seconds = [0.0] * len(Stage)
        self._room_bytes = _MAX_ANSWERS_BYTES
        self._started = time.perf_counter()
        jobs = [_Job(request, self._service) for request in requests]
        for job in jobs:
            self._guard(job, Stage.DECODE, self._decode)
        alive = [job for job in jobs if job.answer is None]
        if self.batch_size > 1 and self.is_batchable:
            for start in range(0, len(alive), self.batch_size):
                self._run_joined(alive[start : start + self.batch_size])
        else:
            for job in alive:
                self._run_alone(job)
        for job in alive:
            self._guard(job, Stage.ENCODE, self._encode)
        log.request_id.set("")
        answers = [job.answer for job in jobs if job.answer is not None]
        decode, preprocess, inference, postprocess, encode = self._seconds
        return Result(answers, (decode, preprocess, inference, postprocess, encode))

    def _run_alone(self, job: _Job) -> None:
        self._drop_if_late(job)
        if not self._has_stages:
            self._guard(job, Stage.INFERENCE, self._whole_inference)
            return
        self._guard(job, Stage.PREPROCESS, self._preprocess)
        self._guard(job, Stage.INFERENCE, self._inference)
        self._guard(job, Stage.POSTPROCESS, self._postprocess)

    def _run_joined(self, jobs: list[_Job]) -> None:
        for job in jobs:
            self._drop_if_late(job)
            job.service = copy.copy(self._service)
            self._guard(job, Stage.PREPROCESS, self._preprocess)
        groups: dict[Hashable, list[_Job]] = defaultdict(list)
        for job in jobs:
            if job.answer is None:
                # Arrays that do not join share a key with nobody.
                key = _join_key(job.value)
                groups[id(job) if key is None else key].append(job)
        for group in groups.values():
            if len(group) == 1 or not self._infer_jointly(group):
                for job in group:
                    self._guard(job, Stage.INFERENCE, self._inference)
                if len(group) > 1 and all(job.answer is None for job in group):
                    self._note_joint_failure()
        for job in jobs:
            self._guard(job, Stage.POSTPROCESS, self._postprocess)

    def _drop_if_late(self, job: _Job) -> None:
        """Spare the model a request that has been answered 504 while it waited in this frame."""
        waited_ms = (time.perf_counter() - self._started) * 1000
        if job.answer is None and waited_ms > job.request.ms_left:
            job.answer = DeadlineExceeded("the request waited in the worker past its deadline")

    def _infer_jointly(self, jobs: list[_Job]) -> bool:
        """Run one forward pass for all jobs; False if they must run one by one."""
        log.request_id.set(",".join(job.request.meta.request_id for job in jobs))
        started = time.perf_counter()
        rows = [_rows(job.value) for job in jobs]
        service = copy.copy(self._service)
        before = dict(vars(service))
        try:
            outputs = service._inference(_join([job.value for job in jobs]))
            parts = _split(outputs, rows)
            _check_unchanged(before, vars(service))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - one by one tells whose fault
            logger.warning(
                "a batch of %d failed as one (%s: %s); its requests run one by one",
                len(jobs),
                type(error).__name__,
                error,
            )
            return False
        finally:
            self._seconds[Stage.INFERENCE] += time.perf_counter() - started
        self._joint_failures = 0
        for job, part in zip(jobs, parts, strict=True):
            job.value = part
        return True

    def _note_joint_failure(self) -> None:
        """Count a batch that failed as one although none of its requests was at fault."""
        self._joint_failures += 1
        if not self.is_batchable:
            logger.warning("the service cannot be batched; its requests run one by one from now on")

    def _guard(self, job: _Job, stage: Stage, step: Callable[[_Job], None]) -> None:
        """Run one step of one job; an exception becomes its answer."""
        if job.answer is not None and stage is not Stage.ENCODE:
            return
        if isinstance(job.answer, MMSError):
            return
        log.request_id.set(job.request.meta.request_id)
        started = time.perf_counter()
        try:
            step(job)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - user code raises anything
            failure = from_exception(error, stage.name.lower(), self._model_dir)
            job.answer = self._blame_image(failure, job, stage)
            self._log(job.answer)
        finally:
            self._seconds[stage] += time.perf_counter() - started

    def _decode(self, job: _Job) -> None:
        job.inputs = decode_inputs(job.request, self._signature)

    def _whole_inference(self, job: _Job) -> None:
        job.value = job.service.inference(job.inputs)

    def _preprocess(self, job: _Job) -> None:
        value = job.service._preprocess(job.inputs)
        # The original base class returned an iterator.
        job.value = list(value) if isinstance(value, Iterator) else value

    def _inference(self, job: _Job) -> None:
        job.value = job.service._inference(job.value)
        # MXNet computes later and raises later; here both belong to this stage.
        for array in _arrays(job.value) or ():
            if isinstance(array, mx.nd.NDArray):
                array.wait_to_read()

    def _postprocess(self, job: _Job) -> None:
        job.value = job.service._postprocess(job.value)

    def _encode(self, job: _Job) -> None:
        # The answers of a batch travel in one frame; alone, each one fits.
        limit = min(self._max_response_bytes, self._room_bytes)
        job.answer = encode_output(job.value, job.request.meta, self._signature, limit)
        self._room_bytes -= len(job.answer.body)

    def _blame_image(self, failure: MMSError, job: _Job, stage: Stage) -> MMSError:
        """Tell a bad image from a bad service where the service decodes images itself."""
        if (
            not self._signature.takes_images
            or stage not in (Stage.PREPROCESS, Stage.INFERENCE)
            or isinstance(failure, (InvalidRequest, RejectedByService))
        ):
            return failure
        for name, data in zip(self._signature.input_names, job.inputs, strict=True):
            try:
                mx.image.imdecode(bytes(data)).wait_to_read()
            except (mx.base.MXNetError, ValueError):
                return UndecodableImage(
                    f"the {len(data)} bytes sent for input {name!r} are not an image that can be "
                    "decoded (JPEG, PNG, BMP, WebP, ...)",
                    failure.detail,
                )
        return failure

    def _log(self, failure: MMSError) -> None:
        if isinstance(failure, (InvalidRequest, RejectedByService)):
            logger.info("%s: %s", failure.code, failure)
            return
        detail = failure.detail
        logger.error("%s", failure, extra={"traceback": detail.traceback if detail else ""})


def _arrays(value: Any) -> list[Any] | None:
    """Give the arrays that a value is or consists of; None if it is anything else."""
    parts = list(value) if isinstance(value, (list, tuple)) else [value]
    if parts and all(isinstance(part, (mx.nd.NDArray, np.ndarray)) for part in parts):
        return parts
    return None


def _join_key(value: Any) -> Hashable | None:
    """Give what arrays must have in common to be joined along axis 0; None if they cannot be."""
    arrays = _arrays(value)
    if arrays is None or any(array.ndim == 0 for array in arrays):
        return None
    if len({array.shape[0] for array in arrays}) != 1:
        return None
    return (
        isinstance(value, (list, tuple)),
        *(
            (type(a), a.shape[1:], np.dtype(a.dtype).str, str(getattr(a, "context", "")))
            for a in arrays
        ),
    )


def _check_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Refuse a joint forward that kept something on ``self`` for `_postprocess`.

    It would be the whole batch's, and which part of it is whose nobody can tell.

    Raises:
        ValueError: An attribute is new or another.
    """
    for name, value in after.items():
        if name not in before or before[name] is not value:
            raise ValueError(f"_inference stores self.{name}, which cannot be split")


def _rows(value: Any) -> int:
    first = value[0] if isinstance(value, (list, tuple)) else value
    return int(first.shape[0])


def _join(values: list[Any]) -> Any:
    if not isinstance(values[0], (list, tuple)):
        return _concatenate(values)
    return [_concatenate(column) for column in zip(*values, strict=True)]


def _concatenate(arrays: Sequence[Any]) -> Any:
    if isinstance(arrays[0], np.ndarray):
        return np.concatenate(arrays)
    return mx.nd.concat(*arrays, dim=0)


def _split(outputs: Any, rows: list[int]) -> list[Any]:
    """Cut outputs along axis 0 into the rows of each request.

    Raises:
        ValueError: The outputs do not have one row per row put in.
    """
    arrays = _arrays(outputs)
    total = sum(rows)
    if arrays is None:
        raise ValueError(f"_inference gave a {type(outputs).__name__}, which cannot be split")
    if any(array.ndim == 0 or array.shape[0] != total for array in arrays):
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"_inference gave {shapes} for {total} rows, which cannot be split")
    columns = [_cut(array, rows) for array in arrays]
    if not isinstance(outputs, (list, tuple)):
        return columns[0]
    return [list(parts) for parts in zip(*columns, strict=True)]


def _cut(array: Any, rows: list[int]) -> list[Any]:
    ends = np.cumsum(rows)
    if isinstance(array, np.ndarray):
        return np.split(array, ends[:-1])
    # Read once for the whole batch: slicing an NDArray costs an engine operation per request.
    values = array.asnumpy()
    return [
        mx.nd.from_numpy(values[end - count : end]) if count else array[0:0]
        for end, count in zip(ends, rows, strict=True)
    ]
