"""Checkpoints without the channels that were removed: state dicts and averaged weights, smaller tensors throughout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from mmprune3d.pruning.channels import ChannelGroup, mask_tensors, slice_tensors

from .compact import AVERAGED, TRAINING_STATE
from .metadata import with_metadata

META = 'channels'
"""Under ``checkpoint['meta']['mmprune3d']``: group name -> [channels kept, of how many]."""


def structure_of(state_dict: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Tensor name -> shape: what :func:`mmprune3d.layers.slim.slim_model_` and ``SlimDetector`` need, fit for JSON."""
    return {name: list(value.shape) for name, value in state_dict.items()}


def slim_state_dict(
    state_dict: Mapping[str, Tensor], groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A state dict without the removed channels; module versions in ``_metadata`` go along.

    Args:
        state_dict: Of the dense model; not modified, and shared where nothing is removed.
        groups: Groups of the model.
        keep: Group name -> bool [C], True = keep; groups that are not named keep everything.

    Raises:
        ValueError: If groups, `keep` and weights do not belong together.
    """
    _check_present(state_dict, groups)
    return with_metadata(slice_tensors(state_dict, groups, keep), state_dict)


def mask_state_dict(
    state_dict: Mapping[str, Tensor], groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A dense state dict whose model computes what the slim one does: weights, biases and norm affines are 0."""
    _check_present(state_dict, groups)
    return with_metadata(mask_tensors(state_dict, groups, keep), state_dict)


def slim_checkpoint(
    checkpoint: Mapping[str, Any], groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]
) -> dict[str, Any]:
    """A checkpoint of the slim model, averaged weights included; what only resuming needs is left out.

    ``SlimDetector`` can build its model from the file alone; what was removed is written into
    ``meta['mmprune3d']['channels']``.

    Args:
        checkpoint: As mmengine writes it, or a bare state dict; not modified.
        groups: Groups of the model.
        keep: Group name -> bool [C].

    Raises:
        ValueError: If groups, `keep` and weights do not belong together.
    """
    whole = dict(checkpoint) if 'state_dict' in checkpoint else {'state_dict': checkpoint}
    made = {name: value for name, value in whole.items() if name not in TRAINING_STATE}
    made['state_dict'] = slim_state_dict(whole['state_dict'], groups, keep)
    if 'ema_state_dict' in whole:
        averaged = [_renamed(group, AVERAGED) for group in groups]
        made['ema_state_dict'] = slim_state_dict(whole['ema_state_dict'], averaged, keep)
    record = {group.name: [int(keep[group.name].sum()), group.size] for group in groups if group.name in keep}
    meta = dict(whole.get('meta', {}))
    made['meta'] = {**meta, 'mmprune3d': {**meta.get('mmprune3d', {}), META: record}}
    return made


def _renamed(group: ChannelGroup, prefix: str) -> ChannelGroup:
    return replace(group, members=tuple(replace(m, tensor=prefix + m.tensor) for m in group.members))


def _check_present(state_dict: Mapping[str, Tensor], groups: Sequence[ChannelGroup]) -> None:
    """A missing member would leave a model half sliced."""
    missing = [m.tensor for group in groups for m in group.members if m.tensor not in state_dict]
    if missing:
        raise ValueError(
            f'the state dict lacks {len(missing)} tensors of the channel groups, such as {missing[0]}; it has '
            f'{", ".join(list(state_dict)[:3])}, ...'
        )
