"""Record of the settings that a training began with, so that it can only be resumed with the same settings.

The folder of an interrupted training does not show by itself whether it belongs to the config, the plan and the weights
of the current command. Resuming another training would report results of the old settings under the new name.
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
"""File in the folder of a training that records its settings."""
SECTIONS = (
    'model', 'data_preprocessor', 'train_dataloader', 'train_cfg', 'optim_wrapper', 'auto_scale_lr', 'param_scheduler',
    'custom_hooks', 'runner_type', 'pruning', 'randomness', 'sync_bn', 'compile',
)  # fmt: skip
"""Sections of a config on which a training depends; other sections may change before it is resumed."""
HARMLESS = (
    'num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor', 'val_interval', 'val_begin',
    'dynamic_intervals',
)  # fmt: skip
"""Settings in these sections that may change before a training is resumed."""
NAMED = 4
"""Largest number of differences that a message lists."""


def beginning(config: Mapping[str, Any], start: str | Path) -> dict[str, Any]:
    """Collects the settings on which a training depends, as plain data by dotted key.

    Args:
        config: Config of the training.
        start: Checkpoint with the initial weights; its content is recorded, not its name.
    """
    found: dict[str, Any] = {'checkpoint': fingerprint(start)}
    for section in SECTIONS:
        _flatten(section, config.get(section), found)
    return json.loads(json.dumps(found))


def fingerprint(path: str | Path) -> str | None:
    """SHA-256 of a file, or None if the file does not exist."""
    if not Path(path).is_file():
        return None
    made = hashlib.sha256()
    with Path(path).open('rb') as file:
        while part := file.read(2**20):
            made.update(part)
    return made.hexdigest()


def write(folder: str | Path, data: Mapping[str, Any]) -> None:
    """Records in `folder` the settings that its training begins with."""
    files.write_json(Path(folder) / FILE, data, indent=1)


def require_same(folder: str | Path, data: Mapping[str, Any]) -> None:
    """Checks that the training in `folder` began with the same settings.

    Args:
        folder: Folder of the training.
        data: Settings of the current command.

    Raises:
        ValueError: If settings differ (the message lists the differences), or if `folder` has no record.
    """
    path = Path(folder) / FILE
    advice = 'choose another folder, or remove this one to start again'
    try:
        theirs = json.loads(path.read_text())
    except (OSError, ValueError):
        theirs = None
    if not isinstance(theirs, dict):
        raise ValueError(f'{folder} has results of an earlier run but no {FILE} with its settings: {advice}')
    changed = [key for key in sorted({*theirs, *data}) if theirs.get(key) != data.get(key)]
    if changed:
        more = f' and {len(changed) - NAMED} more' if len(changed) > NAMED else ''
        told = ', '.join(_told(key, theirs.get(key), data.get(key)) for key in changed[:NAMED])
        raise ValueError(f'{folder} has results of a run with other settings ({told}{more}): {advice}')


def note(folder: str | Path, data: Mapping[str, Any]) -> None:
    """Records the settings if `folder` has no record (`write`); otherwise checks them (`require_same`)."""
    if (Path(folder) / FILE).is_file():
        require_same(folder, data)
    else:
        write(folder, data)


def _told(key: str, old: Any, new: Any) -> str:
    if key == 'checkpoint':
        return 'other initial weights'
    return f'{key} was {_short(old)}, is {_short(new)}'


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f'{text[:37]}...'


def _flatten(key: str, value: Any, found: dict[str, Any]) -> None:
    """Puts the leaves of `value` into `found`; None and a missing value are treated alike."""
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
