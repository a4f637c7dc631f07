"""Which tokens a detector halts: pictures of samples, shares by layer, kind and distance, and curves over trainings.

    python tools/show_halting.py CONFIG CHECKPOINT --samples 0 7 --out work_dirs/halting
    python tools/show_halting.py CONFIG CHECKPOINT --count 100 --log uniform=A/scalars.json nonuniform=B/scalars.json

Writes halting_<index>.png, layers.png, report.md, report.json and, with logs, training.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """The command line; see --help."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path, help='config of a detector that halts tokens')
    parser.add_argument('checkpoint', help='its checkpoint: a file or an address')
    parser.add_argument('--samples', type=int, nargs='+', default=[], metavar='INDEX', help='test samples to draw')
    parser.add_argument('--count', type=int, help='test samples of the table, evenly spaced; by default, those drawn')
    parser.add_argument(
        '--score-threshold', type=float, default=0.3, help='lowest score of drawn boxes (default: %(default)s)'
    )
    parser.add_argument(
        '--log', nargs='+', default=[], metavar='NAME=FILE', help='scalars.json of trainings with HaltingHook'
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/halting'), help='folder for table and pictures')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='overrides of the config'
    )
    args = parser.parse_args()
    if not args.samples and args.count is None:
        parser.error('nothing to do: give --samples, --count or both')
    if not all('=' in log for log in args.log):
        parser.error(f'cannot read --log {" ".join(args.log)}; valid is NAME=FILE')
    return args


def main() -> None:
    """Parses, runs, prints the table."""
    args = parse_args()
    from mmprune3d.command import NOTHING_KEPT, run_main

    run_main(lambda: run(args), NOTHING_KEPT)


def run(args: argparse.Namespace) -> None:
    """Counts and draws."""
    from mmprune3d.files import writable
    from mmprune3d.inspect.halting import run_halting

    logs = {name: Path(file) for name, _, file in (log.partition('=') for log in args.log)}
    drawn = (args.samples, writable(args.out), args.cfg_options, args.count, args.score_threshold, logs)
    print(run_halting(args.config, args.checkpoint, *drawn))


if __name__ == '__main__':
    main()
