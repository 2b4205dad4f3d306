"""The stages of a v0.4 service, one request at a time: decode to encode, timed and guarded.

Any failure of a request becomes its answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgspec

from mms import log
from mms.archive.signature import Signature
from mms.errors import DeadlineExceeded, InvalidServiceOutput, MMSError
from mms.model_service.model_service import SingleNodeService
from mms.wire.frames import MAX_ANSWERS_BYTES
from mms.wire.messages import Answer, Dialect, LoadSpec, Request, Stage
from mms.worker.array_body import ArrayType, accepted_type, encode_array, is_one_array
from mms.worker.arrays import arrays_of, is_ndarray
from mms.worker.blame import Blame
from mms.worker.content import unpacked
from mms.worker.failure import from_exception, log_failure
from mms.worker.own_signature import OwnSignature
from mms.worker.request import decode_inputs
from mms.worker.response import encode_json, encode_output, image_bytes, within
from mms.worker.slips import refuse_slips, warn_of_scores
from mms.worker.v1 import V1Request, decode_v1, encode_arrays, encode_predictions, encode_value
from mms.worker.v2 import InferRequest, decode_request, encode_response, header_length
from mms.worker.v2_model import (
    gives_tensors,
    network_outputs,
    outputs_of,
    raw_input,
    service_inputs,
    takes_only_arrays,
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
        asked_v1: The decoded request if it came in the V1 protocol.
        array_type: Format that the client prefers to JSON, if any.
        answer: Setting it ends the job.
    """

    __slots__ = (
        "answer", "array_type", "asked", "asked_v1", "inputs", "request", "service", "signature",
        "value",
    )  # fmt: skip

    def __init__(self, request: Request, service: Any) -> None:
        self.request = request
        self.service = service
        self.signature = _UNREAD
        self.inputs: list[Any] = []
        self.value: Any = None
        self.answer: Answer | MMSError | None = None
        self.asked: InferRequest | None = None
        self.asked_v1: V1Request | None = None
        self.array_type: ArrayType | None = None

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
        self._takes_only_arrays = self.has_any and takes_only_arrays(service, signature)
        self._blame = Blame(service, signature, spec.folder)
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
        # Of an instance of a V1 request, whose inputs are decoded with the others'.
        self._decoded: _Steps = self._all[1:]

    def begin(self) -> None:
        """Reset the times for a new frame."""
        self.seconds = [0.0] * len(Stage)
        self._room_bytes = MAX_ANSWERS_BYTES
        self._started = time.perf_counter()

    def run(self, job: Job) -> None:
        """Run a request through all stages, unless its deadline has passed."""
        if job.request.meta.dialect is Dialect.INSTANCES:
            self.decode(job)
            self._take(job, self._decoded)
            return
        self._drop_if_late(job)
        self._take(job, self._all)

    def decode(self, job: Job) -> None:
        """Decode a request's inputs, unless its deadline has passed.

        A V1 request whose instances run alone is answered, too.
        """
        self._drop_if_late(job)
        self._take(job, self._decoding)
        if job.answer is None and job.asked_v1 is not None and job.asked_v1.instances:
            job.answer = self._answer_instances(job, job.asked_v1.instances)

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
            job.answer = self._blame.judge(failure, job.request, job.inputs, job.signature, stage)
            if not self.is_quiet:
                log_failure(job.answer)

    def _decode(self, job: Job) -> None:
        meta = job.request.meta
        job.request.body = unpacked(job.request, self._spec.limits)
        # A request that starts over is not decompressed twice.
        meta.content_encoding = ""
        signature, limits = self._own_signature.of(job.service), self._spec.limits
        job.signature = signature
        if meta.dialect is Dialect.OIP:
            raw = raw_input(signature, self.takes_tensors)
            job.asked = decode_request(job.request.body, header_length(meta), raw, limits)
            job.inputs = service_inputs(job.asked, signature, limits)
        elif meta.dialect is Dialect.INSTANCES:
            is_one_pass = self._takes_only_arrays and self.gives_tensors
            job.asked_v1 = decode_v1(job.request, signature, limits, is_one_pass)
            job.inputs = job.asked_v1.inputs
        else:
            job.array_type = accepted_type(meta.accept)
            job.inputs = decode_inputs(job.request, signature, limits, self._takes_only_arrays)

    def _answer_instances(self, job: Job, instances: list[list[Any]]) -> Answer | MMSError:
        """Answer each instance of a V1 request as a request of its own, one after the other."""
        meta = msgspec.structs.replace(job.request.meta, dialect=Dialect.PLAIN, accept="")
        request = replace(job.request, meta=meta)
        answers: list[Answer] = []
        for index, inputs in enumerate(instances):
            one = Job(request, job.service)
            one.signature, one.inputs = job.signature, inputs
            self._drop_if_late(one)
            self._take(one, self._decoded)
            answer = one.ended()
            if isinstance(answer, MMSError):
                answer.args = (f"instances[{index}]: {answer}", *answer.args[1:])
                return answer
            answers.append(answer)
        # Each one fits into the frame; so do all of them, with a comma after each.
        whole = Answer(encode_predictions(answers))
        try:
            return within(whole, self._spec.max_response_bytes)
        except InvalidServiceOutput as error:
            log_failure(error)
            return error

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
        # Whoever asks for arrays gets the network's own, without the postprocessing for others.
        if not (self.gives_tensors and self._wants_arrays(job)):
            outputs = job.value
            job.value = job.service._postprocess(outputs)
            if self._spec.is_strict and not self._has_warned:
                self._has_warned = warn_of_scores(job.service, outputs, job.value)

    def _wants_arrays(self, job: Job) -> bool:
        if job.array_type is not None:
            return is_one_array(job.value)
        return job.asked is not None or job.asked_v1 is not None

    def _encode(self, job: Job) -> None:
        if self._spec.is_strict:
            refuse_slips(job.value)
        # All answers of a batch share one frame; each one alone fits.
        limit = min(self._spec.max_response_bytes, self._room_bytes)
        if job.asked is not None:
            job.answer = within(self._encode_v2(job, job.asked), limit)
        elif job.asked_v1 is not None:
            job.answer = within(Answer(self._encode_v1(job, job.asked_v1)), limit)
        else:
            answer = encode_array(job.array_type, job.value) if job.array_type else None
            job.answer = (
                within(answer, limit)
                if answer
                else encode_output(job.value, job.request.meta, job.signature, limit)
            )
        self._room_bytes -= len(job.answer.body)
        if not self._blame.is_settled:
            self._blame.note_answer(job.inputs, job.signature)

    def _encode_v1(self, job: Job, asked: V1Request) -> bytes:
        value = job.value
        if self.gives_tensors and arrays_of(value) is not None:
            return encode_arrays(value, [spec.name for spec in job.signature.outputs], asked.rows)
        return encode_value(value)

    def _encode_v2(self, job: Job, asked: InferRequest) -> Answer:
        value, names = job.value, [spec.name for spec in job.signature.outputs]
        outputs = network_outputs(value, names) if self.gives_tensors else None
        if outputs is None:
            encode = image_bytes if job.signature.gives_images else encode_json
            outputs = outputs_of(value, names, lambda: encode(value))
        return encode_response(self._spec.model_name, self._spec.version, asked, outputs)
