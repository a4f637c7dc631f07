"""Floating point operations of one call, counted where they happen: tokens removed at run time count as removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def _cpu_attention_flops(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: object, **__: object
) -> int:
    # torch's counter knows the fused attention of CUDA only
    return sdpa_flop_count(query, key, value)


def count_flops(call: Callable[[], object], stages: Mapping[str, nn.Module]) -> dict[str, float]:
    """GFLOPs (1e9; a multiply-add counts as two) of one `call`, per stage, with `rest` and `total`.

    Matrix products, convolutions and attention count (torch's own flop counter); element-wise work does not.

    Args:
        call: A prediction, without gradients.
        stages: Stage name -> module.
    """
    spent = dict.fromkeys(stages, 0)
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops}
    )
    started: dict[str, int] = {}

    def start(name: str, *_: object) -> None:
        started[name] = counter.get_total_flops()

    def stop(name: str, *_: object) -> None:
        spent[name] += counter.get_total_flops() - started[name]

    handles = []
    for name, module in stages.items():
        handles.append(module.register_forward_pre_hook(partial(start, name)))
        handles.append(module.register_forward_hook(partial(stop, name)))
    try:
        with torch.no_grad(), counter:
            call()
    finally:
        for handle in handles:
            handle.remove()
    total = counter.get_total_flops()
    counts = {**spent, 'rest': total - sum(spent.values()), 'total': total}
    return {name: value / 1e9 for name, value in counts.items()}
