"""``mmprune3d compact``: small checkpoints out of a training in which GPQ removed queries."""

from __future__ import annotations

import argparse

from . import common

HELP = 'make a checkpoint of a training with GPQHook small'
EPILOG = """
Per number of queries, CHECKPOINT_q300.py and CHECKPOINT_q300.pth are written: the unmodified detector with fewer
queries, which mmdet3d's own tools run. Its outputs are those of the checkpoint, bit for bit.

examples:
  mmprune3d compact CONFIG CHECKPOINT
  mmprune3d compact CONFIG CHECKPOINT --at 600,300,150 --drop-training-state
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``mmprune3d compact`` to its parser."""
    common.add_model(parser, 'a checkpoint of the training, of any moment: a file or an address')
    common.add_out(parser, None, 'folder for the files (default: that of the checkpoint)')
    parser.add_argument(
        '--at',
        metavar='N,N',
        default='',
        help='numbers of queries (default: as many as are left); a larger number brings the last removed ones back',
    )
    parser.add_argument(
        '--drop-training-state',
        action='store_true',
        help='leave out optimizer, schedules and logs; a third of the size remains',
    )
    common.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Writes a config and a checkpoint per size."""
    from mmprune3d.upgrade.compact import run_compact

    try:
        sizes = [int(size) for size in args.at.split(',')] if args.at else []
    except ValueError:
        raise ValueError(f'--at {args.at!r}: write numbers of queries, such as 600,300,150') from None
    written = run_compact(args.config, args.checkpoint, args.out, sizes, args.drop_training_state, args.cfg_options)
    for paths in written:
        print(*paths)
