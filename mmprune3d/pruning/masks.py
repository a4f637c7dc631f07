"""Keep masks outside of the modules: packed for checkpoints, counted, applied.

Masks are ``dict[str, Tensor]``: parameter name -> bool tensor of the parameter's shape, True = keep.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .checks import shortened

_BIT = 2 ** torch.arange(8, dtype=torch.uint8)


def pack(masks: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Packs masks, eight entries per byte, for a checkpoint that is read with ``weights_only=True``.

    Returns:
        Name -> {'shape': list of int, 'bits': [ceil(N / 8)] uint8 on the CPU, the first entry in the lowest bit}.

    Raises:
        ValueError: If a mask is not bool.
    """
    wrong = [name for name, mask in masks.items() if mask.dtype != torch.bool]
    if wrong:
        raise ValueError(f'masks must be bool tensors, these are not: {shortened(wrong)}')
    packed = {}
    for name, mask in masks.items():
        flat = mask.detach().cpu().flatten().to(torch.uint8)
        flat = torch.nn.functional.pad(flat, (0, -len(flat) % 8))
        packed[name] = {'shape': list(mask.shape), 'bits': (flat.view(-1, 8) * _BIT).sum(1, dtype=torch.uint8)}
    return packed


def unpack(packed: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The inverse of `pack`, on the CPU.

    Raises:
        ValueError: If the number of bits does not fit the shape.
    """
    masks = {}
    for name, entry in packed.items():
        shape, bits = list(entry['shape']), entry['bits']
        num = math.prod(shape)
        if bits.dtype != torch.uint8 or len(bits) != -(-num // 8):
            raise ValueError(f'{name}: {len(bits)} x {bits.dtype} is no packed mask of shape {shape}')
        flat = (bits.cpu()[:, None] & _BIT).ne(0).flatten()
        masks[name] = flat[:num].view(shape).clone()
    return masks


def keep_rates(masks: Mapping[str, Tensor], groups: Mapping[str, str]) -> dict[str, Any]:
    """What is left, as plain types for reports.

    Args:
        masks: Name -> mask.
        groups: Name -> group.

    Returns:
        ``total``, a row, and ``groups`` and ``layers``, name -> row. A row has ``kept``, ``total`` and ``rate``; the
        rate of no weights at all is 1.

    Raises:
        ValueError: If a mask has no group.
    """
    unknown = [name for name in masks if name not in groups]
    if unknown:
        raise ValueError(f'no group is given for {shortened(unknown)}')
    counts = {name: (int(mask.sum()), mask.numel()) for name, mask in masks.items()}
    by_group = {
        group: _row(*zip(*(count for name, count in counts.items() if groups[name] == group)))
        for group in dict.fromkeys(groups[name] for name in masks)
    }
    layers = {name: _row((kept,), (total,)) for name, (kept, total) in counts.items()}
    return {'total': _row(*zip(*counts.values())) if counts else _row((), ()), 'groups': by_group, 'layers': layers}


def _row(kept: tuple[int, ...], total: tuple[int, ...]) -> dict[str, int | float]:
    return {'kept': sum(kept), 'total': sum(total), 'rate': sum(kept) / sum(total) if sum(total) else 1.0}


@torch.no_grad()
def apply_masks_(parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Sets the weights that are not kept to zero, in place, nan and infinity included; nothing else changes.

    Args:
        parameters: Name -> parameter, or optimizer state of its shape; may have more names than `masks`.
        masks: Name -> mask, on any device.

    Raises:
        ValueError: If a mask has no parameter, or another shape; nothing is changed then.
    """
    missing = [name for name in masks if name not in parameters]
    if missing:
        raise ValueError(f'no parameter for the masks {shortened(missing)}; there are {shortened(parameters, 20)}')
    wrong = [name for name, mask in masks.items() if mask.shape != parameters[name].shape]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f'{len(wrong)} masks do not fit; {name}: mask {tuple(masks[name].shape)}, parameter '
            f'{tuple(parameters[name].shape)}'
        )
    for name, mask in masks.items():
        parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)
