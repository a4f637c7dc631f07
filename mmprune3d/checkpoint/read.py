"""The one way in which checkpoints that a user names are read: safely, from a file or an address.

Whatever cannot be read is one message with the file, its size, what it seems to be and what to do.
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
"""Where checkpoints keep their weights, in the order in which they are looked for."""
AVERAGED = ('ema_state_dict', 'model_ema', 'ema')
"""Running averages; taken only if there is nothing else. mmengine's EMAHook stores the average as ``state_dict``."""
PREFIX = 'module.'
"""What wrappers for several GPUs put before every name."""


def read_checkpoint(source: str | Path) -> dict[str, Any]:
    """Reads the weights that a user named, wherever and however they are stored.

    Args:
        source: A file of ``torch.save`` (zip or legacy) or safetensors, or an address; see `addresses.local_file`.

    Returns:
        The checkpoint, on the CPU, with `state_dict` (names without ``module.``) and `meta`, which may be empty. What
        else was in the file stays, but for the name under which the weights were.

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableCheckpointError: If it holds no weights, or none that can be read safely.
    """
    path = local_file(source)
    data = read_file(path)
    name = _name_of_weights(path, data)
    rest = {key: value for key, value in data.items() if key != name} if name else {}
    weights = data[name] if name else data
    return {**rest, 'meta': dict(rest.get('meta') or {}), 'state_dict': without_prefix(weights)}


def load_weights(model: nn.Module, source: str | Path) -> dict[str, Any]:
    """Reads a checkpoint and loads its weights into `model`; see `load.load_state_dict`.

    Returns:
        The checkpoint, as `read_checkpoint` gives it.

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableCheckpointError: If it cannot be read.
        CheckpointMismatchError: If the weights do not fit.
    """
    checkpoint = read_checkpoint(source)
    load_state_dict(model, checkpoint['state_dict'])
    return checkpoint


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Takes the place of mmengine's loader of local files, so that Runner and ``init_model`` read as our tools do.

    Args:
        filename: The file; for an address that mmengine has no loader for, the message says which are valid.
        map_location: As for ``torch.load``.

    Returns:
        What is in the file; weights under another name than ``state_dict`` are also found under that one.
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
    """Takes the place of ``torch.hub.load_state_dict_from_url`` in mmengine's loaders of addresses.

    That one loads with ``weights_only=False`` unless told otherwise, and mmengine does not tell it (0.10.7).
    """
    del progress  # shown where somebody watches
    return load_from_local(str(local_file(url, model_dir)), map_location)


def without_prefix(weights: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """A state dict whose names do not begin with ``module.``, with its module versions."""
    made = with_metadata({name.removeprefix(PREFIX): value for name, value in weights.items()}, weights)
    if any(name.startswith(PREFIX) for name in weights):
        made._metadata = OrderedDict((f'{name}.'.removeprefix(PREFIX)[:-1], v) for name, v in made._metadata.items())
    return made


def _name_of_weights(path: Path, data: Any) -> str | None:
    """The key under which the weights are; None if they are the file itself.

    Raises:
        UnreadableCheckpointError: If there are none.
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
        says = f'it holds a {type(data).__name__}, not weights by name'
    raise unreadable(path, says, f'give a file with the weights under {", ".join(WEIGHTS[:3])}, or with nothing else')


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
