"""Work counted, not timed: how often the interpreter runs a line, or calls a function of Python or C.

A count is the same on every machine and on a busy one. What one call of a C function costs is not in it, so
a test that must see a quadratic pattern inside `re` compares CPU times within a process instead.
"""

import gc
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any


def steps(work: Callable[[], object]) -> int:
    """Lines that ran and functions that were called, Python's and C's."""
    count = 0

    def trace(_frame: FrameType, _event: str, _arg: Any) -> Any:
        nonlocal count
        count += 1
        return trace

    def profile(_frame: FrameType, event: str, _arg: Any) -> None:
        nonlocal count
        count += event == "c_call"

    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
        sys.settrace(None)
    return count


def seconds(work: Callable[[], object], *, best_of: int = 5) -> float:
    """Processor time of the process for one call, the least of several."""
    times = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(best_of):
            began = time.process_time()
            work()
            times.append(time.process_time() - began)
    finally:
        gc.enable()
    return min(times)
