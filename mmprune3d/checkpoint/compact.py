"""Conversion of a checkpoint with pruned queries to one that contains only the remaining queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from mmprune3d.pruning.gpq import RANK

TRAINING_STATE = ('optimizer', 'param_schedulers', 'message_hub')
"""Parts of a checkpoint that are needed only to resume training."""
HOOK_STATE = 'gpq'
"""State of GPQHook in a checkpoint; a compact checkpoint has no use for it."""
AVERAGED = 'module.'
"""Prefix of tensor names in the state dict of an averaged model."""


def without_queries(state_dict: Mapping[str, Tensor], key: str, kept: Tensor) -> dict[str, Tensor]:
    """Reduces one embedding of a state dict to the rows `kept`, and removes the record of removed rows.

    Args:
        state_dict: State dict of a model, with its ``_metadata``; not modified.
        key: Name of the embedding.
        kept: Ids of the remaining rows [n] int64.

    Raises:
        KeyError: If the state dict has no such embedding.
    """
    weight = f'{key}.weight'
    if weight not in state_dict:
        raise KeyError(f'the state dict has no {weight}')
    made = type(state_dict)()
    for name, value in state_dict.items():
        if name != f'{key}.{RANK}':
            made[name] = value[kept].clone() if name == weight else value
    if hasattr(state_dict, '_metadata'):
        made._metadata = state_dict._metadata
    return made


def optimizer_without_queries(state: Mapping[str, Any], index: int, num_rows: int, kept: Tensor) -> dict[str, Any]:
    """Reduces the optimizer state of one parameter to the rows `kept`; values without rows (step counters) stay.

    Args:
        state: State of a torch optimizer; not modified.
        index: Index of the parameter among the optimizer's parameters.
        num_rows: Number of rows of the parameter.
        kept: Ids of the remaining rows [n] int64.
    """
    moments = {
        name: value[kept].clone() if isinstance(value, Tensor) and value.dim() and len(value) == num_rows else value
        for name, value in state['state'].get(index, {}).items()
    }
    parameters = {**state['state'], index: moments} if moments else state['state']
    return {**state, 'state': parameters}


def compact_checkpoint(
    checkpoint: Mapping[str, Any],
    key: str,
    kept: Tensor,
    optimizer_index: int | None = None,
    drop: Iterable[str] = (),
) -> dict[str, Any]:
    """Creates a checkpoint that loads into the unmodified detector with ``len(kept)`` queries.

    Averaged weights are reduced as well.

    Args:
        checkpoint: Checkpoint of mmengine, or a bare state dict; not modified.
        key: Name of the embedding of the queries.
        kept: Ids of the remaining queries [n] int64.
        optimizer_index: Index of the embedding's parameter in the optimizer; needed to keep the optimizer state.
        drop: Parts to leave out, such as `TRAINING_STATE`.

    Raises:
        ValueError: If the optimizer state is to be kept, but `optimizer_index` is None.
    """
    whole = dict(checkpoint) if 'state_dict' in checkpoint else {'state_dict': checkpoint, 'meta': {}}
    num_rows = len(whole['state_dict'][f'{key}.weight'])
    made = {name: value for name, value in whole.items() if name not in {HOOK_STATE, *drop}}
    made['state_dict'] = without_queries(whole['state_dict'], key, kept)
    if 'ema_state_dict' in made:
        made['ema_state_dict'] = without_queries(whole['ema_state_dict'], AVERAGED + key, kept)
    if 'optimizer' in made:
        if optimizer_index is None:
            raise ValueError('the optimizer state of the checkpoint can be kept only if optimizer_index is given')
        made['optimizer'] = optimizer_without_queries(whole['optimizer'], optimizer_index, num_rows, kept)
    meta = dict(whole.get('meta', {}))
    record = {'embedding': key, 'kept': kept.tolist(), 'of': num_rows}
    made['meta'] = {**meta, 'mmprune3d': {**meta.get('mmprune3d', {}), 'compact': record}}
    return made
