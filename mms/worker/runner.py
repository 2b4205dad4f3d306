"""Run batches through a v0.4 service: decode, preprocess, forward, postprocess, encode.

Each request is finished and its answer encoded before the service sees the next one: a service may
return arrays in memory that its next call overwrites. Requests share a forward pass only with a
batch size above 1, and if a trial has shown that this changes no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mms import log
from mms.archive.signature import Signature
from mms.errors import MMSError
from mms.metrics.metrics_store import MetricsStore
from mms.wire.messages import Answer, LoadSpec, Request, Result
from mms.worker.joining import Joiner
from mms.worker.stages import Job, Stages


class ServiceRunner:
    """Runs one service.

    Args:
        service: A ModelService, or any other object with `inference`.
        signature: The model's signature.
        spec: The LoadSpec of this process.
        pairs: Returns pairs of different requests for the trial, see `request_pairs`.
    """

    def __init__(
        self,
        service: Any,
        signature: Signature,
        spec: LoadSpec,
        pairs: Callable[[], Iterable[tuple[Request, Request]]] = tuple,
    ) -> None:
        self._service = service
        self._model_name = spec.model_name
        self.batch_size = spec.batch_size
        # Unless the service already has an attribute of that name.
        self._metrics: MetricsStore | None = None
        if not hasattr(service, "metrics"):
            self._renew_metrics()
        self._stages = Stages(service, signature, spec)
        self._joiner = Joiner(self._stages, pairs)
        self.takes_tensors = self._stages.takes_tensors
        self.gives_tensors = self._stages.gives_tensors

    @property
    def alone_reason(self) -> str:
        """The reason why requests run one at a time whatever the batch size, or ""."""
        return self._joiner.alone_reason

    @property
    def can_fork(self) -> bool:
        """Whether the service survives a fork; it can set ``can_fork = False`` if it does not."""
        return bool(getattr(self._service, "can_fork", True))

    def take_metrics(self) -> list[Any]:
        """Return the metrics reported on ``self.metrics`` since the last call."""
        if self._metrics is None or not self._metrics.store:
            return []
        report = self._metrics.report()
        self._renew_metrics()
        return report

    def _renew_metrics(self) -> None:
        self._metrics = self._service.metrics = MetricsStore(None, self._model_name)

    def try_joining(self, may_fork: bool = False) -> None:
        """Determine whether requests can be joined, if the batch size is above 1.

        Args:
            may_fork: Whether the trial may run in a fork, where it leaves no traces.
        """
        if self.batch_size > 1:
            self._joiner.try_once(may_fork)
            # Metrics reported by the trial belong to no request.
            self.take_metrics()

    def answer_quietly(self, request: Request) -> Answer | MMSError:
        """Answer a request of our own, without logging a failure."""
        self._stages.is_quiet = True
        try:
            return self._joiner.answer_alone(request)
        finally:
            self._stages.is_quiet = False
            log.request_id.set("")

    def run(self, requests: Sequence[Request]) -> Result:
        """Answer each request, in order."""
        self._stages.begin()
        jobs = [Job(request, self._service) for request in requests]
        if self.batch_size > 1 and not self.alone_reason:
            for start in range(0, len(jobs), self.batch_size):
                self._joiner.run(jobs[start : start + self.batch_size])
        else:
            for job in jobs:
                self._stages.run(job)
        log.request_id.set("")
        decode, preprocess, inference, postprocess, encode = self._stages.seconds
        answers = [job.ended() for job in jobs]
        return Result(answers, (decode, preprocess, inference, postprocess, encode))
