"""Token halting on synthetic data: trainings of the study, their speed, or the tables of those that are there.

    python tools/study_halting.py train sst halt-82 width-8 --seed 0
    python tools/study_halting.py speed --seed 0 --threads 2
    python tools/study_halting.py table

A training is skipped if its result is there, and goes on if it was interrupted. `speed` times all rows that were
trained with the seed, in turns with the control (sst). `table` also draws accuracy against the speed of the backbone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

CONFIG = Path(__file__).resolve().parents[1] / 'configs' / 'sst' / 'sst_tiny.py'


def parse_args() -> argparse.Namespace:
    """The command line; see --help."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    train = commands.add_parser('train', help='run trainings, one after the other')
    train.add_argument('names', nargs='+', metavar='NAME', help='names of rows; a wrong one lists the valid ones')
    speed = commands.add_parser('speed', help='time attention, backbone and detector of all rows')
    speed.add_argument('--frames', type=int, default=16, help='test samples (default: %(default)s)')
    speed.add_argument('--repeats', type=int, default=3, help='rounds on each (default: %(default)s)')
    made = commands.add_parser('table', help='tables and picture of what is there')
    for command in (train, speed):
        command.add_argument('--seed', type=int, default=0, help='of the trainings (default: %(default)s)')
        command.add_argument('--config', type=Path, default=CONFIG, help='the plain SST')
        command.add_argument(
            '--checkpoint', default=CONFIG.with_suffix('.pth'), help='its weights, a file or an address'
        )
        command.add_argument(
            '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='overrides'
        )
    for command in (train, speed, made):
        command.add_argument('--out', type=Path, default=Path('work_dirs/study_halting'), help='folder of the study')
        command.add_argument('--threads', type=int, help='CPU threads')
    return parser.parse_args()


def main() -> None:
    """Parses and runs."""
    args = parse_args()
    from mmprune3d.command import run_main

    run_main(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Trains, times or tabulates."""
    import torch

    from experiments.halting.speed import measure_speed
    from experiments.halting.study import folder_of, run_training
    from experiments.halting.table import table
    from mmprune3d.checkpoint.addresses import local_file
    from mmprune3d.files import writable
    from mmprune3d.measure.runners import read_config

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.out.exists() or args.command != 'table':
        writable(args.out)
    if args.command == 'table':
        print(table(args.out))
        return
    checkpoint = local_file(args.checkpoint)
    base = read_config(args.config, checkpoint, args.cfg_options)
    if args.command == 'speed':
        for name, speed in measure_speed(base, args.out, args.seed, args.frames, args.repeats).items():
            print(name, speed['ms'])
        return
    for name in args.names:
        folder_of(args.out, name, args.seed)  # refuses unknown names before the first training
    for name in args.names:
        print(run_training(base, checkpoint, name, args.seed, args.out))


if __name__ == '__main__':
    main()
