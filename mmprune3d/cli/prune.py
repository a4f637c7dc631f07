"""Find out which weights or channels of a fusion detector can go, and take them out; nothing is trained.

    python tools/prune.py CONFIG CHECKPOINT --criterion altermoma --sparsity 0.8 --out work_dirs/pruned

Writes masks.pth, report.json, report.md and keep_rates.png. To fine-tune with the masks, train CONFIG with
load_from=CHECKPOINT and custom_hooks=[dict(type='MaskHook', masks='work_dirs/pruned/masks.pth')]; to do all of it in
one run, use runner_type='AlterMOMARunner'.

    python tools/prune.py CONFIG CHECKPOINT --flops 0.5 --out work_dirs/pruned

Removes channels, until half of the FLOPs are gone, and writes slim.py, slim.pth and structure.json as well. slim.py
begins with slim.pth: train it to fine-tune.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """The command line; see --help."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path, help='config of the detector')
    parser.add_argument('checkpoint', help='its checkpoint, a file or an address; if it is masked, more is removed')
    parser.add_argument(
        '--criterion', help='altermoma (default), prospr, snip, synflow, magnitude or random; what ranks the weights'
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument('--sparsity', type=float, help='share of the weights that goes, such as 0.8')
    target.add_argument('--flops', type=float, help='share of the FLOPs that goes, by removing channels')
    target.add_argument('--params', type=float, help='share of the parameters that goes, by removing channels')
    target.add_argument('--channels', type=float, help='share of the channels that goes')
    parser.add_argument(
        '--set',
        nargs='+',
        action=DictAction,
        default={},
        metavar='NAME=VALUE',
        help='other settings of AlterMOMAPlan, such as eval_batches=16; for channels also max_ratio, round_to, '
        'tolerance and recalibrate',
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/pruned'), help='folder to write to')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='overrides of the config'
    )
    return parser.parse_args()


def main() -> None:
    """Parses, scores, prints the table."""
    args = parse_args()
    from mmprune3d.command import NOTHING_KEPT, run_main

    run_main(lambda: run(args), NOTHING_KEPT)


def run(args: argparse.Namespace) -> None:
    """Scores and writes."""
    from mmprune3d.engine.criteria import keep_table
    from mmprune3d.files import writable
    from mmprune3d.upgrade.channel_settings import with_target
    from mmprune3d.upgrade.channels import prune_channels
    from mmprune3d.upgrade.masks import prune_checkpoint
    from mmprune3d.visualization.keep_rates import draw_keep_rates

    given = {name: getattr(args, name) for name in ('criterion', 'sparsity', 'flops', 'params', 'channels')}
    settings = with_target(args.set, {name: value for name, value in given.items() if value is not None})
    prune = prune_channels if settings.get('mode') == 'channels' else prune_checkpoint
    writable(args.out)
    report = prune(args.config, args.checkpoint, args.out, settings, args.cfg_options)
    draw_keep_rates(report, args.out / 'keep_rates.png')
    print(report.get('table') or keep_table(report))
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
