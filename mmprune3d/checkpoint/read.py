"""Safe reading of all checkpoints that a user names, from a file or an address.

Whatever cannot be read gives one error message with the file, its size, its detected format and advice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from .addresses import local_file
from .kinds import unreadable
from .load import load_state_dict
from .metadata import with_metadata
from .torch_files import read_file

WEIGHTS = ('state_dict', 'model', 'model_state', 'model_state_dict', 'network', 'net', 'weights')
"""Keys under which checkpoints store their weights, in the order of the search."""
AVERAGED = ('ema_state_dict', 'model_ema', 'ema')
"""Keys of running averages, used only if there are no other weights; EMAHook stores averages as ``state_dict``."""
PREFIX = 'module.'
"""Prefix that wrappers for several GPUs add to every name."""


def read_checkpoint(source: str | Path) -> dict[str, Any]:
    """Reads the weights that a user named, in any supported place and format.

    Args:
        source: A file of ``torch.save`` (zip or legacy) or safetensors, or an address; see `addresses.local_file`.

    Returns:
        The checkpoint, on the CPU, with `state_dict` (names without ``module.``) and `meta`, which may be empty. The
        other content of the file is kept, except the original key of the weights.

    Raises:
        FileNotFoundError: If the file does not exist.
        UnreadableCheckpointError: If it has no weights, or none that can be read safely.
    """
    path = local_file(source)
    data = read_file(path)
    name = _name_of_weights(path, data)
    rest = {key: value for key, value in data.items() if key != name} if name else {}
    weights = data[name] if name else data
    return {**rest, 'meta': dict(rest.get('meta') or {}), 'state_dict': without_prefix(weights)}


def load_weights(model: nn.Module, source: str | Path) -> dict[str, Any]:
    """Reads a checkpoint and loads its weights into `model` with `load.load_state_dict`.

    Returns:
        The checkpoint, as from `read_checkpoint`.

    Raises:
        FileNotFoundError: If the file does not exist.
        UnreadableCheckpointError: If it cannot be read.
        CheckpointMismatchError: If the weights do not match the model.
    """
    checkpoint = read_checkpoint(source)
    load_state_dict(model, checkpoint['state_dict'])
    return checkpoint


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Replaces mmengine's loader of local files, so that Runner and ``init_model`` read the same formats as our tools.

    Args:
        filename: Path of the file; for an address without a loader in mmengine the message lists the valid ones.
        map_location: Device of the tensors, as for ``torch.load``.

    Returns:
        Content of the file; weights under another key than ``state_dict`` are also stored under that one.
    """
    path = local_file(filename)
    data = read_file(path, map_location)
    if not isinstance(data, Mapping) or 'state_dict' in data:
        return data
    name = _found(data)
    if name is None:
        return data
    print_log(_taken(path, name, data), logger='current')
    return {**data, 'state_dict': data[name]}


def load_url(url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True) -> Any:
    """Replaces ``torch.hub.load_state_dict_from_url`` in mmengine's loaders of addresses.

    The original uses ``weights_only=False`` by default, and mmengine 0.10.7 does not change this.
    """
    del progress  # `local_file` shows progress if the output is a terminal
    return load_from_local(str(local_file(url, model_dir)), map_location)


def without_prefix(weights: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Removes the prefix ``module.`` from the names of a state dict, and keeps its module versions."""
    made = with_metadata({name.removeprefix(PREFIX): value for name, value in weights.items()}, weights)
    if any(name.startswith(PREFIX) for name in weights):
        made._metadata = OrderedDict((f'{name}.'.removeprefix(PREFIX)[:-1], v) for name, v in made._metadata.items())
    return made


def _name_of_weights(path: Path, data: Any) -> str | None:
    """The key of the weights in a checkpoint; None if the file consists of the weights alone.

    Raises:
        UnreadableCheckpointError: If it has no weights.
    """
    if isinstance(data, Mapping):
        name = _found(data)
        if name is not None:
            if name != 'state_dict' or any(_is_weights(data.get(one)) for one in AVERAGED):
                print_log(_taken(path, name, data), logger='current')
            return name
        if _is_weights(data):
            return None
        says = f'it has no weights, but {", ".join(map(str, list(data)[:8])) or "nothing"}'
    else:
        says = f'it contains a {type(data).__name__}, not weights by name'
    raise unreadable(path, says, f'give a file with the weights under {", ".join(WEIGHTS[:3])}, or with weights alone')


def _found(data: Mapping) -> str | None:
    return next((name for name in (*WEIGHTS, *AVERAGED) if _is_weights(data.get(name))), None)


def _is_weights(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and all(isinstance(name, str) for name in value)
        and any(isinstance(one, Tensor) for one in value.values())
    )


def _taken(path: Path, name: str, data: Mapping) -> str:
    others = [other for other in (*WEIGHTS, *AVERAGED) if other != name and _is_weights(data.get(other))]
    left = f'; not used: {", ".join(others)}' if others else ''
    return f'{path}: its weights are those under {name!r}{left}'
