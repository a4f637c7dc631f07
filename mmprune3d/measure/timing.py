"""Wall-clock time of a model's stages: one whole prediction, split at module boundaries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from statistics import median
from typing import Any

import torch
from torch import nn

TOTAL = 'total'
REST = 'rest'


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class StageTimer:
    """Sums the time spent inside chosen modules during each call.

    Args:
        stages: Stage name -> module. The modules must not contain one another, or their times would count twice.

    Raises:
        ValueError: If one stage's module lies inside another's.
    """

    def __init__(self, stages: Mapping[str, nn.Module]) -> None:
        for name, module in stages.items():
            for other, inner in stages.items():
                if other != name and any(inner is child for child in module.modules()):
                    raise ValueError(f'stage {other!r} lies inside stage {name!r}')
        self.stages = dict(stages)
        self._spent = dict.fromkeys(self.stages, 0.0)
        self._started: dict[str, float] = {}

    @contextmanager
    def _watch(self, name: str) -> Iterator[None]:
        def start(*_: object) -> None:
            self._started[name] = _now()

        def stop(*_: object) -> None:
            self._spent[name] += _now() - self._started.pop(name)

        module = self.stages[name]
        handles = module.register_forward_pre_hook(start), module.register_forward_hook(stop)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def measure(self, call: Callable[[], object]) -> dict[str, float]:
        """Milliseconds of one `call`, per stage, with `rest` (what no stage covers) and `total`."""
        self._spent = dict.fromkeys(self.stages, 0.0)
        with ExitStack() as stack:
            for name in self.stages:
                stack.enter_context(self._watch(name))
            begin = _now()
            call()
            total = _now() - begin
        rest = total - sum(self._spent.values())
        return {name: 1e3 * value for name, value in {**self._spent, REST: rest, TOTAL: total}.items()}


def medians(samples: list[dict[str, float]]) -> dict[str, float]:
    """Median per stage over several measurements with the same stages."""
    return {name: median(sample[name] for sample in samples) for name in samples[0]}


def milliseconds(call: Callable[[], object], device: str) -> float:
    """Time of one call; on a GPU by CUDA events."""
    if device != 'cuda':
        begin = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - begin)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    call()
    events[1].record()
    torch.cuda.synchronize()
    return events[0].elapsed_time(events[1])


def interleaved(calls: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Median milliseconds of each call: they take turns, so that a busy machine slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(milliseconds(call, device))
    return {name: median(values) for name, values in times.items()}


@contextmanager
def timed_methods(owner: nn.Module, names: Sequence[str], spent: list[float]) -> Iterator[None]:
    """Inside the block, `spent` gets the milliseconds of every call of the methods of `owner`."""
    device = next(owner.parameters()).device.type

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            results: list[Any] = []
            spent.append(milliseconds(lambda: results.append(method(*args, **kwargs)), device))
            return results[0]

        return call

    for name in names:
        setattr(owner, name, timed(getattr(owner, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(owner, name)
