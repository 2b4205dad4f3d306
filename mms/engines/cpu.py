"""The flags of this machine's CPU that decide which precision is fast. Pure but for reading them.

Engines tell what a CPU can emulate, not what it gains: OpenVINO reports bf16 on every CPU. So the
flags are read from the kernel.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mms.archive.candidates import Precision

_CPUINFO = Path("/proc/cpuinfo")
#: The flags that are recorded beside a measurement.
_OF_INTEREST = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimddp", "bf16", "i8mm", "sve"),
)


@dataclass(frozen=True, slots=True)
class Cpu:
    """A CPU.

    Attributes:
        model: Its name.
        vendor: Its maker's name, as the CPU tells it.
        flags: Those of its flags that matter, in a fixed order.
    """

    model: str
    vendor: str
    flags: tuple[str, ...]

    def gains_from(self, precision: Precision) -> bool:
        """Return whether a precision is faster than f32 on it, as far as flags tell.

        bf16 needs matrix units, or AMD's avx512_bf16, which was 1.7 to 2.1 times as fast as f32; on
        Intel's CPUs with avx512_bf16 alone it was 0.8 to 1.1 times as fast, and a quarter as fast
        where it is emulated. int8 gains with any AVX-512, most with VNNI (measured:
        docs/engines.md).
        """
        if precision == "bf16":
            return "amx_bf16" in self.flags or (
                self.vendor == "AuthenticAMD" and "avx512_bf16" in self.flags
            )
        if precision == "int8":
            return not {"avx512f", "avx_vnni", "i8mm"}.isdisjoint(self.flags)
        return True


def parse_cpuinfo(text: str, machine: str = "") -> Cpu:
    """Return the first CPU of ``/proc/cpuinfo``.

    Args:
        text: Content of the file.
        machine: Name of the architecture, for CPUs without a name there.
    """
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip(), value.strip())
    flags: Collection[str] = (fields.get("flags") or fields.get("Features") or "").split()
    return Cpu(
        fields.get("model name") or machine,
        fields.get("vendor_id", ""),
        tuple(flag for flag in _OF_INTEREST if flag in flags),
    )


@functools.cache
def this_cpu() -> Cpu:
    """Return the CPU of this machine, without flags where the kernel does not tell them."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return parse_cpuinfo(text, platform.machine())
