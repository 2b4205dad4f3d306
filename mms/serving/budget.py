"""The bytes of requests and answers that the server holds, all clients and models together.

Pure: imports nothing of ours but errors. Each request in flight has one `Hold`, whose owner
releases it however the request ends; everything else only grows it or replaces what it counts.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from mms.errors import BufferFull, InvalidServiceOutput, PayloadTooLarge

#: A request or an answer up to this size is small. Refusing a small answer would write an error of
#: about the same size instead, so small answers are sent even when the budget is spent.
SMALL_BYTES = 64 << 10
#: One part in so many of the budget is kept for small bodies: clients that fill the rest with
#: large ones do not shut out those that ask for a usual prediction.
_PARTS_OF_SMALL = 8
#: What one part of a body costs beside its bytes: an object's head and its place in a list.
CHUNK_OVERHEAD_BYTES = 64
#: 0 in the settings: this part of the memory that the process may use.
_PART_OF_MEMORY = 4
_RETRY_AFTER_S = 1.0
#: Where no limit can be read.
_UNKNOWN_MEMORY_BYTES = 4 << 30


class Budget:
    """Bytes held now, and the most that may be.

    Attributes:
        limit: The most bytes that may be held.
        held: Bytes held now.
    """

    __slots__ = ("_large_limit", "held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._large_limit = limit - limit // _PARTS_OF_SMALL

    def check(self, size: int) -> None:
        """Refuse a body of a known length that cannot be held now, before any of it is read.

        Raises:
            PayloadTooLarge: It is longer than the whole budget.
            BufferFull: It does not fit beside what is held.
        """
        limit = self._large_limit if size > SMALL_BYTES else self.limit
        if self.held + size > limit:
            self._refuse(size, limit)

    def _refuse(self, size: int, limit: int) -> None:
        if size > limit:
            raise PayloadTooLarge(
                f"the body is longer than the server may hold of large ones ({limit} bytes of "
                f"max_buffered_bytes, {self.limit}); start it with --max-buffered-bytes to allow "
                "more"
            )
        raise BufferFull(
            f"the server holds as many bytes of requests and answers as max_buffered_bytes allows "
            f"({self.limit}); try again later, or start it with --max-buffered-bytes to allow more",
            _RETRY_AFTER_S,
        )


class Hold:
    """What one request in flight holds of a budget; a context manager that gives it back.

    Attributes:
        size: Bytes held now.
    """

    __slots__ = ("_budget", "size")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.size = 0

    def check(self, size: int) -> None:
        """Refuse a body of `size` bytes in all that cannot be held now.

        Raises:
            PayloadTooLarge: It is longer than the whole budget.
            BufferFull: It does not fit beside what is held.
        """
        self._budget.check(size)

    def grow(self, size: int) -> None:
        """Count `size` more bytes of a body.

        Raises:
            PayloadTooLarge: The body is longer than the whole budget.
            BufferFull: They do not fit beside what is held; nothing is counted.
        """
        budget = self._budget
        total = self.size + size
        limit = budget._large_limit if total > SMALL_BYTES else budget.limit
        if budget.held + size > limit:
            budget._refuse(total, limit)
        self.size = total
        budget.held += size

    def replace(self, size: int) -> None:
        """Count an answer of `size` bytes instead of the body, which is gone.

        Raises:
            InvalidServiceOutput: The answer is longer than the whole budget.
            BufferFull: It does not fit beside what is held; nothing is held any more.
        """
        budget = self._budget
        others = budget.held - self.size
        if size > SMALL_BYTES and others + size > budget.limit:
            self.release()
            if size > budget.limit:
                raise InvalidServiceOutput(
                    f"the model's answer is longer than max_buffered_bytes ({budget.limit} "
                    "bytes); start the server with --max-buffered-bytes to allow more"
                )
            budget._refuse(size, budget.limit)
        budget.held = others + size
        self.size = size

    def release(self) -> None:
        """Release everything; a second time does nothing."""
        self._budget.held -= self.size
        self.size = 0

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def default_limit(root: Path = Path("/"), address_space: int = 0) -> int:
    """Return a quarter of the memory that this process may use.

    Args:
        root: Where ``/proc`` and ``/sys`` are.
        address_space: The soft RLIMIT_AS in bytes; 0 is no limit.
    """
    sizes = [address_space, *_cgroup_limits(root), _physical_memory(root)]
    known = [size for size in sizes if size > 0]
    return min(known, default=_UNKNOWN_MEMORY_BYTES) // _PART_OF_MEMORY


def _cgroup_limits(root: Path) -> list[int]:
    """Return the limits of the cgroups this process is in, and of those above; v1 and v2."""
    base = root / "sys/fs/cgroup"
    found = [
        # What a container sees of its own group, whose path on the host says nothing here.
        _read_size(base / "memory.max"),
        _read_size(base / "memory/memory.limit_in_bytes"),
    ]
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        folder, name = base, "memory.max"
        if "memory" in controllers.split(","):
            folder, name = base / "memory", "memory.limit_in_bytes"
        elif controllers:
            continue
        for parent in (Path(path), *Path(path).parents):
            found.append(_read_size(folder / str(parent).lstrip("/") / name))
    return found


def _physical_memory(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _read_size(path: Path) -> int:
    text = _read(path).strip()
    # "max" is no limit.
    return int(text) if text.isdecimal() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
