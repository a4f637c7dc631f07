"""Token halting: accuracy and time of an SST whose tokens halt; ``python -m experiments.halting``."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config

from experiments import benchmark as benchmarks
from experiments.command import ROOT, Commands, add_checkpoint, add_detector, add_folder, prepare_folder

CONFIG = ROOT / 'configs' / 'sst' / 'sst_tiny.py'
FOLDER = 'work_dirs/study_halting'


def commands() -> Commands:
    """The commands train, table, speed and benchmark."""
    made = Commands('halting', 'What halting tokens of an SST costs and gains (Dynamic Token Halting).')
    parser = made.add(
        'train',
        train,
        'trainings of the study, one after the other',
        'sst halt-82 width-8 --seed 0',
        'A training is skipped if its result is there, and goes on if it was interrupted.',
    )
    parser.add_argument('names', nargs='+', metavar='NAME', help='names of rows; a wrong one lists the valid ones')
    _add_common(parser)
    add_folder(made.add('table', table, 'accuracy and speed of what was trained, and a picture'), FOLDER)
    parser = made.add(
        'speed',
        speed,
        'time of attention, backbone and detector of all rows that were trained with a seed',
        '--seed 0 --threads 2 --frames 6',
        'All rows take turns with the control (sst), whose result is needed.',
    )
    parser.add_argument('--frames', type=int, default=16, help='test samples (default: %(default)s)')
    parser.add_argument('--repeats', type=int, default=3, help='rounds on each sample (default: %(default)s)')
    _add_common(parser)
    parser = made.add(
        'benchmark',
        benchmark,
        'time of attention, backbone and detector of SST with halted tokens and random weights',
        '--layout objects scattered --json out.json',
        after_interrupt=benchmarks.KEPT,
    )
    benchmarks.add_options(parser, ('--layout', '--rows'), dtypes=('float32',), threads=2)
    parser.add_argument('--tokens', type=int, default=20000, help='tokens of a rendered scan (default: %(default)s)')
    parser.add_argument('--window', type=int, default=12, help='side of a window in pillars (default: %(default)s)')
    parser.add_argument(
        '--points', type=Path, metavar='FILE', help='float32 points; the layout "frame" is made of them'
    )
    parser.add_argument('--dims', type=int, default=5, help='numbers per point in that file (default: %(default)s)')
    return made


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--seed', type=int, default=0, help='of the trainings (default: %(default)s)')
    add_detector(parser, CONFIG, 'SST without halting')
    add_checkpoint(parser, CONFIG)
    add_folder(parser, FOLDER)


def _start(args: argparse.Namespace) -> tuple[Config, Path]:
    """Prepares the folder of the study; returns config and weights of the SST."""
    from mmprune3d.checkpoint.addresses import local_file
    from mmprune3d.measure.runners import read_config

    prepare_folder(args)
    checkpoint = local_file(args.checkpoint)
    return read_config(args.config, checkpoint, args.cfg_options), checkpoint


def train(args: argparse.Namespace) -> None:
    """Runs the trainings and prints their results."""
    from .study import STUDY, run_training

    base, checkpoint = _start(args)
    STUDY.check(args.names)  # before the first training
    for name in args.names:
        print(run_training(base, checkpoint, name, args.seed, args.out))


def table(args: argparse.Namespace) -> None:
    """Prints the tables."""
    from .table import table

    prepare_folder(args, make=False)
    print(table(args.out))


def speed(args: argparse.Namespace) -> None:
    """Times the rows and prints their milliseconds."""
    from .speed import measure_speed

    base, _ = _start(args)
    for name, found in measure_speed(base, args.out, args.seed, args.frames, args.repeats).items():
        print(name, found['ms'])


def benchmark(args: argparse.Namespace) -> None:
    """Times SST at several sparsities."""
    from . import benchmark

    options = {name: getattr(args, name) for name in ('tokens', 'window', 'points', 'dims', 'device')}
    benchmarks.run(
        args,
        benchmark.rows_with(args.points),
        lambda row: benchmark.measure(row, args.repeats, **options),
        benchmark.markdown,
    )


if __name__ == '__main__':
    commands().main()
