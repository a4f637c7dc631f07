"""The folder of an upgrade: what is in it, how an old result is put aside, and how the upgraded pair is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmprune3d import files
from mmprune3d.config_types import movable, writable
from mmprune3d.pruning.settings import Plan

from . import methods

CONFIG, WEIGHTS = 'upgraded.py', 'upgraded.pth'
PICTURES = ('sample_*.jpg', 'sample_*.png', 'tokens_*.png', 'keep_rates.png')
RESULTS = (
    'report.md',
    'report.json',
    'search.md',
    'search.json',
    CONFIG,
    *(f'pictures/{one}' for one in PICTURES),
)
"""What an upgrade writes, but for the weights, which are replaced."""


def check_inputs(out: Path, config_file: Path, checkpoint: Path) -> None:
    """Refuses to work on what the upgrade in `out` itself writes: it would be replaced before it is measured.

    Raises:
        ValueError: If config or checkpoint is a result or a part of an upgrade in `out`.
    """
    made = [out / name for name in (CONFIG, WEIGHTS, 'finetune', 'pruned')]
    for path in (config_file, checkpoint):
        if any(path.resolve().is_relative_to(one.resolve()) for one in made):
            raise ValueError(f'{path} is what an upgrade in {out} writes, and would be replaced: choose another --out')


def forget_results(out: Path) -> None:
    """Removes what an earlier upgrade wrote into `out`, before the first file of a new one is there.

    Else a start that does not come to its end would leave the report and the pictures of one model beside another one.
    """
    for pattern in RESULTS:
        for path in out.glob(pattern):
            path.unlink()


def upgraded_config(config: Config, plan: Plan | None, imports: Iterable[str] = ()) -> Config:
    """A copy of `config`, fit to be written, that prunes by `plan`, if there is one, in mmdet3d's own tools.

    Args:
        config: Config of a detector.
        plan: A plan of a method that prunes at run time: its hook goes into ``custom_hooks``.
        imports: Modules that the config has to import besides mmprune3d.

    Raises:
        ValueError: If the method of the plan has no hook.
    """
    config = writable(config)
    method = None if plan is None else methods.get(plan.method)
    wanted = ['mmprune3d', *imports, *(method.imports if method else ())]
    given = (config.get('custom_imports') or {}).get('imports') or []
    names = [name for name in ([given] if isinstance(given, str) else given) if name not in wanted]
    config.custom_imports = dict(imports=[*names, *dict.fromkeys(wanted)], allow_failed_imports=False)
    if plan is not None and method is not None:
        if not method.hook:
            raise ValueError(f'{method.name}: no hook is registered that carries its plans in a config')
        config.custom_hooks = [*(config.get('custom_hooks') or []), dict(type=method.hook, **asdict(plan))]
    return config


def with_plan(checkpoint: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """A checkpoint with a plan in ``meta['mmprune3d']``, changed in place; the weights stay as they are.

    Args:
        checkpoint: A checkpoint of mmengine, or a bare state dict, which becomes its ``state_dict``.
        plan: Any plan.
    """
    data = checkpoint if 'state_dict' in checkpoint else {'state_dict': checkpoint}
    data.setdefault('meta', {}).setdefault('mmprune3d', {})[plan.method] = plan.to_dict()
    return data


def write_upgraded(out: Path, config: Config, checkpoint: dict[str, Any] | None, *others: str) -> None:
    """Writes the upgraded model, `upgraded.pth` and then `upgraded.py`: a config is there only with its weights.

    Args:
        out: Folder; it can be moved afterwards.
        config: Config of the upgraded model.
        checkpoint: Its checkpoint; None if `upgraded.pth` has been written already.
        others: Files in the folder that the config names.
    """
    if checkpoint is not None:
        files.save_checkpoint(checkpoint, out / WEIGHTS)
    files.dump_config(movable(config, out, WEIGHTS, *others), out / CONFIG)
