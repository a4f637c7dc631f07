"""GPQ on synthetic data: one training of the study, or the table of those that are there.

    python tools/study_queries.py train gpq-100 --seed 0
    python tools/study_queries.py table

Trainings that start from another one need it first: scratch-300 comes before everything but scratch-100, scratch-50 and
gpq-t-100.
"""

from __future__ import annotations

import argparse
from pathlib import Path

CONFIG = Path(__file__).resolve().parents[1] / 'configs' / 'gpq' / 'petr_tiny_study.py'


def parse_args() -> argparse.Namespace:
    """The command line; see --help."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    train = commands.add_parser('train', help='run trainings, one after the other')
    train.add_argument('names', nargs='+', help='names of trainings; a wrong one lists the valid ones')
    train.add_argument('--seed', type=int, default=0)
    train.add_argument('--config', type=Path, default=CONFIG, help='detector with N queries')
    train.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='overrides of the config'
    )
    made = commands.add_parser('table', help='accuracy and decoder times of what was trained')
    made.add_argument('--repeats', type=int, default=20, help='timed rounds; the median counts')
    for command in (train, made):
        command.add_argument('--out', type=Path, default=Path('work_dirs/gpq'), help='folder of the study')
        command.add_argument('--threads', type=int, help='CPU threads')
    return parser.parse_args()


def main() -> None:
    """Parses and runs."""
    args = parse_args()
    from mmprune3d.command import run_main

    run_main(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Trains or tabulates."""
    import torch
    from mmengine.config import Config

    from experiments.gpq.study import check_name, run_training
    from experiments.gpq.table import table
    from mmprune3d.files import writable

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.out.exists() or args.command != 'table':
        writable(args.out)
    if args.command == 'table':
        print(table(args.out, args.repeats))
        return
    base = Config.fromfile(args.config)
    base.merge_from_dict(args.cfg_options)
    for name in args.names:
        check_name(name)  # before the first training
    for name in args.names:
        print(run_training(base, name, args.seed, args.out))


if __name__ == '__main__':
    main()
