"""What a checkpoint holds, for people and programs; nothing in the file is run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmprune3d.pruning.gpq import RANK
from mmprune3d.pruning.masks import unpack

from .addresses import local_file
from .kinds import kind_of, size_of
from .masks import STATE
from .read import AVERAGED, WEIGHTS, read_checkpoint
from .slim import META as CHANNELS
from .torch_files import read_file

FRAMEWORKS = (
    ('mmengine', lambda data, meta: 'mmengine_version' in meta),
    ('mmcv 1.x', lambda data, meta: 'mmcv_version' in meta or 'mmdet_version' in meta or 'mmdet3d_version' in meta),
    ('PyTorch Lightning', lambda data, meta: 'pytorch-lightning_version' in data),
    ('OpenPCDet', lambda data, meta: 'model_state' in data and 'version' in data),
    ('mmprune3d', lambda data, meta: 'mmprune3d' in meta),
    ('not known (weights and meta only)', lambda data, meta: set(data) == {'meta', 'state_dict'}),
    ('not known (weights only)', lambda data, meta: not meta),
)
"""Name of a framework -> whether it wrote a file; the first that did counts."""
PROGRESS = ('epoch', 'iter', 'seed', 'time', 'experiment_name', 'mmengine_version', 'mmdet3d_version', 'metrics')
"""Entries of ``meta`` that are shown as they are."""


def describe(source: str | Path, tensors: bool = False) -> dict[str, Any]:
    """Describes a checkpoint.

    Args:
        source: A file or an address, see `read.read_checkpoint`.
        tensors: Whether the tensors are listed.

    Returns:
        Plain types: ``file``, ``size``, ``format``, ``framework``, ``progress`` (see `PROGRESS`), ``classes`` (of the
        data set), ``weights`` (see `weights_of`), ``besides`` (names of what else is in the file), ``mmprune3d`` (see
        `pruning_of`) and, if asked for, ``tensors`` (name -> shape and type).

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableCheckpointError: If it holds no weights, or none that can be read safely. Files with masks and without
            weights, as ``mmprune3d prune`` writes them, are described.
    """
    path = local_file(source)
    raw = read_file(path)
    masks_only = isinstance(raw, Mapping) and STATE in raw and not _has_weights(raw)
    data = {**raw, 'meta': {}, 'state_dict': {}} if masks_only else read_checkpoint(path)
    meta, weights = data['meta'], data['state_dict']
    found = {
        'file': str(path),
        'size': size_of(path),
        'format': {'zip': 'torch.save', 'legacy': 'torch.save (before 1.6)'}.get(kind_of(path).format, 'safetensors'),
        'framework': 'mmprune3d (masks without weights)' if masks_only else framework_of(raw, meta),
        'progress': {name: _plain(meta[name]) for name in PROGRESS if name in meta},
        'classes': _classes(meta.get('dataset_meta') or meta),
        'weights': weights_of(weights),
        'besides': sorted(set(data) - {'meta', 'state_dict', STATE}),
        'mmprune3d': pruning_of(data),
    }
    if tensors:
        found['tensors'] = {name: [list(value.shape), _dtype(value)] for name, value in weights.items()}
    return found


def _has_weights(raw: Mapping[str, Any]) -> bool:
    return any(name in raw for name in (*WEIGHTS, *AVERAGED)) or any(isinstance(one, Tensor) for one in raw.values())


def framework_of(raw: Any, meta: Mapping[str, Any]) -> str:
    """Which framework wrote a file, as far as its keys tell."""
    data = raw if isinstance(raw, Mapping) else {}
    return next((name for name, wrote in FRAMEWORKS if wrote(data, meta)), 'not known')


def weights_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Numbers of tensors and parameters; tensors that share memory are counted once.

    Returns:
        ``tensors``, ``parameters`` (elements of floating-point tensors, buffers such as running means included),
        ``types`` (type -> tensors), ``shared`` (tensors that are another one under a second name) and ``zeros`` (share
        of the parameters that are exactly 0).
    """
    distinct = {(value.data_ptr(), tuple(value.shape), tuple(value.stride())): value for value in weights.values()}
    floats = [value for value in distinct.values() if value.is_floating_point()]
    total = sum(value.numel() for value in floats)
    zeros = sum(int((value == 0).sum()) for value in floats)
    return {
        'tensors': len(weights),
        'parameters': total,
        'types': dict(Counter(_dtype(value) for value in weights.values())),
        'shared': len(weights) - len(distinct),
        'zeros': zeros / total if total else 0.0,
    }


def pruning_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """What mmprune3d stored in a checkpoint.

    Args:
        data: The checkpoint, in the form that `read.read_checkpoint` returns.

    Returns:
        Entries that exist of: ``plans`` (method -> plan), ``channels`` (groups, and channels that are kept of how
        many), ``masks`` (masked tensors, weights, share kept, record) and ``queries`` (embedding -> queries that are
        left, and of how many).
    """
    stored = dict(data['meta'].get('mmprune3d') or {})
    channels = stored.pop(CHANNELS, None)
    found: dict[str, Any] = {'plans': stored} if stored else {}
    if channels:
        kept, total = (sum(row[place] for row in channels.values()) for place in (0, 1))
        found['channels'] = {'groups': len(channels), 'kept': kept, 'total': total}
    state = data.get(STATE) or {}
    if state.get('masks'):
        masks = unpack(state['masks'])
        total = sum(mask.numel() for mask in masks.values())
        kept = sum(int(mask.sum()) for mask in masks.values())
        found['masks'] = {'tensors': len(masks), 'kept': kept, 'total': total, 'record': _plain(state.get('record'))}
    queries = {
        name.removesuffix(f'.{RANK}'): {'kept': int((rank == 0).sum()), 'total': len(rank)}
        for name, rank in data['state_dict'].items()
        if name.endswith(f'.{RANK}')
    }
    return {**found, **({'queries': queries} if queries else {})}


def text(found: Mapping[str, Any]) -> str:
    """What `describe` found, as lines for a screen."""
    return '\n'.join(_lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    weights, pruned = found['weights'], found['mmprune3d']
    yield f'{found["file"]}: {found["size"]}, {found["format"]}'
    yield f'written by       {found["framework"]}'
    if found['progress']:
        yield f'training         {", ".join(f"{name} {value}" for name, value in found["progress"].items())}'
    if found['classes']:
        yield f'classes          {len(found["classes"])}: {", ".join(found["classes"])}'
    if weights['tensors']:
        types = ', '.join(f'{count} {name}' for name, count in weights['types'].items())
        shared = f'; {weights["shared"]} of them share memory with another one' if weights['shared'] else ''
        yield f'weights          {weights["tensors"]} tensors ({types}){shared}'
        yield f'parameters       {weights["parameters"]:,}, {100 * weights["zeros"]:.1f} % of them are 0'
    yield f'besides          {", ".join(found["besides"]) or "nothing"}'
    for method, plan in pruned.get('plans', {}).items():
        yield f'plan             {method}: {_settings(plan)}'
    if 'channels' in pruned:
        part = pruned['channels']
        yield f'channels         {part["kept"]} of {part["total"]} are left, in {part["groups"]} groups (slim model)'
    if 'masks' in pruned:
        part = pruned['masks']
        share = f'{100 * part["kept"] / part["total"]:.2f} % of the weights are kept'
        yield f'masks            {part["tensors"]} tensors; {share}'
    for name, part in pruned.get('queries', {}).items():
        yield f'queries          {part["kept"]} of {part["total"]} are left in {name}'
    if not pruned:
        yield 'pruned           no: nothing of mmprune3d is stored in it'
    for name, (shape, kind) in found.get('tensors', {}).items():
        yield f'  {name}  {shape}  {kind}'


def _settings(plan: Any) -> str:
    if not isinstance(plan, Mapping):
        return str(plan)
    return ', '.join(f'{name}={value}' for name, value in plan.items() if name != 'method' and value is not None)


def _classes(meta: Mapping[str, Any]) -> list[str]:
    classes = meta.get('classes') or meta.get('CLASSES') or ()
    return [str(name) for name in classes] if isinstance(classes, (list, tuple)) else [str(classes)]


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix('torch.')


def _plain(value: Any) -> Any:
    """Values of a checkpoint as what JSON knows."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
