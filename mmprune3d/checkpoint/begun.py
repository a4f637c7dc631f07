"""What a piece of work was begun with: a later start goes on with the same, and with nothing else.

A folder with half a training does not say by itself whether it belongs to the config, the plan and the weights that a
command names now. Going on from another one gives figures of the old settings under the name of the new ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmprune3d import files
from mmprune3d.config_types import dotted

FILE = 'begun.json'
"""File in the folder of the work that says what it was begun with."""
SECTIONS = (
    'model', 'data_preprocessor', 'train_dataloader', 'train_cfg', 'optim_wrapper', 'auto_scale_lr', 'param_scheduler',
    'custom_hooks', 'runner_type', 'pruning', 'randomness', 'sync_bn', 'compile',
)  # fmt: skip
"""What a training depends on; the other parts of a config may change while it is interrupted."""
HARMLESS = (
    'num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor', 'val_interval', 'val_begin',
    'dynamic_intervals',
)  # fmt: skip
"""Settings in these sections that may change too."""
NAMED = 4
"""Differences that a message names."""


def beginning(config: Mapping[str, Any], start: str | Path) -> dict[str, Any]:
    """What a training depends on, as plain data by dotted key.

    Args:
        config: Of the training.
        start: Checkpoint with the weights to begin with; what it holds counts, not its name.
    """
    found: dict[str, Any] = {'checkpoint': fingerprint(start)}
    for section in SECTIONS:
        _flatten(section, config.get(section), found)
    return json.loads(json.dumps(found))


def fingerprint(path: str | Path) -> str | None:
    """SHA-256 of a file, None if there is none."""
    if not Path(path).is_file():
        return None
    made = hashlib.sha256()
    with Path(path).open('rb') as file:
        while part := file.read(2**20):
            made.update(part)
    return made.hexdigest()


def write(folder: str | Path, data: Mapping[str, Any]) -> None:
    """Notes in `folder` with what its work begins."""
    files.write_json(Path(folder) / FILE, data, indent=1)


def require_same(folder: str | Path, data: Mapping[str, Any]) -> None:
    """Refuses to go on with the work in `folder` if it was begun with something else.

    Args:
        folder: Where the work is.
        data: With what it would be begun now.

    Raises:
        ValueError: If that differs, with the differences, or if the folder does not say with what it was begun.
    """
    path = Path(folder) / FILE
    advice = 'choose another folder, or remove this one to begin anew'
    try:
        theirs = json.loads(path.read_text())
    except (OSError, ValueError):
        theirs = None
    if not isinstance(theirs, dict):
        raise ValueError(f'{folder} holds work of an earlier start, but no {FILE} that says which: {advice}')
    changed = [key for key in sorted({*theirs, *data}) if theirs.get(key) != data.get(key)]
    if changed:
        more = f' and {len(changed) - NAMED} more' if len(changed) > NAMED else ''
        told = ', '.join(_told(key, theirs.get(key), data.get(key)) for key in changed[:NAMED])
        raise ValueError(f'{folder} holds work that was begun otherwise ({told}{more}): {advice}')


def note(folder: str | Path, data: Mapping[str, Any]) -> None:
    """`write` for a folder that says nothing yet, `require_same` for any other."""
    if (Path(folder) / FILE).is_file():
        require_same(folder, data)
    else:
        write(folder, data)


def _told(key: str, old: Any, new: Any) -> str:
    if key == 'checkpoint':
        return 'with other weights'
    return f'{key} was {_short(old)}, is {_short(new)}'


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f'{text[:37]}...'


def _flatten(key: str, value: Any, found: dict[str, Any]) -> None:
    """Puts the leaves of `value` into `found`; None, and what is not there, are the same."""
    if isinstance(value, Mapping):
        for name in value:
            if name not in HARMLESS:
                _flatten(f'{key}.{name}', value[name], found)
    elif isinstance(value, (list, tuple)):
        if not any(isinstance(one, (Mapping, list, tuple)) for one in value):
            found[key] = [_plain(one) for one in value]
            return
        for place, one in enumerate(value):
            _flatten(f'{key}[{place}]', one, found)
    elif value is not None:
        found[key] = _plain(value)


def _plain(value: Any) -> Any:
    value = dotted(value)
    return value if isinstance(value, (str, int, float, bool)) or value is None else f'{type(value).__name__} {value}'
