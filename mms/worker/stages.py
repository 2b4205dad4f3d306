"""The stages of a v0.4 service, one request at a time: decode to encode, timed and guarded.

Whatever goes wrong with a request becomes its answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from mms import log
from mms.archive.signature import Signature
from mms.engines.images import bad_image
from mms.errors import (
    DeadlineExceeded,
    InvalidRequest,
    MMSError,
    RejectedByService,
    UndecodableImage,
)
from mms.model_service.model_service import SingleNodeService
from mms.wire.frames import MAX_ANSWERS_BYTES
from mms.wire.messages import Answer, Dialect, LoadSpec, Request, Stage
from mms.worker.arrays import arrays_of, is_ndarray
from mms.worker.content import unpacked
from mms.worker.failure import from_exception, log_failure
from mms.worker.request import decode_inputs
from mms.worker.response import encode_json, encode_output, image_bytes, within
from mms.worker.slips import refuse_slips
from mms.worker.v2 import InferRequest, decode_request, encode_response, header_length
from mms.worker.v2_model import (
    gives_tensors,
    network_outputs,
    outputs_of,
    raw_input,
    service_inputs,
    takes_tensors,
)


class Job:
    """One request on its way through the stages.

    Attributes:
        request: As it came.
        service: Whose stages it takes: the service, or a copy of its own.
        inputs: One per input of the signature, once decoded.
        value: What the last stage gave.
        asked: What it says if it came in the Open Inference Protocol V2.
        answer: Ends it.
    """

    __slots__ = ("answer", "asked", "inputs", "request", "service", "value")

    def __init__(self, request: Request, service: Any) -> None:
        self.request = request
        self.service = service
        self.inputs: list[Any] = []
        self.value: Any = None
        self.answer: Answer | MMSError | None = None
        self.asked: InferRequest | None = None

    def ended(self) -> Answer | MMSError:
        """Return the answer of a request that has taken all stages."""
        assert self.answer is not None  # noqa: S101 - every way through them ends in one
        return self.answer


_Steps = tuple[tuple[Stage, Callable[[Job], None]], ...]


class Stages:
    """Takes requests through the stages of one service.

    Args:
        service: A ModelService, or whatever else answers `inference`.
        signature: The model's.
        spec: What the process was told to serve.

    Attributes:
        service: The service.
        has_any: Whether it has stages; one that overrides `inference` is asked as a whole.
        takes_tensors: Whether arrays can be put in as they are.
        gives_tensors: Whether the network's arrays can be had for an answer.
        seconds: Time spent in each stage since `begin`.
        is_quiet: Whether nobody waits for the answers, so that failures are not logged.
    """

    def __init__(self, service: Any, signature: Signature, spec: LoadSpec) -> None:
        self.service = service
        self.signature = signature
        self._spec = spec
        self.has_any = (
            isinstance(service, SingleNodeService)
            and type(service).inference is SingleNodeService.inference
        )
        self.takes_tensors = self.has_any and takes_tensors(service, signature)
        self.gives_tensors = self.has_any and gives_tensors(service, signature)
        self.seconds = [0.0] * len(Stage)
        self.is_quiet = False
        self._room_bytes = MAX_ANSWERS_BYTES
        self._started = 0.0
        self._decoding: _Steps = ((Stage.DECODE, self._decode),)
        self._preprocessing: _Steps = ((Stage.PREPROCESS, self._preprocess),)
        self._answering: _Steps = (
            (Stage.POSTPROCESS, self._postprocess),
            (Stage.ENCODE, self._encode),
        )
        self._finishing: _Steps = ((Stage.INFERENCE, self._inference), *self._answering)
        if self.has_any:
            self._all: _Steps = (*self._decoding, *self._preprocessing, *self._finishing)
        else:
            whole = (Stage.INFERENCE, self._whole_inference)
            self._all = (*self._decoding, whole, (Stage.ENCODE, self._encode))

    def begin(self) -> None:
        """Begin with a new frame."""
        self.seconds = [0.0] * len(Stage)
        self._room_bytes = MAX_ANSWERS_BYTES
        self._started = time.perf_counter()

    def run(self, job: Job) -> None:
        """Take a request through all stages, unless it is too late for them."""
        self._drop_if_late(job)
        self._take(job, self._all)

    def decode(self, job: Job) -> None:
        """Decode a request's inputs, unless it is too late for them."""
        self._drop_if_late(job)
        self._take(job, self._decoding)

    def preprocess(self, job: Job) -> None:
        """Take a decoded request through `_preprocess`."""
        self._take(job, self._preprocessing)

    def finish(self, job: Job) -> None:
        """Take a preprocessed request through the other stages."""
        self._take(job, self._finishing)

    def answer(self, job: Job) -> None:
        """Take a request, whose value is what the network gave, through the last stages."""
        self._take(job, self._answering)

    def _drop_if_late(self, job: Job) -> None:
        """Spare the model a request that has been answered 504 while it waited in this frame."""
        waited_ms = (time.perf_counter() - self._started) * 1000
        if job.answer is None and waited_ms > job.request.ms_left:
            job.answer = DeadlineExceeded("the request waited in the worker past its deadline")

    def _take(self, job: Job, steps: _Steps) -> None:
        """Take a request through some steps; an exception becomes its answer."""
        if job.answer is not None:
            return
        log.request_id.set(job.request.meta.request_id)
        seconds, started = self.seconds, time.perf_counter()
        stage = steps[0][0]
        try:
            for stage, step in steps:
                step(job)
                ended = time.perf_counter()
                seconds[stage] += ended - started
                started = ended
        except (Exception, SystemExit) as error:  # noqa: BLE001 - user code raises anything
            seconds[stage] += time.perf_counter() - started
            failure = from_exception(error, stage.name.lower(), self._spec.folder)
            job.answer = self._blame_image(failure, job, stage)
            if not self.is_quiet:
                log_failure(job.answer)

    def _decode(self, job: Job) -> None:
        meta = job.request.meta
        job.request.body = unpacked(job.request, self._spec.limits)
        # A request that begins anew is not unpacked twice.
        meta.content_encoding = ""
        if meta.dialect is not Dialect.OIP:
            job.inputs = decode_inputs(job.request, self.signature, self._spec.limits)
            return
        raw = raw_input(self.signature, self.takes_tensors)
        job.asked = decode_request(job.request.body, header_length(meta), raw, self._spec.limits)
        job.inputs = service_inputs(job.asked, self.signature, self._spec.limits)

    def _whole_inference(self, job: Job) -> None:
        job.value = job.service.inference(job.inputs)

    def _preprocess(self, job: Job) -> None:
        value = job.service._preprocess(job.inputs)
        # The original base class returned an iterator.
        job.value = list(value) if isinstance(value, Iterator) else value

    def _inference(self, job: Job) -> None:
        job.value = job.service._inference(job.value)
        # MXNet computes later and raises later; here both belong to this stage.
        for array in arrays_of(job.value) or ():
            if is_ndarray(array):
                array.wait_to_read()

    def _postprocess(self, job: Job) -> None:
        # Who speaks of tensors gets the network's own, not what is made of them for others.
        if job.asked is None or not self.gives_tensors:
            job.value = job.service._postprocess(job.value)

    def _encode(self, job: Job) -> None:
        if self._spec.is_strict:
            refuse_slips(job.value)
        # The answers of a batch travel in one frame; alone, each one fits.
        limit = min(self._spec.max_response_bytes, self._room_bytes)
        if job.asked is None:
            job.answer = encode_output(job.value, job.request.meta, self.signature, limit)
        else:
            job.answer = within(self._encode_v2(job.value, job.asked), limit)
        self._room_bytes -= len(job.answer.body)

    def _encode_v2(self, value: Any, asked: InferRequest) -> Answer:
        names = [spec.name for spec in self.signature.outputs]
        outputs = network_outputs(value, names) if self.gives_tensors else None
        if outputs is None:
            encode = image_bytes if self.signature.gives_images else encode_json
            outputs = outputs_of(value, names, lambda: encode(value))
        return encode_response(self._spec.model_name, self._spec.version, asked, outputs)

    def _blame_image(self, failure: MMSError, job: Job, stage: Stage) -> MMSError:
        """Tell a bad image from a bad service where the service decodes images itself."""
        if (
            not self.signature.takes_images
            or stage not in (Stage.PREPROCESS, Stage.INFERENCE)
            or isinstance(failure, RejectedByService)
            or (isinstance(failure, InvalidRequest) and not isinstance(failure, UndecodableImage))
        ):
            return failure
        blamed = bad_image(self.signature.input_names, job.inputs)
        if blamed is None:
            return failure
        blamed.detail = failure.detail
        return blamed
