"""``mmprune3d prune``: remove weights or channels of a camera-LiDAR fusion detector, without training it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import common

HELP = 'remove weights or channels by a criterion; nothing is trained'
EPILOG = """
settings, one target among them (all: mmprune3d upgrade --describe altermoma):
  sparsity=0.8         share of the weights to set to zero. Writes masks.pth, which MaskHook(masks=...) reads
  flops=0.5, params=0.5, channels=0.5
                       share to remove by removing channels. Writes slim.py, slim.pth and structure.json
  criterion=altermoma  or prospr, snip, synflow, magnitude, random: what the weights are ranked by
  max_ratio, round_to, tolerance, recalibrate
                       for channels
They override pruning = dict(...) of the config, which must set groups for detectors without a fusion map.

examples:
  mmprune3d prune CONFIG CHECKPOINT altermoma sparsity=0.8 criterion=snip
  mmprune3d prune CONFIG CHECKPOINT flops=0.5 round_to=8 --out work_dirs/slim
"""
METHOD = 'altermoma'
LOG = 'logs/output.log'
WRITTEN = ('masks.pth', 'slim.py', 'slim.pth')
"""Results that a later call may begin with: it needs another folder."""
TARGETS = ('sparsity', 'channels', 'flops', 'params')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``mmprune3d prune`` to its parser."""
    common.add_model(parser, 'its checkpoint, a file or an address; if weights are masked already, more are removed')
    common.add_words(parser, 'KEY=VALUE', f'what to remove, after the word {METHOD} or without it')
    common.add_out(parser, 'work_dirs/pruned')
    common.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Scores the weights, writes masks or a slim detector, prints the table."""
    from mmprune3d.engine.criteria import keep_table
    from mmprune3d.files import writable
    from mmprune3d.screen import chatter_to
    from mmprune3d.upgrade.channel_settings import with_target
    from mmprune3d.upgrade.channels import prune_channels
    from mmprune3d.upgrade.masks import prune_checkpoint
    from mmprune3d.visualization.keep_rates import draw_keep_rates

    settings = with_target({}, read_settings(args.words))
    for name in WRITTEN:
        common.check_target(args.out / name, args.config, args.checkpoint)
    writable(args.out)
    configured = {} if has_target(settings) else configured_settings(args.config, args.cfg_options)
    channels = with_target(configured, settings).get('mode') == 'channels'
    prune = prune_channels if channels else prune_checkpoint
    with chatter_to(args.out / LOG):
        report = prune(args.config, args.checkpoint, args.out, settings, args.cfg_options)
    draw_keep_rates(report, args.out / 'keep_rates.png')
    print(report.get('table') or keep_table(report))
    print(f'wrote {args.out}')


def read_settings(words: Sequence[str]) -> dict[str, Any]:
    """Settings from the command line.

    Raises:
        ValueError: If another method is named, or several targets are given.
    """
    words = list(words)
    if words and '=' not in words[0]:
        if words[0] != METHOD:
            raise ValueError(
                f'{words[0]!r}: prune takes the method {METHOD} and settings key=value, such as sparsity=0.8; other '
                'methods are applied by "mmprune3d upgrade"'
            )
        words = words[1:]
    settings = common.settings(words)
    if len(given := [name for name in TARGETS if name in settings]) > 1:
        raise ValueError(f'{" and ".join(given)}: give one target of {", ".join(TARGETS)}')
    return settings


def has_target(settings: dict[str, Any]) -> bool:
    """Whether the command line says how much to remove; if not, the ``pruning`` of the config does."""
    return any(name in settings for name in TARGETS)


def configured_settings(config: Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ``pruning`` of a config, or an empty dict.

    Args:
        config: A config file.
        overrides: Settings on top of it, by dotted key.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If it cannot be read, or its ``pruning`` is not a dict.
    """
    from mmprune3d import config_files
    from mmprune3d.pruning import checks

    return checks.mapping('pruning', config_files.read(config, overrides).get('pruning') or {}, 'dict(sparsity=0.8)')
