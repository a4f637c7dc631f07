"""GPQ: accuracy and time of a decoder with fewer queries; ``python -m experiments.gpq``."""

from __future__ import annotations

import argparse

from experiments import benchmark as benchmarks
from experiments.command import ROOT, Commands, add_detector, add_folder, prepare_folder

CONFIG = ROOT / 'configs' / 'gpq' / 'petr_tiny_study.py'
FOLDER = 'work_dirs/gpq'


def commands() -> Commands:
    """The commands train, table and benchmark."""
    made = Commands('gpq', 'What removing queries of a detector costs and gains (GPQ).')
    parser = made.add(
        'train',
        train,
        'trainings of the study, one after the other',
        'gpq-100 gpq-50 --seed 0',
        'A training is skipped if its result is there, and goes on if it was interrupted. scratch-300 comes\n'
        'before all others but scratch-100, scratch-50 and gpq-t-100; "python -m experiments.petr align" makes\n'
        'the start.pth that these begin with.',
    )
    parser.add_argument('names', nargs='+', metavar='NAME', help='names of rows; a wrong one lists the valid ones')
    parser.add_argument('--seed', type=int, default=0, help='of the trainings (default: %(default)s)')
    add_detector(parser, CONFIG, 'detector with N queries')
    add_folder(parser, FOLDER)
    parser = made.add('table', table, 'accuracy and decoder times of what was trained', '--threads 2')
    parser.add_argument(
        '--repeats', type=int, default=20, help='timed rounds; the median counts (default: %(default)s)'
    )
    add_folder(parser, FOLDER)
    parser = made.add(
        'benchmark',
        benchmark,
        "time of the paper's decoders with fewer queries, in PyTorch and ONNX Runtime on the CPU",
        '--rows petr_800x320 --queries 900 150',
        after_interrupt=benchmarks.KEPT,
    )
    benchmarks.add_options(parser, devices=('cpu',), dtypes=('float32',))
    parser.add_argument(
        '--queries', nargs='+', type=int, default=(900, 300, 150), metavar='N', help='numbers of queries'
    )
    return made


def train(args: argparse.Namespace) -> None:
    """Runs the trainings and prints their results."""
    from mmengine.config import Config

    from .study import STUDY, run_training

    prepare_folder(args)
    base = Config.fromfile(args.config)
    base.merge_from_dict(args.cfg_options)
    STUDY.check(args.names)  # before the first training
    for name in args.names:
        print(run_training(base, name, args.seed, args.out))


def table(args: argparse.Namespace) -> None:
    """Prints the table."""
    from .table import table

    prepare_folder(args, make=False)
    print(table(args.out, args.repeats))


def benchmark(args: argparse.Namespace) -> None:
    """Times the rows of the paper's Table 3."""
    from . import benchmark

    benchmarks.run(
        args,
        benchmark.ROWS,
        lambda row: benchmark.measure(row, args.repeats, queries=args.queries),
        benchmark.markdown,
        benchmark.versions(),
    )


if __name__ == '__main__':
    commands().main()
