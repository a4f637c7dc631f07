"""Peak memory of one call beyond what was held before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from .quiet import without_lines

NOTICE = 'USDT:'
"""Start of the lines that torch 2.13 writes to standard error when a profiler starts and stops."""


def peak_memory(call: Callable[[], object]) -> float:
    """MiB (2**20 bytes) that tensors of one `call` occupy at most at the same time, weights and inputs not counted.

    On CUDA the allocator's own peak; on the CPU, which keeps no such figure, the running sum of the profiler's
    allocations and releases.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with without_lines(NOTICE):
        profiler.start()
    try:
        call()
    finally:
        with without_lines(NOTICE):
            profiler.stop()
    held = peak = 0
    records: Any = profiler.profiler  # torch's own annotations know less than there is
    for event in records.kineto_results.events():
        if event.name() == '[memory]':
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20
