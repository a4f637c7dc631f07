"""Make a checkpoint of a training with GPQHook small: for the unmodified detector with fewer queries.

    python tools/compact.py CONFIG CHECKPOINT --at 600,300,150 --drop-training-state

Writes CHECKPOINT_q300.pth and CHECKPOINT_q300.py per size, which mmdet3d's own tools run; the outputs are those of the
checkpoint, bit for bit.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """The command line; see --help."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path, help='config of the training')
    parser.add_argument('checkpoint', help='its checkpoint of any moment: a file or an address')
    parser.add_argument('--out', type=Path, help="folder to write to; default: the checkpoint's")
    parser.add_argument(
        '--at', metavar='N,N', default='', help='numbers of queries; more than are left brings back the last to go'
    )
    parser.add_argument(
        '--drop-training-state', action='store_true', help='leave out optimizer, schedules and logs, a third remains'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='overrides of the config'
    )
    return parser.parse_args()


def main() -> None:
    """Parses, writes, says what was written."""
    args = parse_args()
    from mmprune3d.command import run_main

    run_main(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Writes a detector per size."""
    from mmprune3d.upgrade.compact import run_compact

    try:
        sizes = [int(size) for size in args.at.split(',')] if args.at else []
    except ValueError:
        raise ValueError(f'--at {args.at!r}: write numbers of queries, as 600,300,150') from None
    written = run_compact(args.config, args.checkpoint, args.out, sizes, args.drop_training_state, args.cfg_options)
    for paths in written:
        print(*paths)


if __name__ == '__main__':
    main()
