"""The budget of request and response bytes that the server holds, over all clients and models.

Pure: imports only errors. Each request in flight has one `Hold`, whose owner releases it however
the request ends; all other code only grows it or replaces its size.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from mms.errors import BufferFull, InvalidServiceOutput, PayloadTooLarge

#: A request or response up to this size is small. Refusing a small response would write an error of
#: about the same size instead, so small responses are sent even when the budget is exhausted.
SMALL_BYTES = 64 << 10
#: This fraction (1/8) of the budget is reserved for small bodies, so that clients that fill the
#: rest with large ones do not block usual predictions.
_PARTS_OF_SMALL = 8
#: Overhead of one chunk of a body: an object's header and its place in a list.
CHUNK_OVERHEAD_BYTES = 64
#: Default (0 in the settings): this fraction (1/4) of the memory that the process may use.
_PART_OF_MEMORY = 4
_RETRY_AFTER_S = 1.0
#: Assumed if no limit can be read.
_UNKNOWN_MEMORY_BYTES = 4 << 30


class Budget:
    """The bytes currently held, and their limit.

    Attributes:
        limit: Maximum number of bytes held.
        held: Bytes held now.
    """

    __slots__ = ("_large_limit", "held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._large_limit = limit - limit // _PARTS_OF_SMALL

    def check(self, size: int) -> None:
        """Refuse a body of known length that does not fit, before any of it is read.

        Raises:
            PayloadTooLarge: It is longer than the whole budget.
            BufferFull: It does not fit into the rest of the budget.
        """
        limit = self._large_limit if size > SMALL_BYTES else self.limit
        if self.held + size > limit:
            self._refuse(size, limit)

    def _refuse(self, size: int, limit: int) -> None:
        if size > limit:
            raise PayloadTooLarge(
                f"the body is larger than the server can buffer ({limit} of the {self.limit} bytes "
                "of max_buffered_bytes are for large bodies); start the server with a larger "
                "--max-buffered-bytes"
            )
        raise BufferFull(
            "the server buffers as many bytes of requests and responses as max_buffered_bytes "
            f"allows ({self.limit}); try again later, or start it with a larger "
            "--max-buffered-bytes",
            _RETRY_AFTER_S,
        )


class Hold:
    """The share of the budget held by one request in flight; a context manager that releases it.

    Attributes:
        size: Bytes held now.
    """

    __slots__ = ("_budget", "size")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.size = 0

    def check(self, size: int) -> None:
        """Refuse a body of `size` bytes in total that does not fit.

        Raises:
            PayloadTooLarge: It is longer than the whole budget.
            BufferFull: It does not fit into the rest of the budget.
        """
        self._budget.check(size)

    def grow(self, size: int) -> None:
        """Count `size` more bytes of a body.

        Raises:
            PayloadTooLarge: The body is longer than the whole budget.
            BufferFull: They do not fit into the rest of the budget; nothing is counted.
        """
        budget = self._budget
        total = self.size + size
        limit = budget._large_limit if total > SMALL_BYTES else budget.limit
        if budget.held + size > limit:
            budget._refuse(total, limit)
        self.size = total
        budget.held += size

    def replace(self, size: int) -> None:
        """Count a response of `size` bytes instead of the body, which has been freed.

        Raises:
            InvalidServiceOutput: The response is longer than the whole budget.
            BufferFull: It does not fit into the rest of the budget; the hold is then empty.
        """
        budget = self._budget
        others = budget.held - self.size
        if size > SMALL_BYTES and others + size > budget.limit:
            self.release()
            if size > budget.limit:
                raise InvalidServiceOutput(
                    f"the model's response is longer than max_buffered_bytes ({budget.limit} "
                    "bytes); start the server with a larger --max-buffered-bytes"
                )
            budget._refuse(size, budget.limit)
        budget.held = others + size
        self.size = size

    def release(self) -> None:
        """Release everything; further calls do nothing."""
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
        root: Folder that contains ``proc`` and ``sys``.
        address_space: The soft RLIMIT_AS in bytes; 0 means no limit.
    """
    sizes = [address_space, *_cgroup_limits(root), _physical_memory(root)]
    known = [size for size in sizes if size > 0]
    return min(known, default=_UNKNOWN_MEMORY_BYTES) // _PART_OF_MEMORY


def _cgroup_limits(root: Path) -> list[int]:
    """Return the limits of this process's cgroups and their ancestors; v1 and v2."""
    base = root / "sys/fs/cgroup"
    found = [
        # A container's view of its own cgroup, whose path on the host does not exist here.
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
    # "max" means no limit.
    return int(text) if text.isdecimal() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
