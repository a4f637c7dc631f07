"""From a config and a checkpoint to a runner that tests the detector."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine import registry
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from mmprune3d import config_files
from mmprune3d.checkpoint.read import read_checkpoint
from mmprune3d.config_types import class_of, dotted, without


def read_config(config_file: Path, checkpoint: str | Path, overrides: dict[str, Any]) -> Config:
    """The config with overrides by dotted key; the checkpoint is read once, before hours of work with it.

    What a training on several processes, or one that was resumed, leaves in the config in its folder (`launcher`,
    `resume`) is put aside: here one process begins with the given weights.

    Raises:
        FileNotFoundError: If it or the checkpoint does not exist.
        ValueError: If config or checkpoint cannot be read, the config describes no model, or there are several
            processes.
    """
    require_one_process()
    config = config_files.read(config_file, overrides)
    read_checkpoint(checkpoint)
    for name, value in (('launcher', 'none'), ('resume', False)):
        if config.get(name):
            config[name] = value
    return config


def require_one_process() -> None:
    """Refuses to run once per process of a launcher: all would do the same work, and write the same files.

    Raises:
        ValueError: Under ``torchrun`` or the like, with more than one process.
    """
    count = os.environ.get('WORLD_SIZE', '1')
    if 'RANK' in os.environ and count != '1':
        raise ValueError(
            f'this tool works in one process, and a launcher started {count} of it: run it without torchrun. '
            'tools/train.py and tools/test.py take several, with --launcher pytorch; GPQHook, HaltingHook and '
            'PruningRunner prune in such a training'
        )


def prepare(config: Config, checkpoint: Path, out: Path) -> Config:
    """A copy of `config` that tests `checkpoint` inside `out`.

    Raises:
        ValueError: If the config has no test set, or prunes already.
    """
    if config.get('test_dataloader') is None or config.get('test_evaluator') is None:
        raise ValueError('the config has no test_dataloader and test_evaluator: accuracy cannot be measured')
    present = pruning_hooks(config)
    if present:
        raise ValueError(f'the config prunes already ({", ".join(present)} in custom_hooks): give the unpruned one')
    config = copy.deepcopy(config)
    config.load_from = str(checkpoint)
    config.work_dir = str(out / 'logs')
    config.default_hooks = {**(config.get('default_hooks') or {}), 'logger': dict(type='LoggerHook', interval=10**9)}
    # In a test these change nothing (a saved state_dict has averaged and masked weights), but they would hold the model
    # that is compared with the baseline to weights and masks of the baseline.
    hooks = without(config.get('custom_hooks'), EMAHook, registry.HOOKS)
    config.custom_hooks = [hook for hook in hooks if not getattr(_class_of(hook), 'holds_weights', False)]
    if config.get('test_cfg') is None:
        config.test_cfg = {}
    return with_own_visualizer(config)


def with_own_visualizer(config: Config) -> Config:
    """`config`, changed in place, whose runner gets a visualizer of its own.

    mmengine (0.10) gives a visualizer of the same name, which configs of mmdet3d fix, to every runner of a process: the
    losses of a fine-tuning would be written into the folder of the test before it.
    """
    if config.get('visualizer'):
        config.visualizer = {name: value for name, value in config.visualizer.items() if name != 'name'}
    return config


def pruning_hooks(config: Config) -> list[str]:
    """The names of the hooks in a config that prune in a test: their attribute ``prunes_tests`` is true.

    Hooks whose class has no such attribute are not built.

    Raises:
        ValueError: If the settings of a hook that can prune are not valid.
    """
    hooks = [hook for hook in config.get('custom_hooks') or () if hasattr(_class_of(hook), 'prunes_tests')]
    active = [hook for hook in hooks if registry.HOOKS.build(copy.deepcopy(hook)).prunes_tests]
    return [str(dotted(hook['type'])).rsplit('.', 1)[-1] for hook in active]


def _class_of(hook: Any) -> type | None:
    return class_of(hook.get('type') if isinstance(hook, Mapping) else hook, registry.HOOKS)


def loaded_runner(config: Config) -> Runner:
    """A runner whose model has its weights. Hooks may change the model before; the order is that of ``Runner.test``."""
    runner = Runner.from_cfg(config)
    runner.call_hook('before_run')
    runner.load_or_resume()
    runner.model.eval()
    return runner
