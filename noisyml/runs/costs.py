"""The cost of work: wall time, processor time and memory of this process and those it has ended."""

from __future__ import annotations

import re
import time
from pathlib import Path

import psutil

_MIB = 2**20
#: Where Linux tells what a process has held.
_STATUS = Path("/proc/self/status")


class Meter:
    """Measures from its construction on."""

    def __init__(self) -> None:
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        self._wall, self._processor = time.perf_counter(), _processor_seconds()

    def read(self) -> dict[str, float]:
        """Metrics by name.

        ``time/train_seconds`` of wall time, ``time/processor_seconds`` of all threads and (on
        POSIX) ended children, ``memory/peak_mib``: the most that this process has held since its
        start (macOS: holds), and ``memory/peak_device_mib`` on a GPU since the construction.
        """
        import torch

        found = {
            "time/train_seconds": time.perf_counter() - self._wall,
            "time/processor_seconds": _processor_seconds() - self._processor,
            "memory/peak_mib": _peak_bytes() / _MIB,
        }
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            found["memory/peak_device_mib"] = torch.cuda.max_memory_allocated() / _MIB
        return found


def _processor_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def _peak_bytes() -> float:
    """The most that this process has held, where the system keeps that; else what it holds."""
    if _STATUS.is_file():
        found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text(encoding="utf-8"))
        if found:
            return 1024.0 * int(found[1])
    held = psutil.Process().memory_info()
    return float(getattr(held, "peak_wset", held.rss))
