"""Run batches through a v0.4 service: decode, preprocess, forward, postprocess, encode.

Each request is finished, its answer encoded, before the service sees the next one: whatever a
service hands over may lie in memory that its next call writes anew. With a batch size above 1,
requests are joined in one forward pass where a trial at load (`mms.worker.trial`) has shown that
they get the same answers so: each one's `_preprocess` and `_postprocess` run on a shallow copy of
the service, their arrays are copied apart, and whatever goes wrong with one stays with it.
"""

from __future__ import annotations

import copy
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
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
from mms.worker.agreement import TOLERANCE, output_distance
from mms.worker.arrays import (
    arrays_of,
    detached,
    fits_batch_axis,
    is_ndarray,
    join,
    join_key,
    rows_of,
    split,
)
from mms.worker.content import unpacked
from mms.worker.failure import from_exception, log_failure
from mms.worker.images import bad_image
from mms.worker.isolated import run_isolated
from mms.worker.request import decode_inputs
from mms.worker.response import encode_json, encode_output, image_bytes, within
from mms.worker.shared_state import SharedState, engine_object
from mms.worker.slips import refuse_slips
from mms.worker.trial import reason_against_joining
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
#: Kinds of batches (shapes, dtypes) whose joint outputs were compared with single ones.
_MAX_AGREEING = 256


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
        pairs: Gives pairs of different requests for the trial, see `request_pairs`.
    """

    def __init__(
        self,
        service: Any,
        signature: Signature,
        spec: LoadSpec,
        pairs: Callable[[], Iterable[tuple[Request, Request]]] = tuple,
    ) -> None:
        self._service = service
        self._signature = signature
        self._model_name = spec.model_name
        self._version = spec.version
        self._model_dir = spec.folder
        self.batch_size = spec.batch_size
        self._limits = spec.limits
        self._max_response_bytes = spec.max_response_bytes
        self._is_strict = spec.is_strict
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
        #: Why requests run one at a time; "" while they are joined, or would be.
        self.alone_reason = ""
        self._pairs = pairs
        self._was_tried = False
        self._is_quiet = False
        self._shared = SharedState(None)
        self._joint_failures = 0
        self._joint_failure = ""
        self._did_differ = False
        self._agreeing: set[Hashable] = set()
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
        self._renew_metrics()
        return report

    def _renew_metrics(self) -> None:
        self._metrics = self._service.metrics = MetricsStore(None, self._model_name)

    @property
    def joins(self) -> bool:
        """Whether requests are joined in one forward pass."""
        return self.batch_size > 1 and not self.alone_reason

    def try_joining(self, may_fork: bool = False) -> None:
        """Decide whether requests can be joined, if they are to be.

        Args:
            may_fork: Whether the trial may run in a fork, where it leaves no traces.
        """
        if self.batch_size == 1 or self._was_tried:
            return
        self._was_tried = True
        self.alone_reason = self._obstacle() or self._try(may_fork)
        self._shared = SharedState(self._service)
        if self.alone_reason:
            logger.warning("requests run one at a time: %s", self.alone_reason)

    def _obstacle(self) -> str:
        """Return what keeps requests apart without a trial."""
        if not self._has_stages:
            return "the service has no stages of its own: it defines `inference` as a whole"
        if not getattr(self._service, "can_batch", True):
            return "the service says can_batch = False"
        if owned := engine_object(self._service):
            return f"the service owns {owned}, which writes all outputs into the same arrays"
        return ""

    def _try(self, may_fork: bool) -> str:
        if not may_fork:
            return self._reason_against_joining()
        try:
            return run_isolated(self._reason_against_joining)
        except OSError as error:
            return f"the trial of two requests as a batch failed: {error}"

    def _reason_against_joining(self) -> str:
        shared = self._shared = SharedState(self._service)
        before = shared.snapshot(is_thorough=True)
        reason = reason_against_joining(self, self._pairs())
        if self._metrics is not None:
            # What the trial has reported is nobody's.
            self._renew_metrics()
        changed = shared.changed(before, is_thorough=True, is_copy=False)
        if changed and not reason:
            reason = f"the service changes {changed}, which all requests of a batch share"
        return reason

    def answer_alone(self, request: Request) -> Answer | MMSError:
        """Answer a request as if it had come alone; for the trial."""
        self._begin()
        job = _Job(request, self._service)
        self._is_quiet = True
        try:
            self._run_alone(job)
        finally:
            self._end()
        return self._answer_of(job)

    def answer_joined(self, requests: list[Request]) -> list[Answer | MMSError] | str:
        """Answer requests as one batch, or say why they cannot be; for the trial."""
        self._begin()
        jobs = [_Job(request, self._service) for request in requests]
        self._is_quiet = True
        try:
            self._run_joined(jobs)
        finally:
            self._end()
        if self.alone_reason or self._joint_failure:
            reason = self.alone_reason or self._joint_failure
            self.alone_reason = self._joint_failure = ""
            return reason
        return [self._answer_of(job) for job in jobs]

    def joined_outputs_differ(self) -> bool:
        """Whether the last joint forward pass gave its requests different outputs."""
        return self._did_differ

    @staticmethod
    def _answer_of(job: _Job) -> Answer | MMSError:
        assert job.answer is not None  # noqa: S101 - every way through the stages ends in one
        return job.answer

    def run(self, requests: Sequence[Request]) -> Result:
        """Answer each request, in order."""
        self._begin()
        jobs = [_Job(request, self._service) for request in requests]
        if self.joins:
            for start in range(0, len(jobs), self.batch_size):
                self._run_joined(jobs[start : start + self.batch_size])
        else:
            for job in jobs:
                self._run_alone(job)
        self._end()
        decode, preprocess, inference, postprocess, encode = self._seconds
        answers = [self._answer_of(job) for job in jobs]
        return Result(answers, (decode, preprocess, inference, postprocess, encode))

    def _begin(self) -> None:
        self._seconds = [0.0] * len(Stage)
        self._room_bytes = MAX_ANSWERS_BYTES
        self._started = time.perf_counter()

    def _end(self) -> None:
        self._is_quiet = False
        log.request_id.set("")

    def _run_alone(self, job: _Job) -> None:
        self._drop_if_late(job)
        self._guard(job, Stage.DECODE, self._decode)
        if self._has_stages:
            self._guard(job, Stage.PREPROCESS, self._preprocess)
            self._finish(job)
        else:
            self._guard(job, Stage.INFERENCE, self._whole_inference)
            self._guard(job, Stage.ENCODE, self._encode)

    def _finish(self, job: _Job) -> None:
        """Take a preprocessed request through the other stages."""
        self._guard(job, Stage.INFERENCE, self._inference)
        self._answer(job)

    def _answer(self, job: _Job) -> None:
        self._guard(job, Stage.POSTPROCESS, self._postprocess)
        self._guard(job, Stage.ENCODE, self._encode)

    def _run_joined(self, jobs: list[_Job]) -> None:
        shared = self._shared.snapshot()
        groups: dict[Hashable, list[_Job]] = defaultdict(list)
        for job in jobs:
            self._drop_if_late(job)
            self._guard(job, Stage.DECODE, self._decode)
            job.service = copy.copy(self._service)
            self._guard(job, Stage.PREPROCESS, self._preprocess)
            if job.answer is None:
                self._sort_in(job, groups)
        if not self._has_changed(shared):
            self._run_groups(groups, shared)
        for job in jobs:
            if job.answer is None:
                # What it shares with others has changed, so it begins anew.
                job.service = self._service
                self._run_alone(job)

    def _run_groups(self, groups: Mapping[Hashable, list[_Job]], shared: list[Any]) -> None:
        """Answer preprocessed requests, until a stage changes what they share."""
        for key, group in groups.items():
            is_joined = len(group) > 1 and self._infer_jointly(key, group)
            if self._has_changed(shared):
                return
            for job in group:
                if is_joined:
                    self._answer(job)
                else:
                    self._finish(job)
            if len(group) > 1 and not is_joined:
                self._note_joint_failure(group)
        self._has_changed(shared)

    def _sort_in(self, job: _Job, groups: dict[Hashable, list[_Job]]) -> None:
        """Put a request to those that it can be joined with; with none, finish it at once."""
        key = join_key(job.value)
        if key is None or not fits_batch_axis(job.value, self._signature):
            self._finish(job)
        else:
            # The base classes make new arrays each time; of others nobody knows.
            job.value = job.value if self.takes_tensors else detached(job.value)
            groups[key].append(job)

    def _has_changed(self, shared: list[Any]) -> bool:
        """Whether a stage has changed what the requests of a batch share; joining ends then."""
        if not self.alone_reason and (changed := self._shared.changed(shared)):
            self._stop_joining(f"the service changes {changed}, which all requests share")
        return bool(self.alone_reason)

    def _stop_joining(self, reason: str) -> None:
        self.alone_reason = reason
        if not self._is_quiet:
            logger.warning("requests run one at a time from now on: %s", reason)

    def _drop_if_late(self, job: _Job) -> None:
        """Spare the model a request that has been answered 504 while it waited in this frame."""
        waited_ms = (time.perf_counter() - self._started) * 1000
        if job.answer is None and waited_ms > job.request.ms_left:
            job.answer = DeadlineExceeded("the request waited in the worker past its deadline")

    def _infer_jointly(self, key: Hashable, jobs: list[_Job]) -> bool:
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
            self._did_differ = output_distance(parts[0], parts[-1]) > 0
            if key not in self._agreeing:
                self._check_agreement(key, jobs, parts)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - one by one tells whose fault
            self._joint_failure = f"{type(error).__name__}: {_first_line(error)}"
            if not self._is_quiet:
                logger.warning(
                    "a batch of %d failed as one (%s); its requests run one by one",
                    len(jobs),
                    self._joint_failure,
                )
            return False
        finally:
            self._seconds[Stage.INFERENCE] += time.perf_counter() - started
        self._joint_failures = 0
        for job, part in zip(jobs, parts, strict=True):
            job.value = part
        return True

    def _check_agreement(self, key: Hashable, jobs: list[_Job], parts: list[Any]) -> None:
        """Compare a batch of new shapes with what its requests get alone, before it is answered.

        A network may mix the rows of some shapes only.

        Raises:
            ValueError: They get something else.
        """
        for job, part in zip(jobs, parts, strict=True):
            alone = copy.copy(job.service)._inference(detached(job.value))
            if output_distance(part, alone) > TOLERANCE:
                self._stop_joining("a batch's forward pass gives other outputs than single ones")
                raise ValueError("the outputs are others than one by one")
        if len(self._agreeing) < _MAX_AGREEING:
            self._agreeing.add(key)

    def _note_joint_failure(self, group: list[_Job]) -> None:
        """Count a batch that failed as one although none of its requests was at fault."""
        if not all(isinstance(job.answer, Answer) for job in group):
            return
        self._joint_failures += 1
        if self._joint_failures >= _MAX_JOINT_FAILURES and not self.alone_reason:
            self._stop_joining(f"joint forward passes keep failing: {self._joint_failure}")

    def _guard(self, job: _Job, stage: Stage, step: Callable[[_Job], None]) -> None:
        """Run one step of one job; an exception becomes its answer."""
        if job.answer is not None:
            return
        log.request_id.set(job.request.meta.request_id)
        started = time.perf_counter()
        try:
            step(job)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - user code raises anything
            failure = from_exception(error, stage.name.lower(), self._model_dir)
            job.answer = self._blame_image(failure, job, stage)
            if not self._is_quiet:
                log_failure(job.answer)
        finally:
            self._seconds[stage] += time.perf_counter() - started

    def _decode(self, job: _Job) -> None:
        meta = job.request.meta
        job.request.body = unpacked(job.request, self._limits)
        # A request that begins anew is not unpacked twice.
        meta.content_encoding = ""
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
        if self._is_strict:
            refuse_slips(job.value)
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
            or isinstance(failure, RejectedByService)
            or (isinstance(failure, InvalidRequest) and not isinstance(failure, UndecodableImage))
        ):
            return failure
        blamed = bad_image(self._signature.input_names, job.inputs)
        if blamed is None:
            return failure
        blamed.detail = failure.detail
        return blamed


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:300]


def _check_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Refuse a joint forward that kept something on ``self`` for `_postprocess`.

    It would be the whole batch's, and which part of it is whose nobody can tell.

    Raises:
        ValueError: An attribute is new or another.
    """
    for name, value in after.items():
        if name not in before or before[name] is not value:
            raise ValueError(f"_inference stores self.{name}, which cannot be split")
