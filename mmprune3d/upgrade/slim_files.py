"""A detector without its removed channels, as config, checkpoint and report."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import HOOKS

from mmprune3d import files
from mmprune3d.config_types import is_a, movable
from mmprune3d.engine.criteria import keep_table
from mmprune3d.engine.hooks import MaskHook

from .configs import upgraded_config

BUILDER = 'SlimDetector'
STRUCTURE = 'structure.json'
REPORT = 'report.json'


@dataclass(frozen=True)
class Slimmed:
    """A detector without its removed channels.

    Attributes:
        config: Its config: the model is built by ``SlimDetector``, from a structure that is in the config.
        checkpoint: Its checkpoint.
        report: A report like that of `engine.criteria.keep_report`, with channels instead of weights; and ``left_out``
            (layer -> why its channels stay), ``gflops`` and ``params`` before and after, ``reached``, ``difference``.
    """

    config: Config
    checkpoint: dict[str, Any]
    report: dict[str, Any]

    def write(self, out: Path, stem: str = 'slim') -> tuple[Path, Path]:
        """Writes config, checkpoint, ``structure.json``, ``report.json`` and ``report.md`` into the folder `out`.

        Returns:
            The paths of config and checkpoint. The config finds structure and checkpoint beside itself, so that the
            folder can be moved.
        """
        config, paths = copy.deepcopy(self.config), (out / f'{stem}.py', out / f'{stem}.pth')
        files.write_json(out / STRUCTURE, config.model.structure, indent=0)
        config.model.structure, config.load_from = str(out / STRUCTURE), str(paths[1])
        files.dump_config(movable(config, out, STRUCTURE, paths[1].name), paths[0])
        files.save_checkpoint(self.checkpoint, paths[1])
        title = f'# {self.report["title"]}'
        files.write_text(out / 'report.md', f'{title}\n\n{slim_table(self.report, layers=True)}\n')
        files.write_json(out / REPORT, self.report, indent=1)  # the last one: then all is there
        return paths


def slim_config(config: Config, structure: Mapping[str, Any] | str) -> Config:
    """`config` with a model of `structure`; it prunes nothing itself.

    Args:
        config: Config of the dense detector, or of a slim one, whose structure is replaced.
        structure: Tensor name -> shape, or a path, as ``SlimDetector`` takes it.
    """
    config = upgraded_config(config, None)
    dense = config.model.detector if is_a(config.model, BUILDER, MODELS) else config.model
    config.model = dict(type=BUILDER, detector=dense, structure=structure)
    for name in ('runner_type', 'pruning'):
        config.pop(name, None)
    hooks = config.get('custom_hooks') or []
    # masks of the dense model do not fit any more; those of the slim one are in its checkpoint
    config.custom_hooks = [dict(type='MaskHook') if is_a(hook, MaskHook, HOOKS) else hook for hook in hooks]
    config.load_from, config.resume = None, False
    return config


def slim_table(report: Mapping[str, Any], layers: bool = False) -> str:
    """Channels that stay, FLOPs and parameters as Markdown.

    Args:
        report: The report of a `Slimmed`.
        layers: Whether every group of channels has a row.
    """
    sizes = [
        f'{title}: {before / scale:.3f} -> {after / scale:.3f} ({after / before - 1:+.1%})'
        for title, (before, after), scale in (
            ('GFLOPs per sample', report['gflops'], 1), ('million parameters', report['params'], 1e6)
        )
    ]  # fmt: skip
    return '\n\n'.join([keep_table(report, layers).replace('weights', 'channels', 1), '\n'.join(sizes)])
