"""The faults, one function each: break something, see what must hold, wait until all is whole.

What holds for every fault is counted by the clients: no answer lost, none swapped, and, but for
faults that stop the server itself, none refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.arena import MAIN_WORKERS, Arena
from tests.chaos.load import Answer, Outage
from tests.kit.load.wire import Reply
from tests.kit.waiting import until

_MB = 1 << 20


class Skipped(Exception):
    """The machine does not allow this fault."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        inject: Does it, and gives a note for the report.
        may_refuse: Whether requests may be turned away meanwhile, since the server is.
    """

    inject: Callable[[Arena], Awaitable[str]]
    may_refuse: bool = False

    @property
    def name(self) -> str:
        return self.inject.__name__


async def kill_worker(arena: Arena) -> str:
    """One of several workers is killed; what it ran is run by another."""
    return await _kill_workers(arena, "main")


async def kill_only_worker(arena: Arena) -> str:
    """The only worker of a model is killed; everything waits for its replacement."""
    async with arena.model("single", only=True, initial_workers=1):
        return await _kill_workers(arena, "single")


async def _kill_workers(arena: Arena, model: str) -> str:
    waits = []
    for _ in range(arena.repeats):
        pid = arena.random.choice(await arena.server.worker_pids(model))
        at_risk = arena.load.outstanding()
        # An answer that the dead worker had written may still be on its way.
        answer = arena.load.next_answer(_from_another(model, pid))
        killed_at = time.monotonic()
        arena.server.kill_child(pid)
        waits.append((await answer).came_at - killed_at)
        # Killed once more, what is run again now would have been in two dead workers.
        await arena.load.settle(at_risk)
        await arena.server.recover(dead=pid)
    return _waits("next answer after", waits)


async def kill_loader(arena: Arena) -> str:
    """The process that workers are forked from is killed; they go on, and a new one comes."""
    for _ in range(1 if arena.is_short else 2):
        pids = await arena.server.loader_pids()
        assert len(pids) == 1, f"one loader was expected, not {pids}"
        (pid,) = pids
        arena.server.kill_child(pid)
        await arena.server.recover(dead=pid)
    return await _kill_workers(arena, "main")


async def poison(arena: Arena) -> str:
    """A request kills each worker it meets; only it fails, not those beside it."""
    ends = ("kill", "exit", "segfault")
    for end in ends:
        reply = await arena.load.ask("main", end)
        _expect(reply, 500, "worker_died")
        await arena.server.recover()
    return f"{len(ends)} answered 500 worker_died"


async def poison_flood(arena: Arena) -> str:
    """Many such requests come at once, no two alike; the model stays ready, and only they fail."""
    ends = ("kill", "exit", "segfault") * (4 if arena.is_short else 20)
    replies = await asyncio.gather(*(arena.load.ask("main", end) for end in ends))
    for reply in replies:
        _expect(reply, 500, "worker_died")
    described = await arena.server.describe("main")
    assert described["state"] == "ready", described["state"]
    await arena.server.recover()
    return f"{len(ends)} answered 500 worker_died"


async def daemon(arena: Arena) -> str:
    """A worker dies while a process that its service left behind holds its socket."""
    async with arena.model("parent", only=True, initial_workers=1):
        (pid,) = await arena.server.worker_pids("parent")
        known = {child.pid for child in arena.server.children()}
        _expect(await arena.load.ask("parent", "daemon"), 200)
        (left,) = {child.pid for child in arena.server.children()} - known
        at_risk = arena.load.outstanding()
        answer = arena.load.next_answer(_from_another("parent", pid))
        killed_at = time.monotonic()
        arena.server.kill_child(pid)
        took = (await answer).came_at - killed_at
        await arena.load.settle(at_risk)
        arena.server.kill_child(left)
        await arena.server.recover(dead=pid)
    return _waits("next answer after", [took])


async def hang(arena: Arena) -> str:
    """A request never ends, in Python or in native code; it alone is answered 504."""
    waits = []
    async with arena.model("hanging", response_timeout=2):
        for way in ("hang_python", "hang_native"):
            started = time.monotonic()
            _expect(await arena.load.ask("hanging", way), 504, "deadline_exceeded")
            waits.append(time.monotonic() - started)
            await arena.server.recover()
    return _waits("504 after", waits)


async def leak(arena: Arena) -> str:
    """A service leaks; its workers are replaced before the memory is gone."""
    described = await arena.server.describe("main")
    resident = max(worker["memoryUsage"] for worker in described["workers"])
    async with arena.model("leaking", max_worker_memory=resident + 20 * _MB):
        first = set(await arena.server.worker_pids("leaking"))

        async def is_replaced() -> bool:
            _expect(await arena.load.ask("leaking", "leak", 5 * _MB), 200)
            return not first & set(await arena.server.worker_pids("leaking"))

        await until(is_replaced, what="leaking workers are replaced")
        restarts = (await arena.server.describe("leaking"))["restarts"]
        assert restarts.get("max_memory", 0) >= 2, f"restarts: {restarts}"
        await arena.server.recover()
    return f"{restarts['max_memory']} workers replaced"


async def recycle(arena: Arena) -> str:
    """Workers are replaced after so many requests, under load."""
    goal = 4 if arena.is_short else 12
    async with arena.model("recycled", max_requests=25):
        # One after the other: a slow machine takes longer for all of them, but none gets stuck.
        for number in range(1, goal + 1):
            await until(
                lambda number=number: _has_recycled(arena, number),  # type: ignore[misc]
                what=f"{number} workers are recycled",
            )
    return f"at least {goal} workers replaced"


async def _has_recycled(arena: Arena, workers: int) -> bool:
    restarts = (await arena.server.describe("recycled"))["restarts"]
    return bool(restarts.get("max_requests", 0) >= workers)


async def slow_load(arena: Arena) -> str:
    """A model that loads slowly is registered; it answers 503 until then, and the rest serves."""
    url = arena.archive("slow", load_s=1.0)
    reply = await arena.server.manage(
        "POST", "/models", url=url, model_name="slow", initial_workers=1, synchronous=False
    )
    assert reply.status == 202, f"POST /models: {reply.status}"
    await until(lambda: _is_known(arena, "slow"), what="the model is known")
    early = await arena.load.ask("slow", "work", 0)
    _expect(early, 503, "model_not_ready")
    assert "retry-after" in early.headers
    assert (await arena.server.get("/health/ready")).status == 200, "not ready while one loads"
    await until(lambda: _is_ready(arena, "slow"), what="the slow model is ready")
    _expect(await arena.load.ask("slow", "work", 0), 200)
    assert (await arena.server.manage("DELETE", "/models/slow")).status == 200
    await arena.server.recover()
    return "503 with Retry-After while loading"


async def failing_load(arena: Arena) -> str:
    """Models that do not load are registered: refused, and nothing of them stays."""
    statuses = []
    for fault in ("raise", "crash"):
        url = arena.archive("failing", load_fault=fault)
        reply = await arena.server.manage(
            "POST", "/models", url=url, model_name="failing", initial_workers=1
        )
        assert reply.status >= 400, f"a model whose load fails was registered: {reply.status}"
        assert reply.code == "load_failed", f"answered {reply.code}"
        statuses.append(f"{fault} {reply.status}")
        assert (await arena.load.ask("failing", "work", 0)).status == 404
        await arena.server.recover()
    return ", ".join(statuses)


async def update_version(arena: Arena) -> str:
    """A second version takes over from the first, which is unregistered, under load."""
    second = arena.archive("second", mark="second")
    async with arena.model("updated", version="1"):
        swapped = arena.load.next_answer(lambda a: a.model == "updated" and a.mark == "second")
        reply = await arena.server.manage(
            "POST",
            "/models",
            url=second,
            model_name="updated",
            version="2",
            initial_workers=2,
            make_default=True,
        )
        assert reply.status == 200, f"POST /models: {reply.status} {reply.body[:300]!r}"
        since = (await swapped).came_at
        reply = await arena.server.manage("DELETE", "/models/updated/1")
        assert reply.status == 200, f"DELETE: {reply.status} {reply.body[:300]!r}"
        await _all_marked(arena, "updated", "second", since)
        await arena.server.recover()
    return "1 became 2"


async def scale(arena: Arena) -> str:
    """Workers are added and taken away, under load."""
    for size in (4, 1, 3, MAIN_WORKERS):
        reply = await arena.server.manage("PUT", "/models/main", min_worker=size, synchronous=True)
        assert reply.status == 200, f"PUT: {reply.status} {reply.body[:300]!r}"
        await arena.load.flow(15)
        await arena.server.recover()
    return "to 4, 1, 3 and back"


async def watch(arena: Arena) -> str:
    """The archive of a model is replaced; the new one takes over."""
    mark = arena.next_mark()
    swapped = arena.load.next_answer(lambda a: a.mark == mark)
    started = time.monotonic()
    arena.archive("main", mark=mark)
    since = (await asyncio.wait_for(swapped, 45)).came_at
    await _all_marked(arena, "main", mark, since)
    await arena.server.recover()
    return f"new answers after {since - started:.1f} s"


async def watch_broken(arena: Arena) -> str:
    """The archive of a model is replaced by rubbish, and by one that fails to load."""
    refused = "the change cannot be loaded"
    for is_rubbish in (True, False):
        seen = arena.server.log().count(refused)
        if is_rubbish:
            staging = arena.main.with_suffix(".new")
            staging.write_bytes(arena.random.randbytes(5000))
            staging.replace(arena.main)
        else:
            arena.archive("main", load_fault="raise")
        await until(
            lambda seen=seen: arena.server.log().count(refused) > seen,  # type: ignore[misc]
            what="the broken archive is refused",
        )
        await arena.load.flow(15)
        await arena.server.recover()
    await watch(arena)
    return "old one went on, then a good one"


async def sighup(arena: Arena) -> str:
    """The configuration file changes and is read again."""
    size = arena.random.randrange(300, 500)
    arena.write_config(queue_size=size)
    arena.server.send(signal.SIGHUP)

    async def is_applied() -> bool:
        return bool((await arena.server.describe("main"))["queue"]["limit"] == size)

    await until(is_applied, what="the configuration is applied")
    await arena.load.flow(15)
    await arena.server.recover()
    return f"queue_size {size}"


async def sighup_and_watch(arena: Arena) -> str:
    """Archive and configuration change at the same time; one model comes of it, not two."""
    mark, size = arena.next_mark(), arena.random.randrange(300, 500)
    arena.archive("main", mark=mark)
    arena.write_config(queue_size=size)
    arena.server.send(signal.SIGHUP)

    async def is_applied() -> bool:
        described = await arena.server.describe("main")
        answer = await arena.load.answer_of(lambda a: a.model == "main")
        return bool(described["queue"]["limit"] == size and answer.mark == mark)

    await until(is_applied, what="both changes are applied")
    await arena.server.recover()
    return "both applied"


async def full_disk(arena: Arena) -> str:
    """The state file cannot be written; serving and registering go on."""
    complaint = f"state_file {arena.state_file} cannot be written"
    seen = arena.server.log().count(complaint)
    with arena.full_disk():
        before = arena.state_file.exists()
        async with arena.model("unsaved", initial_workers=1):
            assert arena.server.log().count(complaint) > seen, "nothing is said of it"
        assert arena.state_file.exists() == before, "the old state was lost"
    arena.state_file.unlink(missing_ok=True)
    await arena.server.manage("PUT", "/models/main", min_worker=MAIN_WORKERS, synchronous=True)
    assert arena.state_file.exists(), "not saved when there was room again"
    return "said so, went on"


async def no_fork(arena: Arena) -> str:
    """The system gives no more processes while a worker dies; it comes back when there are."""
    with _process_limit(arena) as limit:
        pid = (await arena.server.worker_pids("main"))[0]
        at_risk = arena.load.outstanding()
        limit.write_text((limit.parent / "pids.current").read_text())
        arena.server.kill_child(pid)
        lifted_after = 1.0 if arena.is_short else 4.0
        await arena.load.flow(50)
        await _serve_for(arena, lifted_after)
        limit.write_text("max")
        await arena.load.settle(at_risk)
        await arena.server.recover(dead=pid)
    return f"for {lifted_after:g} s"


async def kill_server(arena: Arena) -> str:
    """The server is killed and started again: registrations are back, and no process is left."""
    reply = await arena.server.manage(
        "POST", "/models", url="other.model", model_name="kept", initial_workers=1
    )
    assert reply.status == 200, f"POST /models: {reply.status}"
    children = arena.server.children()
    started = time.monotonic()
    arena.load.outage = Outage(started, is_sudden=True)
    arena.server.send(signal.SIGKILL)
    await arena.server.exit_status()
    await arena.is_gone(children)
    await arena.restart()
    took = time.monotonic() - started
    _expect(await arena.load.ask("kept", "work", 0), 200)
    assert (await arena.server.manage("DELETE", "/models/kept")).status == 200
    await arena.server.recover()
    left = sorted(path.name for path in arena.work.iterdir())
    assert len(left) == 1, f"the killed server's folders are still there: {left}"
    return f"serving again after {took:.1f} s"


async def stop_server(arena: Arena) -> str:
    """The server is stopped under load: what it accepted is answered, and nothing is left."""
    children = arena.server.children()
    arena.load.unanswered.clear()
    at_risk = arena.load.outstanding()
    arena.load.outage = Outage(time.monotonic(), is_sudden=False)
    started = time.monotonic()
    status = await arena.server.stop()
    took = time.monotonic() - started
    assert status == 0, f"exit status {status}"
    await arena.is_gone(children)
    left = sorted(path.name for path in arena.work.iterdir())
    assert not left, f"left in work_dir: {left}"
    dropped = arena.tokens_run() & set(arena.load.unanswered)
    assert not dropped, f"{len(dropped)} requests were run, and their answers lost: {dropped}"
    await arena.restart()
    await arena.load.settle(at_risk)
    await arena.server.recover()
    return f"exit 0 after {took:.2f} s"


FAULTS = (
    Fault(kill_worker),
    Fault(kill_only_worker),
    Fault(kill_loader),
    Fault(poison),
    Fault(poison_flood),
    Fault(daemon),
    Fault(hang),
    Fault(leak),
    Fault(recycle),
    Fault(slow_load),
    Fault(failing_load),
    Fault(update_version),
    Fault(scale),
    Fault(watch),
    Fault(watch_broken),
    Fault(sighup),
    Fault(sighup_and_watch),
    Fault(full_disk),
    Fault(no_fork),
    Fault(kill_server, may_refuse=True),
    Fault(stop_server, may_refuse=True),
)


async def _all_marked(arena: Arena, model: str, mark: str, since: float) -> None:
    """See that requests sent after a swap meet the new version only."""

    def is_later(answer: Answer) -> bool:
        return answer.model == model and answer.sent_at > since

    for _ in range(10):
        answer = await arena.load.answer_of(is_later)
        assert answer.mark == mark, f"{answer.mark} answered after {mark} had taken over"


def _from_another(model: str, pid: int) -> Callable[[Answer], bool]:
    return lambda answer: answer.model == model and answer.pid != pid


async def _serve_for(arena: Arena, seconds: float) -> None:
    """Wait while answers keep coming."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await arena.load.flow(1)


async def _is_known(arena: Arena, model: str) -> bool:
    return (await arena.server.manage("GET", f"/models/{model}")).status == 200


async def _is_ready(arena: Arena, model: str) -> bool:
    return bool((await arena.server.describe(model))["ready"])


@contextlib.contextmanager
def _process_limit(arena: Arena) -> Iterator[Path]:
    """Put the server's processes into a control group; return the file with its limit.

    RLIMIT_NPROC would not bind root.
    """
    roots = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))
    root = next((root for root in roots if (root / "cgroup.procs").exists()), roots[1])
    group = root / f"mms-chaos-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise Skipped(f"no control group can be made: {error}") from None
    try:
        if not (group / "pids.max").exists():
            raise Skipped(f"{root} does not limit numbers of processes")
        try:
            _move(arena, group)
        except OSError as error:
            raise Skipped(f"no process can be put into a control group: {error}") from None
        yield group / "pids.max"
    finally:
        with contextlib.suppress(OSError):
            (group / "pids.max").write_text("max")
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (root / "cgroup.procs").write_text(pid)
        with contextlib.suppress(OSError):
            group.rmdir()


def _move(arena: Arena, group: Path) -> None:
    for pid in [arena.server.pid, *(child.pid for child in arena.server.children())]:
        (group / "cgroup.procs").write_text(str(pid))


def _expect(reply: Reply, status: int, code: str = "") -> None:
    got = (reply.status, reply.code)
    assert got == (status, code), f"expected {status} {code}, got {got}: {reply.body[:300]!r}"


def _waits(what: str, seconds: list[float]) -> str:
    middle, longest = statistics.median(seconds) * 1000, max(seconds) * 1000
    return f"{what} {middle:.0f} ms (longest {longest:.0f})"
