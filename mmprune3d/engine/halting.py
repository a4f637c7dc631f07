"""The detector that halts tokens: finding it, and listening to the records of its forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from mmprune3d.pruning.halting import HaltingRecord
from mmprune3d.pruning.halting_counts import HaltingSums

from .unwrap import unwrap

Listener = Callable[[HaltingRecord, list[Tensor] | None], None]
"""Called with the record of a batch and the annotated boxes [G, 7 or more] of each sample, None if there are none."""


def halting_detector(model: nn.Module) -> nn.Module:
    """The module of `model` that halts tokens: it has ``record_listeners``, and gates in its backbone.

    Raises:
        ValueError: If there is no such module; the message says what was found and what is valid.
    """
    model = unwrap(model)
    for module in model.modules():
        if hasattr(module, 'record_listeners') and len(getattr(getattr(module, 'backbone', None), 'halting', ())):
            return module
    backbone = getattr(model, 'backbone', None)
    parts = ', '.join(f'{name} ({type(part).__name__})' for name, part in model.named_children()) or 'nothing'
    gates = 'no gates' if not len(getattr(backbone, 'halting', ())) else 'no record_listeners'
    raise ValueError(
        f'the model halts no tokens: found {type(model).__name__} with {parts}, and {gates}; valid is a '
        "HaltingSSTDetector whose backbone is dict(type='HaltingSST', halting=dict(sparsity=0.82), ...)"
    )


def grid_of(detector: nn.Module) -> tuple[Sequence[float], Sequence[float]]:
    """The size of a voxel (x, y, z) and the range of the points (lower x, y, z, upper x, y, z), in metres.

    Raises:
        ValueError: If neither the preprocessor nor the voxel encoder of `detector` has them.
    """
    preprocessor = getattr(detector, 'data_preprocessor', None)
    for part in (getattr(preprocessor, 'voxel_layer', None), getattr(detector, 'voxel_encoder', None)):
        if hasattr(part, 'voxel_size') and hasattr(part, 'point_cloud_range'):
            return tuple(map(float, part.voxel_size)), tuple(map(float, part.point_cloud_range))
    raise ValueError(
        f'{type(detector).__name__} has no voxel_size and point_cloud_range; valid places are '
        'data_preprocessor.voxel_layer and voxel_encoder'
    )


@contextmanager
def listening(detector: nn.Module, listener: Listener) -> Iterator[None]:
    """Calls `listener` after every loss and every prediction of `detector` inside the ``with`` block.

    Args:
        detector: A module with ``record_listeners``, see `halting_detector`.
        listener: See `Listener`.
    """
    detector.record_listeners.append(listener)
    try:
        yield
    finally:
        detector.record_listeners.remove(listener)


def records_of(detector: nn.Module, call: Callable[[], object]) -> list[HaltingRecord]:
    """The records of the forward passes that `call` makes, in their order.

    Args:
        detector: A detector; one without ``record_listeners`` halts no tokens and gives no records.
        call: Runs the detector.
    """
    heard: list[HaltingRecord] = []
    if not hasattr(detector, 'record_listeners'):
        return heard
    with listening(detector, lambda record, _: heard.append(record)):
        call()
    return heard


def over_processes(sums: HaltingSums) -> HaltingSums:
    """The counts added up over all processes of a training; every process gets the same result, on the CPU."""
    flat = torch.cat([sums.counts.flatten(), sums.gates.flatten()])
    all_reduce(flat)
    counts, gates = flat.cpu().split([sums.counts.numel(), sums.gates.numel()])
    return HaltingSums(counts.view_as(sums.counts), gates.view_as(sums.gates), sums.layers)
