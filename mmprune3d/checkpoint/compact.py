"""From a checkpoint of which queries were removed to one that never had them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from mmprune3d.pruning.gpq import RANK

TRAINING_STATE = ('optimizer', 'param_schedulers', 'message_hub')
"""Parts of a checkpoint that only resuming needs."""
HOOK_STATE = 'gpq'
"""What GPQHook keeps; it has nothing more to do."""
AVERAGED = 'module.'
"""Prefix of names in the state dict of an averaged model."""


def without_queries(state_dict: Mapping[str, Tensor], key: str, kept: Tensor) -> dict[str, Tensor]:
    """A state dict with the rows `kept` of one embedding, and nothing that says that there were others.

    Args:
        state_dict: Of a model; not modified. Its ``_metadata`` goes along.
        key: Name of the embedding.
        kept: [n] int64, ids of rows.

    Raises:
        KeyError: If there is no such embedding.
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
    """The state of an optimizer with the rows `kept` of one parameter; what has no rows (step counters) stays.

    Args:
        state: Of a torch optimizer; not modified.
        index: The parameter's number among the optimizer's parameters.
        num_rows: Rows of the parameter.
        kept: [n] int64, ids of rows.
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
    """A checkpoint that loads into the unmodified detector with ``len(kept)`` queries, averaged weights included.

    Args:
        checkpoint: As mmengine writes it, or a bare state dict; not modified.
        key: Name of the embedding of the queries.
        kept: [n] int64, ids of the queries that stay.
        optimizer_index: Number of the embedding's parameter in the optimizer; needed to keep the optimizer.
        drop: Parts to leave out, such as `TRAINING_STATE`.

    Raises:
        ValueError: If the optimizer should stay, but `optimizer_index` is None.
    """
    whole = dict(checkpoint) if 'state_dict' in checkpoint else {'state_dict': checkpoint, 'meta': {}}
    num_rows = len(whole['state_dict'][f'{key}.weight'])
    made = {name: value for name, value in whole.items() if name not in {HOOK_STATE, *drop}}
    made['state_dict'] = without_queries(whole['state_dict'], key, kept)
    if 'ema_state_dict' in made:
        made['ema_state_dict'] = without_queries(whole['ema_state_dict'], AVERAGED + key, kept)
    if 'optimizer' in made:
        if optimizer_index is None:
            raise ValueError('the optimizer of the checkpoint can be kept only if its parameters are known')
        made['optimizer'] = optimizer_without_queries(whole['optimizer'], optimizer_index, num_rows, kept)
    meta = dict(whole.get('meta', {}))
    record = {'embedding': key, 'kept': kept.tolist(), 'of': num_rows}
    made['meta'] = {**meta, 'mmprune3d': {**meta.get('mmprune3d', {}), 'compact': record}}
    return made
