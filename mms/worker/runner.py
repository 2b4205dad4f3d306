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

from mms import log
from mms.archive.signature import Signature
from mms.errors import (
    DeadlineExceeded,
    InvalidRequest,
    MMSError,
    RejectedByService,
    UndecodableImage,
)
from mms.metrics.metrics_store import MetricsStore
from mms.model_service.model_service import SingleNodeService
from mms.protocol import MAX_ANSWERS_BYTES, V2_ROUTE, Answer, LoadSpec, Request, Result, Stage
from mms.worker.arrays import arrays_of, is_ndarray, join, join_key, rows_of, split
from mms.worker.content import unpacked
from mms.worker.failure import from_exception, log_failure
from mms.worker.images import is_image
from mms.worker.request import decode_inputs
from mms.worker.response import encode_json, encode_output, image_bytes, within
from mms.worker.v2 import InferRequest, decode_request, encode_response, header_length
from mms.worker.v2_model import (
    gives_tensors,
    network_outputs,
    outputs_of,
    raw_input,
    service_inputs,
    takes_tensors,
)

logger = logging.getLogger("mms.worker")

#: Joint forwards may fail this often in a row, with the requests then succeeding one by one,
#: before the service is taken for one that cannot be batched.
_MAX_JOINT_FAILURES = 3


class _Job:
    """One request on its way through the stages; `answer` ends it.

    `asked` is what it says if it came in the Open Inference Protocol V2.
    """

    __slots__ = ("answer", "asked", "inputs", "request", "service", "value")

    def __init__(self, request: Request, service: Any) -> None:
        self.request = request
        self.service = service
        self.inputs: list[Any] = []
        self.value: Any = None
        self.answer: Answer | MMSError | None = None
        self.asked: InferRequest | None = None


class ServiceRunner:
    """Runs one service.

    Args:
        service: A ModelService, or whatever else answers `inference`.
        signature: The model's.
        spec: What the process was told to serve.
    """

    def __init__(self, service: Any, signature: Signature, spec: LoadSpec) -> None:
        self._service = service
        self._signature = signature
        self._model_name = spec.model_name
        self._version = spec.version
        self._model_dir = spec.folder
        self.batch_size = spec.batch_size
        self._limits = spec.limits
        self._max_response_bytes = spec.max_response_bytes
        # Unless the service has something of that name itself.
        self._metrics: MetricsStore | None = None
        if not hasattr(service, "metrics"):
            self._metrics = service.metrics = MetricsStore(None, spec.model_name)
        self._has_stages = (
            isinstance(service, SingleNodeService)
            and type(service).inference is SingleNodeService.inference
        )
        self.takes_tensors = self._has_stages and takes_tensors(service, signature)
        self.gives_tensors = self._has_stages and gives_tensors(service, signature)
        self._joint_failures = 0
        self._seconds = [0.0] * len(Stage)
        self._room_bytes = MAX_ANSWERS_BYTES
        self._started = 0.0

    @property
    def can_fork(self) -> bool:
        """Whether the service survives a fork; one that knows better says ``can_fork = False``."""
        return bool(getattr(self._service, "can_fork", True))

    def take_metrics(self) -> list[Any]:
        """Give what the service has reported on ``self.metrics`` since the last call."""
        if self._metrics is None or not self._metrics.store:
            return []
        report = self._metrics.report()
        self._metrics = self._service.metrics = MetricsStore(None, self._model_name)
        return report

    @property
    def is_batchable(self) -> bool:
        """Whether requests can be joined; a service may say ``can_batch = False``."""
        return (
            self._has_stages
            and self._joint_failures < _MAX_JOINT_FAILURES
            and bool(getattr(self._service, "can_batch", True))
        )

    def run(self, requests: Sequence[Request]) -> Result:
        """Answer each request, in order."""
        self._seconds = [0.0] * len(Stage)
        self._room_bytes = MAX_ANSWERS_BYTES
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
                key = join_key(job.value)
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
        rows = [rows_of(job.value) for job in jobs]
        service = copy.copy(self._service)
        before = dict(vars(service))
        try:
            outputs = service._inference(join([job.value for job in jobs]))
            parts = split(outputs, rows)
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
            log_failure(job.answer)
        finally:
            self._seconds[stage] += time.perf_counter() - started

    def _decode(self, job: _Job) -> None:
        meta = job.request.meta
        job.request.body = unpacked(job.request, self._limits)
        if meta.route != V2_ROUTE:
            job.inputs = decode_inputs(job.request, self._signature, self._limits)
            return
        raw = raw_input(self._signature, self.takes_tensors)
        job.asked = decode_request(job.request.body, header_length(meta), raw, self._limits)
        job.inputs = service_inputs(job.asked, self._signature, self._limits)

    def _whole_inference(self, job: _Job) -> None:
        job.value = job.service.inference(job.inputs)

    def _preprocess(self, job: _Job) -> None:
        value = job.service._preprocess(job.inputs)
        # The original base class returned an iterator.
        job.value = list(value) if isinstance(value, Iterator) else value

    def _inference(self, job: _Job) -> None:
        job.value = job.service._inference(job.value)
        # MXNet computes later and raises later; here both belong to this stage.
        for array in arrays_of(job.value) or ():
            if is_ndarray(array):
                array.wait_to_read()

    def _postprocess(self, job: _Job) -> None:
        # Who speaks of tensors gets the network's own, not what is made of them for others.
        if job.asked is None or not self.gives_tensors:
            job.value = job.service._postprocess(job.value)

    def _encode(self, job: _Job) -> None:
        # The answers of a batch travel in one frame; alone, each one fits.
        limit = min(self._max_response_bytes, self._room_bytes)
        if job.asked is None:
            job.answer = encode_output(job.value, job.request.meta, self._signature, limit)
        else:
            job.answer = within(self._encode_v2(job.value, job.asked), limit)
        self._room_bytes -= len(job.answer.body)

    def _encode_v2(self, value: Any, asked: InferRequest) -> Answer:
        names = [spec.name for spec in self._signature.outputs]
        outputs = network_outputs(value, names) if self.gives_tensors else None
        if outputs is None:
            encode = image_bytes if self._signature.gives_images else encode_json
            outputs = outputs_of(value, names, lambda: encode(value))
        return encode_response(self._model_name, self._version, asked, outputs)

    def _blame_image(self, failure: MMSError, job: _Job, stage: Stage) -> MMSError:
        """Tell a bad image from a bad service where the service decodes images itself."""
        if (
            not self._signature.takes_images
            or stage not in (Stage.PREPROCESS, Stage.INFERENCE)
            or isinstance(failure, (InvalidRequest, RejectedByService))
        ):
            return failure
        for name, data in zip(self._signature.input_names, job.inputs, strict=True):
            if not is_image(data):
                return UndecodableImage(
                    f"the {len(data)} bytes sent for input {name!r} are not an image that can be "
                    "decoded (JPEG, PNG, BMP, WebP, ...)",
                    failure.detail,
                )
        return failure


def _check_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Refuse a joint forward that kept something on ``self`` for `_postprocess`.

    It would be the whole batch's, and which part of it is whose nobody can tell.

    Raises:
        ValueError: An attribute is new or another.
    """
    for name, value in after.items():
        if name not in before or before[name] is not value:
            raise ValueError(f"_inference stores self.{name}, which cannot be split")
