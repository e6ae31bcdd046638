"""The cost of work: wall time, processor time and memory of this process and those it has ended."""

from __future__ import annotations

import resource
import sys
import time

#: Bytes of the unit in which the system tells the largest memory of a process.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
_MIB = 2**20


class Meter:
    """Measures from its construction on."""

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda.is_initialized()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        self._wall, self._processor = time.perf_counter(), _processor_seconds()

    def read(self) -> dict[str, float]:
        """Metrics by name.

        ``time/train_seconds`` of wall time, ``time/processor_seconds`` of all threads and ended
        children, ``memory/peak_mib``: the most that this process has held since its start, and
        ``memory/peak_device_mib`` on a GPU since the construction.
        """
        import torch

        found = {
            "time/train_seconds": time.perf_counter() - self._wall,
            "time/processor_seconds": _processor_seconds() - self._processor,
            "memory/peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            * _RSS_UNIT
            / _MIB,
        }
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            found["memory/peak_device_mib"] = torch.cuda.max_memory_allocated() / _MIB
        return found


def _processor_seconds() -> float:
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
