"""PUBLIC: the memory of processes, under MMS 1.x's name."""

from __future__ import annotations

import logging
from typing import TextIO

import psutil


def get_cpu_usage(pid: str | int) -> int:
    """Return the resident bytes of a process, whatever 1.x called it; 0 if there is none."""
    try:
        return int(psutil.Process(int(pid)).memory_info().rss)
    except psutil.Error:
        logging.exception("Failed to get process for pid: %s", pid)
        return 0


def check_process_mem_usage(stdin: TextIO) -> None:
    """Log ``PID:BYTES`` for each process of a line of ids, separated by commas."""
    for pid in stdin.readline().strip().split(","):
        size = get_cpu_usage(pid) if pid else 0
        if size:
            logging.info("%s:%d", pid, size)
