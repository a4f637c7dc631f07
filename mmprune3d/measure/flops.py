"""Floating point operations of one call, counted where they happen: tokens removed at run time count as removed.

Every operator that ran is in one of three groups: counted, element-wise work (which does not count, as is usual), or
named as not counted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from math import prod
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .operators import ForeignCalls, is_elementwise, name_of

Shape = tuple[int, ...]


class Counted(NamedTuple):
    """Operations of one call.

    Attributes:
        gflops: GFLOPs (1e9; a multiply-add counts as two) per stage, with `rest` and `total`.
        elementwise: Names of the operators that ran and do element-wise work, reductions, norms, pooling, resampling,
            sorting or copies, which does not count.
        unknown: Names of all others that ran and are in no figure: operators without a counter, and compiled functions
            that torch does not see, such as mmcv's.
    """

    gflops: dict[str, float]
    elementwise: tuple[str, ...]
    unknown: tuple[str, ...]


def _attention(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)  # torch's counter knows the fused attention of CUDA only


def _added_product(total: Shape, left: Shape, right: Shape, *_: object, **__: object) -> int:
    """Of ``total + left @ right``, with or without samples in front, or a vector on the right."""
    return 2 * prod(left) * (right[-1] if len(right) > 1 else 1)


def _product(left: Shape, right: Shape, *_: object, **__: object) -> int:
    return _added_product((), left, right)


def _linear(values: Shape, weight: Shape, *_: object, **__: object) -> int:
    return 2 * prod(values) * weight[0]


_FORMULAS: dict[str, Callable[..., int]] = {
    '_scaled_dot_product_flash_attention_for_cpu': _attention,
    'addmm_': _added_product,
    'baddbmm_': _added_product,
    'addbmm': _added_product,
    'addbmm_': _added_product,
    'addmv': _added_product,
    'addmv_': _added_product,
    '_addmm_activation': _added_product,
    'mv': _product,
    'dot': _product,
    'vdot': _product,
    'mkldnn_linear': _linear,
}
"""Products that torch's counter lacks; in-place ones among them (our sparse convolution adds with one)."""


def count_operations(call: Callable[[], object], stages: Mapping[str, nn.Module]) -> Counted:
    """Counts one `call`. Matrix products, convolutions and attention count (torch's own flop counter and some more).

    torch's fast path for attention and whole encoder layers, one operator that no counter knows, is off meanwhile.

    Args:
        call: A prediction, without gradients.
        stages: Stage name -> module.
    """
    spent, started = dict.fromkeys(stages, 0), {}
    counter = FlopCounterMode(
        display=False, custom_mapping={getattr(torch.ops.aten, name): formula for name, formula in _FORMULAS.items()}
    )

    def start(name: str, *_: object) -> None:
        started[name] = counter.get_total_flops()

    def stop(name: str, *_: object) -> None:
        spent[name] += counter.get_total_flops() - started[name]

    with ExitStack() as stack:
        for name, module in stages.items():
            stack.callback(module.register_forward_pre_hook(partial(start, name)).remove)
            stack.callback(module.register_forward_hook(partial(stop, name)).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(_fast_path_off())
        seen, foreign = stack.enter_context(_Seen()), stack.enter_context(ForeignCalls())
        stack.enter_context(counter)  # the last one decomposes what it can; `seen` gets the parts
        call()
    total = counter.get_total_flops()
    counts = {**spent, 'rest': total - sum(spent.values()), 'total': total}
    left = {op for op in seen.operators if op.overloadpacket not in counter.flop_registry}
    unknown = sorted({name_of(op) for op in left if not is_elementwise(op)} | foreign.names)
    _tell(tuple(unknown))
    elementwise = sorted({name_of(op) for op in left if is_elementwise(op)})
    return Counted({name: value / 1e9 for name, value in counts.items()}, tuple(elementwise), tuple(unknown))


def count_flops(call: Callable[[], object], stages: Mapping[str, nn.Module]) -> dict[str, float]:
    """The GFLOPs of `count_operations`; what is not counted is in the log."""
    return count_operations(call, stages).gflops


@cache  # benchmarks count many times
def _tell(unknown: tuple[str, ...]) -> None:
    if unknown:
        print_log(f'not counted in GFLOPs: {", ".join(unknown)}', logger='current', level=logging.WARNING)


@contextmanager
def _fast_path_off() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Seen(TorchDispatchMode):
    """Remembers which operators ran."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.operators.add(func)
        return func(*args, **(kwargs or {}))
