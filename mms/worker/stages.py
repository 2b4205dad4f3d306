"""The stages of a v0.4 service, one request at a time: decode to encode, timed and guarded.

Any failure of a request becomes its answer.
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
from mms.worker.own_signature import OwnSignature
from mms.worker.request import decode_inputs
from mms.worker.response import encode_json, encode_output, image_bytes, within
from mms.worker.slips import refuse_slips, warn_of_scores
from mms.worker.v2 import InferRequest, decode_request, encode_response, header_length
from mms.worker.v2_model import (
    gives_tensors,
    network_outputs,
    outputs_of,
    raw_input,
    service_inputs,
    takes_tensors,
)

#: Of a request that has not been decoded.
_UNREAD = Signature((), "", (), "")


class Job:
    """One request on its way through the stages.

    Attributes:
        request: The request as received.
        service: The service whose stages it runs: the original, or a copy of its own.
        signature: What the service says of its inputs and outputs at the time of this request.
        inputs: One value per input of the signature, once decoded.
        value: Result of the last stage.
        asked: The decoded request if it came in the Open Inference Protocol V2.
        answer: Setting it ends the job.
    """

    __slots__ = ("answer", "asked", "inputs", "request", "service", "signature", "value")

    def __init__(self, request: Request, service: Any) -> None:
        self.request = request
        self.service = service
        self.signature = _UNREAD
        self.inputs: list[Any] = []
        self.value: Any = None
        self.answer: Answer | MMSError | None = None
        self.asked: InferRequest | None = None

    def ended(self) -> Answer | MMSError:
        """Return the answer of a request that has passed all stages."""
        assert self.answer is not None  # noqa: S101 - every path through the stages sets one
        return self.answer


_Steps = tuple[tuple[Stage, Callable[[Job], None]], ...]


class Stages:
    """Runs requests through the stages of one service.

    Args:
        service: A ModelService, or any other object with `inference`.
        signature: The model's signature.
        spec: The LoadSpec of this process.

    Attributes:
        service: The service.
        has_any: Whether it has stages; if it overrides `inference`, only that is called.
        takes_tensors: Whether the model accepts arrays as they are.
        gives_tensors: Whether an answer can consist of the network's own output arrays.
        seconds: Time spent in each stage since `begin`.
        is_quiet: Whether failures are not logged, since no client waits for the answers.
    """

    def __init__(self, service: Any, signature: Signature, spec: LoadSpec) -> None:
        self.service = service
        self.signature = signature
        self._own_signature = OwnSignature(signature)
        self._spec = spec
        self.has_any = (
            isinstance(service, SingleNodeService)
            and type(service).inference is SingleNodeService.inference
        )
        self.takes_tensors = self.has_any and takes_tensors(service, signature)
        self.gives_tensors = self.has_any and gives_tensors(service, signature)
        self.seconds = [0.0] * len(Stage)
        self.is_quiet = False
        self._has_warned = False
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
        """Reset the times for a new frame."""
        self.seconds = [0.0] * len(Stage)
        self._room_bytes = MAX_ANSWERS_BYTES
        self._started = time.perf_counter()

    def run(self, job: Job) -> None:
        """Run a request through all stages, unless its deadline has passed."""
        self._drop_if_late(job)
        self._take(job, self._all)

    def decode(self, job: Job) -> None:
        """Decode a request's inputs, unless its deadline has passed."""
        self._drop_if_late(job)
        self._take(job, self._decoding)

    def preprocess(self, job: Job) -> None:
        """Run `_preprocess` for a decoded request."""
        self._take(job, self._preprocessing)

    def finish(self, job: Job) -> None:
        """Run the remaining stages for a preprocessed request."""
        self._take(job, self._finishing)

    def answer(self, job: Job) -> None:
        """Run the last stages for a request whose value is the network's output."""
        self._take(job, self._answering)

    def _drop_if_late(self, job: Job) -> None:
        """Drop a request that has been answered 504 while it waited in this frame."""
        waited_ms = (time.perf_counter() - self._started) * 1000
        if job.answer is None and waited_ms > job.request.ms_left:
            job.answer = DeadlineExceeded("the request waited in the worker past its deadline")

    def _take(self, job: Job, steps: _Steps) -> None:
        """Run steps for a request; an exception becomes its answer."""
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
        # A request that starts over is not decompressed twice.
        meta.content_encoding = ""
        job.signature = self._own_signature.of(job.service)
        if meta.dialect is not Dialect.OIP:
            job.inputs = decode_inputs(job.request, job.signature, self._spec.limits)
            return
        raw = raw_input(job.signature, self.takes_tensors)
        job.asked = decode_request(job.request.body, header_length(meta), raw, self._spec.limits)
        job.inputs = service_inputs(job.asked, job.signature, self._spec.limits)

    def _whole_inference(self, job: Job) -> None:
        job.value = job.service.inference(job.inputs)

    def _preprocess(self, job: Job) -> None:
        value = job.service._preprocess(job.inputs)
        # The original base class returned an iterator.
        job.value = list(value) if isinstance(value, Iterator) else value

    def _inference(self, job: Job) -> None:
        job.value = job.service._inference(job.value)
        # MXNet computes and raises asynchronously; waiting here attributes both to this stage.
        for array in arrays_of(job.value) or ():
            if is_ndarray(array):
                array.wait_to_read()

    def _postprocess(self, job: Job) -> None:
        # Tensor requests get the network's own arrays, without the postprocessing for others.
        if job.asked is None or not self.gives_tensors:
            outputs = job.value
            job.value = job.service._postprocess(outputs)
            if self._spec.is_strict and not self._has_warned:
                self._has_warned = warn_of_scores(job.service, outputs, job.value)

    def _encode(self, job: Job) -> None:
        if self._spec.is_strict:
            refuse_slips(job.value)
        # All answers of a batch share one frame; each one alone fits.
        limit = min(self._spec.max_response_bytes, self._room_bytes)
        if job.asked is None:
            job.answer = encode_output(job.value, job.request.meta, job.signature, limit)
        else:
            job.answer = within(self._encode_v2(job, job.asked), limit)
        self._room_bytes -= len(job.answer.body)

    def _encode_v2(self, job: Job, asked: InferRequest) -> Answer:
        value, names = job.value, [spec.name for spec in job.signature.outputs]
        outputs = network_outputs(value, names) if self.gives_tensors else None
        if outputs is None:
            encode = image_bytes if job.signature.gives_images else encode_json
            outputs = outputs_of(value, names, lambda: encode(value))
        return encode_response(self._spec.model_name, self._spec.version, asked, outputs)

    def _blame_image(self, failure: MMSError, job: Job, stage: Stage) -> MMSError:
        """Distinguish a bad image from a bad service if the service decodes images itself."""
        if (
            not job.signature.takes_images
            or stage not in (Stage.PREPROCESS, Stage.INFERENCE)
            or isinstance(failure, RejectedByService)
            or (isinstance(failure, InvalidRequest) and not isinstance(failure, UndecodableImage))
        ):
            return failure
        blamed = bad_image(job.signature.input_names, job.inputs)
        if blamed is None:
            return failure
        blamed.detail = failure.detail
        return blamed
