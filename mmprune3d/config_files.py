"""Configs as users give them: every mistake in one is an error that names the file, and the line where it is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # The function imports it itself: the first import of mmengine imports most of this package, this file included.
    from mmengine.config import Config

SUFFIXES = ('.py', '.json', '.yaml', '.yml')
"""Suffixes of the config files that mmengine reads."""
ENTRIES: dict[str, tuple[type, ...]] = {
    **{f'{stage}_dataloader': (dict,) for stage in ('train', 'val', 'test')},
    **{f'{stage}_evaluator': (dict, list) for stage in ('val', 'test')},
    **{f'{stage}_cfg': (dict,) for stage in ('train', 'val', 'test')},
    'default_hooks': (dict,),
    'custom_hooks': (list, tuple),
}
"""Entries of a config that have one form each, if they are there at all."""


def read(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads the config of a detector.

    Args:
        path: A config file.
        overrides: Settings on top of it, by dotted key, as ``--cfg-options`` gives them.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the config imports what is not installed.
        ValueError: If it is not a config, an override does not fit it, or it describes no model.
    """
    from mmengine.config import Config

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} is a folder: give a config file' if path.is_dir() else f'{path} does not exist'
        )
    if path.suffix not in SUFFIXES:
        raise ValueError(f'{path} is not a config: valid are files that end with {", ".join(SUFFIXES)}')
    try:
        config = Config.fromfile(path)
    except (ImportError, OSError):
        raise
    except Exception as error:
        raise ValueError(f'{path} cannot be read as a config: {_what(error, path)}') from error
    try:
        config.merge_from_dict(dict(overrides or {}))
    except Exception as error:  # KeyError, TypeError, AttributeError, IndexError: by what the path meets
        given = ' '.join(f'{name}={value}' for name, value in dict(overrides or {}).items())
        raise ValueError(f'--cfg-options {given} do not fit {path}: {_message(error)}') from error
    _check_model(config, path)
    for name, kinds in ENTRIES.items():
        if not isinstance(config.get(name), (*kinds, type(None))):
            raise ValueError(
                f'{path}: {name}={config[name]!r} must be a {" or a ".join(one.__name__ for one in kinds)}'
            )
    return config


def _check_model(config: Config, path: Path) -> None:
    """Raises ValueError if the config has no model that could be built."""
    model = config.get('model')
    if model is None:
        entries = ', '.join(list(config)[:8]) or 'nothing'
        raise ValueError(
            f'{path} has no model (it has {entries}): give the config of a detector, model = dict(type=...)'
        )
    if not isinstance(model, Mapping) or not model.get('type'):
        raise ValueError(
            f"{path}: model must be a dict with the type of a detector, such as model = dict(type='PETR3D')"
        )


def _what(error: Exception, path: Path) -> str:
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f'line {error.lineno}: {error.msg}'
    frames = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__) if _of_config(frame)]
    where = ''
    if frames:
        file, line = frames[-1]
        of = '' if not Path(file).is_file() or Path(file).resolve() == path.resolve() else f' of {file}'
        where = f'line {line}{of}: '
    return f'{where}{_message(error)}'


def _of_config(frame: Any) -> bool:
    """Whether a frame runs the text of a config: its globals are those that mmengine makes, without a module's name."""
    return frame.f_code.co_name == '<module>' and '__spec__' not in frame.f_globals


def _message(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return f'{type(error).__name__}: {text}' if text else type(error).__name__
