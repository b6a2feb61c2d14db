"""Work counted, not timed: how often the interpreter runs a line, or calls a function of Python or C.

A count is the same on every machine and on a busy one. What one call of a C function costs is not in it, so
a test that must see a quadratic pattern inside `re` compares CPU times within a process instead.
"""

import gc
import sys
import time


def steps(work):
    """Lines that ran and functions that were called, Python's and C's."""
    count = 0

    def trace(_frame, _event, _arg):
        nonlocal count
        count += 1
        return trace

    def profile(_frame, event, _arg):
        nonlocal count
        count += event == "c_call"

    gc.collect()  # `asyncio.run` walks over all tasks, also those of former tests that nobody has collected
    before = sys.gettrace(), sys.getprofile()  # coverage's
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(before[1])
        sys.settrace(before[0])
    return count


def seconds(work, *, best_of=5):
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
