"""Removal of pruned channels from checkpoints: smaller tensors in state dicts and averaged weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from mmprune3d.pruning.channels import ChannelGroup, mask_tensors, slice_tensors

from .compact import AVERAGED, TRAINING_STATE
from .metadata import with_metadata

META = 'channels'
"""Key in ``checkpoint['meta']['mmprune3d']`` for group name -> [number of kept channels, number of all channels]."""


def structure_of(state_dict: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Maps tensor names to shapes, the input of :func:`mmprune3d.layers.slim.slim_model_` and ``SlimDetector``."""
    return {name: list(value.shape) for name, value in state_dict.items()}


def slim_state_dict(
    state_dict: Mapping[str, Tensor], groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Removes channels from a state dict and keeps the module versions in its ``_metadata``.

    Args:
        state_dict: State dict of the dense model; not modified, and shared where nothing is removed.
        groups: Channel groups of the model.
        keep: Group name -> mask [C] bool, True = keep; groups that are not named keep all channels.

    Raises:
        ValueError: If groups, `keep` and weights do not match.
    """
    _check_present(state_dict, groups)
    return with_metadata(slice_tensors(state_dict, groups, keep), state_dict)


def mask_state_dict(
    state_dict: Mapping[str, Tensor], groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Zeroes the removed channels (weights, biases, norm affines), so that the dense model acts like the slim one."""
    _check_present(state_dict, groups)
    return with_metadata(mask_tensors(state_dict, groups, keep), state_dict)


def slim_checkpoint(
    checkpoint: Mapping[str, Any], groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Creates a checkpoint of the slim model, with averaged weights, and without the state for resuming.

    ``SlimDetector`` can build its model from the file alone; the numbers of removed channels are recorded in
    ``meta['mmprune3d']['channels']``.

    Args:
        checkpoint: Checkpoint of mmengine, or a bare state dict; not modified.
        groups: Channel groups of the model.
        keep: Group name -> mask [C] bool, True = keep.

    Raises:
        ValueError: If groups, `keep` and weights do not match.
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
    """Checks that all tensors of the groups are there; otherwise only some members of a group would be sliced."""
    missing = [m.tensor for group in groups for m in group.members if m.tensor not in state_dict]
    if missing:
        raise ValueError(
            f'{len(missing)} tensors of the channel groups are not in the state dict, such as {missing[0]}; it has '
            f'{", ".join(list(state_dict)[:3])}, ...'
        )
