"""Join the requests of a batch in one forward pass, where a trial has shown that to be correct.

Each request's `_preprocess` and `_postprocess` run on a shallow copy of the service, so attributes
that they set are private to the request, and its arrays are copied before user code runs again.
If a stage changes anything else that the copies share, joining ends for good.
"""

from __future__ import annotations

import copy
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from mms import log
from mms.errors import MMSError
from mms.wire.messages import Answer, Request, Stage
from mms.worker.agreement import TOLERANCE, output_distance
from mms.worker.arrays import detached, fits_batch_axis, join, join_key, rows_of, split
from mms.worker.isolated import run_isolated
from mms.worker.shared_state import SharedState, engine_object, lazy_model
from mms.worker.stages import Job, Stages
from mms.worker.trial import reason_against_joining

logger = logging.getLogger("mms.worker")

#: Joint forward passes may fail this often in a row, with the requests then succeeding one by one,
#: before the service is treated as one that cannot be batched.
_MAX_JOINT_FAILURES = 3
#: Kinds of batches (shapes, dtypes) whose joint outputs were compared with single ones.
_MAX_AGREEING = 256


class Joiner:
    """Runs batches of one service with joint forward passes.

    Args:
        stages: The stages of the service.
        pairs: Returns pairs of different requests for the trial, see `request_pairs`.

    Attributes:
        alone_reason: Why requests must run one at a time; "" if they need not, or before the
            trial.
    """

    def __init__(
        self, stages: Stages, pairs: Callable[[], Iterable[tuple[Request, Request]]]
    ) -> None:
        self.alone_reason = ""
        self._stages = stages
        self._pairs = pairs
        self._was_tried = False
        self._shared = SharedState(None)
        self._failures = 0
        self._failure = ""
        self._did_differ = False
        self._agreeing: set[Hashable] = set()
        self._model: Any = None

    def try_once(self, may_fork: bool) -> None:
        """Decide by a trial whether requests can be joined.

        Args:
            may_fork: Whether the trial may run in a fork, where it leaves no traces.
        """
        if self._was_tried:
            return
        self._was_tried = True
        self._model = lazy_model(self._stages.service)
        self.alone_reason = self._obstacle() or self._try(may_fork)
        if self.alone_reason:
            logger.warning("requests run one at a time: %s", self.alone_reason)
        else:
            self._shared = SharedState(self._stages.service)

    def _obstacle(self) -> str:
        """Return the reason against joining that needs no trial; "" if there is none."""
        service = self._stages.service
        if not self._stages.has_any:
            return "the service has no stages of its own: it overrides `inference` itself"
        if not getattr(service, "can_batch", True):
            return "the service says can_batch = False"
        if owned := engine_object(service):
            return f"the service owns {owned}, which reuses the same arrays for all outputs"
        try:
            copy.copy(service)
        except Exception as error:  # noqa: BLE001 - a class may say how it is copied
            return f"the service cannot be copied: {type(error).__name__}: {error}"
        return ""

    def _try(self, may_fork: bool) -> str:
        if not may_fork:
            return self._reason_against_joining()
        try:
            return run_isolated(self._reason_against_joining)
        except OSError as error:
            return f"the trial of two requests as a batch failed: {error}"

    def _reason_against_joining(self) -> str:
        shared = self._shared = SharedState(self._stages.service)
        before = shared.snapshot(is_thorough=True)
        self._stages.is_quiet = True
        try:
            reason = reason_against_joining(self, self._pairs())
        finally:
            self._stages.is_quiet = False
        changed = shared.changed(before, is_thorough=True, is_copy=False)
        if changed and not reason:
            reason = f"the service changes {changed}, which all requests of a batch share"
        return reason

    def answer_alone(self, request: Request) -> Answer | MMSError:
        """Answer a request as if it had arrived alone; for the trial."""
        self._stages.begin()
        job = Job(request, self._stages.service)
        self._stages.run(job)
        return job.ended()

    def answer_joined(self, requests: list[Request]) -> list[Answer | MMSError] | str:
        """Answer requests as one batch, or return why that is impossible; for the trial."""
        self._stages.begin()
        jobs = [Job(request, self._stages.service) for request in requests]
        self.run(jobs)
        reason = self.alone_reason or self._failure
        self.alone_reason = self._failure = ""
        return reason or [job.ended() for job in jobs]

    def joined_outputs_differ(self) -> bool:
        """Return whether the trial's joint forward pass returned different outputs per request."""
        return self._did_differ

    def run(self, jobs: Sequence[Job]) -> None:
        """Answer requests, as many of them as possible in one forward pass."""
        shared = self._shared.snapshot()
        groups: dict[Hashable, list[Job]] = defaultdict(list)
        for job in jobs:
            self._stages.decode(job)
            job.service = copy.copy(self._stages.service)
            self._stages.preprocess(job)
            if job.answer is None:
                self._sort_in(job, groups)
        if not self._has_changed(shared):
            self._run_groups(groups, shared)
        for job in jobs:
            if job.answer is None:
                # State shared with other requests has changed, so it starts over.
                job.service = self._stages.service
                self._stages.run(job)

    def _sort_in(self, job: Job, groups: dict[Hashable, list[Job]]) -> None:
        """Add a request to the group it can be joined with; if it has none, finish it at once."""
        key = join_key(job.value)
        if key is None or not fits_batch_axis(job.value, self._stages.signature):
            self._stages.finish(job)
        else:
            # The base classes create new arrays each time; other classes may not.
            job.value = job.value if self._stages.takes_tensors else detached(job.value)
            groups[key].append(job)

    def _run_groups(self, groups: Mapping[Hashable, list[Job]], shared: list[Any]) -> None:
        """Answer preprocessed requests, until a stage changes shared state."""
        for key, group in groups.items():
            is_joined = len(group) > 1 and self._infer(key, group)
            if self._has_changed(shared):
                return
            for job in group:
                if is_joined:
                    self._stages.answer(job)
                    if self._has_read_outputs():
                        self._start_over(group)
                        return
                else:
                    self._stages.finish(job)
            if len(group) > 1 and not is_joined:
                self._note_failure(group)
        self._has_changed(shared)

    def _has_read_outputs(self) -> bool:
        """Return whether a request's stage looked at the network's last outputs: the batch's."""
        if self._model is None or not self._model.was_asked_for_outputs:
            return False
        self._stop("_postprocess reads the outputs of the network, which are the whole batch's")
        return True

    @staticmethod
    def _start_over(group: Sequence[Job]) -> None:
        """Drop what a joint forward pass has led to."""
        for job in group:
            job.answer = None

    def _has_changed(self, shared: list[Any]) -> bool:
        """Return whether a stage has changed state shared by a batch, and end joining if so."""
        if not self.alone_reason and (changed := self._shared.changed(shared)):
            self._stop(f"the service changes {changed}, which all requests of a batch share")
        return bool(self.alone_reason)

    def _stop(self, reason: str) -> None:
        self.alone_reason = reason
        if not self._stages.is_quiet:
            logger.warning("requests run one at a time from now on: %s", reason)

    def _infer(self, key: Hashable, jobs: list[Job]) -> bool:
        """Run one forward pass for all jobs; return False if they must run one by one."""
        log.request_id.set(",".join(job.request.meta.request_id for job in jobs))
        started = time.perf_counter()
        rows = [rows_of(job.value) for job in jobs]
        service = copy.copy(self._stages.service)
        before = dict(vars(service))
        try:
            outputs = service._inference(join([job.value for job in jobs]))
            parts = split(outputs, rows)
            if self._model is not None:
                # `_inference` itself may look at them; it gets the batch and returns rows.
                self._model.was_asked_for_outputs = False
            _check_unchanged(before, vars(service))
            if self._stages.is_quiet:
                self._did_differ = output_distance(parts[0], parts[-1]) > 0
            if key not in self._agreeing:
                self._check_agreement(key, jobs, parts)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the single runs show whose fault
            self._failure = f"{type(error).__name__}: {_first_line(error)}"
            if not self._stages.is_quiet:
                logger.warning(
                    "a batch of %d failed as one (%s); its requests run one by one",
                    len(jobs),
                    self._failure,
                )
            return False
        finally:
            self._stages.seconds[Stage.INFERENCE] += time.perf_counter() - started
        self._failures = 0
        for job, part in zip(jobs, parts, strict=True):
            job.value = part
        return True

    def _check_agreement(self, key: Hashable, jobs: list[Job], parts: list[Any]) -> None:
        """Compare the outputs of a batch of new shapes with those of its requests run alone.

        Done before the batch is answered: a network may mix the rows of some shapes only.

        Raises:
            ValueError: The outputs differ.
        """
        for job, part in zip(jobs, parts, strict=True):
            alone = copy.copy(job.service)._inference(detached(job.value))
            if output_distance(part, alone) > TOLERANCE:
                self._stop("a batch's forward pass returns other outputs than single ones")
                raise ValueError("the outputs differ from those of single requests")
        if len(self._agreeing) < _MAX_AGREEING:
            self._agreeing.add(key)

    def _note_failure(self, group: list[Job]) -> None:
        """Count a batch that failed as one, although none of its requests was at fault."""
        if not all(isinstance(job.answer, Answer) for job in group):
            return
        self._failures += 1
        if self._failures >= _MAX_JOINT_FAILURES and not self.alone_reason:
            self._stop(f"joint forward passes keep failing: {self._failure}")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:300]


def _check_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Refuse a joint forward pass that stored something on ``self`` for `_postprocess`.

    It would belong to the whole batch, and could not be split among its requests.

    Raises:
        ValueError: An attribute is new or has changed.
    """
    for name, value in after.items():
        if name not in before or before[name] is not value:
            raise ValueError(f"_inference stores self.{name}, which cannot be split")
