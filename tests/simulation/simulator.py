"""Clients, queues and workers of one model's versions, without a process and without waiting.

What is simulated is the world: when requests come, how long batches take, which workers hang, die
or do not start, who leaves, who resizes. What decides is the server's own code: `Dispatcher`,
`Machine`, the moves of a servable, and the split of traffic. After each event the invariants are
checked; at the end the faults cease, and everything accepted must have been answered.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from mms.errors import DeadlineExceeded, MMSError, ModelLoadFailed, ModelNotReady, WorkerDied
from mms.serving.lifecycle import ServableState, move_servable
from mms.serving.pool.machine import (
    CountRestart,
    GiveUp,
    Instruction,
    Loaded,
    Lost,
    Machine,
    Phase,
    Serve,
    Spawn,
    StartLoader,
    Stop,
    Withdraw,
)
from mms.serving.queue.dispatcher import Batch, Dispatcher, Limits
from mms.serving.registry import Model, Traffic

#: How long a FAILED version stays so, seconds.
_RECOVER_S = 5.0
#: Between two looks at what is due, as in the server, seconds.
_TICK_S = 0.5
_VERSIONS = 3


class Broken(Exception):
    """The server's code broke a promise."""


@dataclass(slots=True, eq=False)
class Request:
    """A request, and all that was ever answered to it."""

    token: int
    enqueued_at: float
    deadline: float
    size: int
    is_urgent: bool
    kills: bool
    deaths: int = 0
    has_left: bool = False
    endings: list[MMSError | int] = field(default_factory=list)

    def is_abandoned(self) -> bool:
        return self.has_left or bool(self.endings)

    def fail(self, error: MMSError) -> None:
        if not self.is_abandoned():
            self.endings.append(error)

    def succeed(self, answer: int) -> None:
        if not self.is_abandoned():
            self.endings.append(answer)

    def head(self) -> bytes:
        return self.digest()[:2]

    def digest(self) -> bytes:
        # Those that kill are repeated, so that they are known again.
        return b"%d" % (self.token % 3 if self.kills else self.token)


class Version:
    """One version: its queue, its workers, its state; what a `Servable` ties together."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.random = world.random
        self.number = number
        self.state = ServableState.UNLOADED
        self.size = self.random.randint(1, 4)
        self.limits = Limits(
            batch_size=self.random.choice([1, 2, 8]),
            queue_size=self.random.choice([5, 50]),
            max_batch_delay_s=self.random.choice([0.0, 0.0, 0.02]),
            linger_s=self.random.choice([0.0, 0.0, 0.005]),
            response_timeout_s=1.0,
            retry_on_crash=self.random.random() < 0.8,
        )
        self.renew()

    def renew(self) -> None:
        """Begin with new workers and an empty queue, as a load does."""
        self.dispatcher = Dispatcher[Request](self.limits)
        self.machine = Machine(self.size, self.world.ids)
        self.present: set[int] = set()
        self.serving: set[int] = set()
        self.batches: dict[int, Batch[Request]] = {}

    def load(self) -> None:
        self.state = move_servable(self.state, ServableState.LOADING)
        self.carry_out(self.machine.start())

    def later(self, seconds: float, event: Callable[..., None], *arguments: object) -> None:
        """Have something happen, unless the version has new workers by then."""
        machine = self.machine

        def happen() -> None:
            if self.machine is machine:
                event(*arguments)

        self.world.at(self.world.now + seconds, happen)

    def carry_out(self, steps: Iterable[Instruction]) -> None:
        for step in steps:
            match step:
                case Spawn(worker):
                    self.present.add(worker)
                    self.later(self.random.uniform(0.01, 0.3), self.start, worker)
                case Serve(worker):
                    self.serving.add(worker)
                    self.dispatcher.worker_ready(worker)
                case Withdraw(worker):
                    self.dispatcher.withdraw(worker)
                case Lost(worker):
                    self.serving.discard(worker)
                    self.batches.pop(worker, None)
                    self.dispatcher.worker_lost(worker, "it exited", self.world.now)
                    if self.state is ServableState.FAILED and not self.serving:
                        self.dispatcher.fail_all(ModelNotReady("failed", 1.0))
                case Stop(worker):
                    if worker in self.batches:
                        raise Broken(f"worker {worker} is stopped while it runs a batch")
                    self.serving.discard(worker)
                    self.later(self.random.choice([0.01, 2.0]), self.end, worker)
                case StartLoader():
                    self.later(0.1, self.start_loader)
                case Loaded():
                    self.state = move_servable(self.state, ServableState.READY)
                case GiveUp():
                    self.state = move_servable(self.state, ServableState.FAILED)
                    self.world.counts["failed"] += 1
                    if not self.serving:
                        self.dispatcher.fail_all(ModelNotReady("failed", 1.0))
                    self.later(_RECOVER_S, self.recover)
                case CountRestart():
                    self.world.counts["restarts"] += 1
        self.pump()

    def recover(self) -> None:
        self.dispatcher.fail_all(ModelNotReady("loading", 1.0))
        self.machine.stop()
        self.renew()
        self.load()

    def start(self, worker: int) -> None:
        if self.world.fault(0.1):
            self.present.discard(worker)
            error = ModelLoadFailed("it does not load")
            self.carry_out(self.machine.start_failed(worker, error, self.world.now))
        else:
            self.carry_out(self.machine.started(worker, self.world.now))

    def start_loader(self) -> None:
        if self.world.fault(0.3):
            self.carry_out(self.machine.loader_failed(self.world.now))
        else:
            self.machine.loader_started()

    def pump(self) -> None:
        """Send what can be sent, and have each batch finish, hang or kill its worker."""
        now = self.world.now
        for batch in self.dispatcher.dispatch(now):
            worker = batch.worker
            if worker not in self.serving or worker in self.batches:
                raise Broken(f"a batch is sent to worker {worker}, which is not free")
            self.batches[worker] = batch
            self.machine.batch_begun(worker)
            self.world.counts["batches"] += 1
            tokens = [job.token for job in batch.jobs]
            seconds = self.random.expovariate(50.0)
            if any(job.kills for job in batch.jobs):
                self.later(seconds, self.kill, worker)
            elif not self.world.fault(0.005):
                # Otherwise it hangs, until it is killed past response_timeout.
                self.later(seconds, self.finish, worker, batch, tokens)
        wake = self.dispatcher.wake_at()
        if wake < math.inf:
            self.world.wake(self, wake)

    def finish(self, worker: int, batch: Batch[Request], tokens: list[int]) -> None:
        if self.batches.get(worker) is not batch:
            return
        del self.batches[worker]
        finished = self.dispatcher.finish(worker, self.world.now, 0.01)
        self.carry_out(self.machine.batch_finished(worker))
        # Answers come in the order of the frame that the worker got.
        for job, token in zip(finished.jobs, tokens, strict=False):
            job.succeed(token)

    def kill(self, worker: int) -> None:
        """A process dies; its end is seen some time after its socket closed."""
        if worker in self.serving:
            self.carry_out(self.machine.lost(worker, self.world.now))
            self.later(self.random.choice([0.0, 0.01, 0.5]), self.end, worker)

    def end(self, worker: int) -> None:
        self.present.discard(worker)
        self.carry_out(self.machine.ended(worker, self.world.now, "crash", "exited"))

    def expire(self) -> None:
        for worker in self.dispatcher.expire(self.world.now + 1e-6):
            self.dispatcher.fail_batch(worker, DeadlineExceeded("it hangs"))
            self.world.counts["hangs"] += 1
            self.kill(worker)
        self.pump()

    def tick(self) -> None:
        self.carry_out(self.machine.tick(self.world.now, self.present))

    def check(self) -> None:
        machine = self.machine
        is_active = machine.phase in (Phase.LOADING, Phase.RUNNING)
        if is_active and len(machine.slots) != machine.target + machine.replacing:
            raise Broken(
                f"{len(machine.slots)} slots for {machine.target} workers, of which "
                f"{machine.replacing} are being replaced"
            )

    def check_whole(self) -> None:
        """Raise unless it has all its workers, and none has anything to do."""
        machine = self.machine
        if machine.phase is not Phase.RUNNING or self.state is not ServableState.READY:
            raise Broken(f"version {self.number} is {self.state.name}, its pool {machine.phase}")
        if machine.starting or machine.replacing or len(self.serving) != machine.target:
            raise Broken(f"{len(self.serving)} of {machine.target} workers serve")
        if self.present != self.serving:
            raise Broken(f"processes {self.present - self.serving} were forgotten")
        if not self.dispatcher.is_empty or self.batches:
            raise Broken(f"{self.dispatcher.depth} requests still wait")


class World:
    """A run of the simulation.

    Args:
        seed: Decides everything.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.steps = 0
        self.has_faults = True
        self.harm = self.random.choice([0.3, 1.0, 4.0])
        self.counts: Counter[str] = Counter()
        self.ids = itertools.count(1)
        self._order = itertools.count()
        self._tokens = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._wakes: dict[tuple[Version, float], None] = {}
        self._open: dict[int, Request] = {}
        self.versions = [Version(self, number) for number in range(_VERSIONS)]
        self.model = Model("simulated")
        # What the split asks of a servable is nothing but to be one of several.
        self.model.versions = {str(v.number): cast(Any, v) for v in self.versions}
        self._met: dict[str, Version] = {}
        self._split()
        self._every(3.0, self._split)
        for version in self.versions:
            version.load()
            self._every(_TICK_S, version.tick)
            self._every(0.2, lambda version=version: self._disturb(version))  # type: ignore[misc]
        self.at(0.0, self._arrive)

    def at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), event))

    def wake(self, version: Version, time: float) -> None:
        """Have a version look at its deadlines, once for each time."""
        key = (version, time)
        if key not in self._wakes:
            self._wakes[key] = None

            def happen() -> None:
                del self._wakes[key]
                version.expire()

            self.at(max(time, self.now), happen)

    def fault(self, probability: float) -> bool:
        """Whether something goes wrong this time."""
        return self.has_faults and self.random.random() < probability * self.harm

    def run(self, steps: int) -> None:
        """Let so many events happen, then let all faults cease and everything come to its end.

        Raises:
            Broken: Something accepted was not answered, or not with its own answer, or there are
                not as many workers as there should be.
        """
        while self.steps < steps:
            self._step()
        self.has_faults = False
        # Longer than any deadline, back-off and recovery under way.
        until = self.now + 120.0
        while self._events[0][0] < until:
            self._step()
        for version in self.versions:
            version.check_whole()
        if self._open:
            raise Broken(f"requests {sorted(self._open)[:5]} have never been answered")

    def _step(self) -> None:
        self.now, _, event = heapq.heappop(self._events)
        event()
        self.steps += 1
        for version in self.versions:
            version.check()
        if self.steps % 256 == 0:
            self._settle()

    def _every(self, seconds: float, event: Callable[[], None]) -> None:
        def happen() -> None:
            event()
            self.at(self.now + seconds, happen)

        self.at(self.now + self.random.uniform(0.0, seconds), happen)

    def _arrive(self) -> None:
        """A client asks; the next one comes a bit later, in bursts now and then."""
        if not self.has_faults:
            self._settle()
            return
        gap = self.random.expovariate(1500.0 if int(self.now) % 4 == 0 else 150.0)
        self.at(self.now + gap, self._arrive)
        token, kills = next(self._tokens), self.fault(0.005)
        request = Request(
            token,
            self.now,
            deadline=self.now + self.random.choice([0.05, 1.0, 1.0, 1.0]),
            size=1 if kills else self.random.choice([1, 1, 1, 1 << 20]),
            is_urgent=self.random.random() < 0.2,
            kills=kills,
        )
        version = self._choose(f"client {token % 50}")
        if version.state not in (ServableState.READY, ServableState.LOADING):
            self.counts["refused"] += 1
            return
        try:
            version.dispatcher.submit(request)
        except MMSError as error:
            self.counts["refused" if not isinstance(error, WorkerDied) else "known"] += 1
            return
        self.counts["accepted"] += 1
        self._open[token] = request
        if self.random.random() < 0.05:
            self.at(self.now + self.random.expovariate(30.0), lambda: self._leave(request, version))
        version.pump()

    def _choose(self, client: str) -> Version:
        """Return the version for a client, which must be the same as long as the split is."""
        chosen = cast(Version, self.model.choose(client))
        if self._met.setdefault(client, chosen) is not chosen:
            raise Broken(f"{client} meets version {chosen.number} after another one")
        if not self.model.traffic.weights[str(chosen.number)]:
            raise Broken(f"version {chosen.number} has no share and yet is chosen")
        return chosen

    def _split(self) -> None:
        """Give each version another share of the clients, some of them none."""
        shares = [self.random.randint(0, 3) for _ in self.versions]
        shares[self.random.randrange(_VERSIONS)] += 1
        self.model.split(Traffic({str(n): share for n, share in enumerate(shares)}))
        self._met.clear()

    def _leave(self, request: Request, version: Version) -> None:
        """A client leaves: what waits is dropped, and what runs is run for nobody."""
        if not request.endings:
            request.has_left = True
            version.dispatcher.cancel(request)

    def _disturb(self, version: Version) -> None:
        """Do what operators, upkeep and bad luck do."""
        if not self.has_faults:
            return
        kind = self.random.choice(["resize", "recycle", "kill", "kill", "loader", "nothing"])
        if kind == "resize" and version.state is ServableState.READY:
            version.size = self.random.randint(0, 5)
            version.carry_out(version.machine.resize(version.size))
        elif kind == "recycle" and version.serving:
            worker = self.random.choice(sorted(version.serving))
            version.carry_out(version.machine.recycle(worker, "max_age"))
        elif kind == "kill" and version.serving:
            version.kill(self.random.choice(sorted(version.serving)))
        elif kind == "loader":
            version.carry_out(version.machine.loader_ended(self.now))

    def _settle(self) -> None:
        """Check the answers of those that have been answered, and forget them."""
        for token, request in list(self._open.items()):
            if len(request.endings) > 1:
                raise Broken(f"request {token} was answered {len(request.endings)} times")
            for ending in request.endings:
                if isinstance(ending, int) and ending != token:
                    raise Broken(f"request {token} got the answer to {ending}")
                self.counts["answered" if isinstance(ending, int) else "errors"] += 1
            if request.is_abandoned():
                self.counts["left"] += request.has_left
                del self._open[token]
