"""AlterMOMA: accuracy and time of a fusion detector with fewer weights; ``python -m experiments.altermoma``."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config

from experiments import benchmark as benchmarks
from experiments.command import ROOT, Commands, add_checkpoint, add_detector, add_folder, prepare_folder

CONFIG = ROOT / 'configs' / 'bevfusion' / 'bevfusion_tiny.py'
FOLDER = 'work_dirs/altermoma'


def commands() -> Commands:
    """The commands train, table, redundancy, features, statistics, cost and benchmark."""
    made = Commands('altermoma', 'What pruning weights of a fusion detector costs and gains (AlterMOMA).')
    parser = made.add(
        'train',
        train,
        'trainings of the study, one after the other',
        'dense altermoma-80 prospr-80 --seed 0',
        'A training is skipped if its result is there, and goes on if it was interrupted.',
    )
    parser.add_argument('names', nargs='+', metavar='NAME', help='names of rows; a wrong one lists the valid ones')
    parser.add_argument('--seed', type=int, default=0, help='of the trainings (default: %(default)s)')
    _add_common(parser)
    add_folder(made.add('table', table, 'accuracy of what was trained, and pictures'), FOLDER)
    parser = made.add(
        'redundancy', redundancy, 'accuracy with each stream masked, and how well the streams predict each other'
    )
    _add_common(parser)
    parser = made.add(
        'features', features, 'feature maps: original, reactivated and pruned', '--sample 40 --sparsity 0.8'
    )
    parser.add_argument('--sample', type=int, default=0, help='number of the test sample (default: %(default)s)')
    parser.add_argument('--sparsity', type=float, default=0.8, help='share of removed weights (default: %(default)s)')
    _add_common(parser)
    parser = made.add(
        'statistics',
        statistics,
        "how the two parts of AlterMOMA's score relate, over settings of the reactivation",
    )
    _add_common(parser)
    _add_common(made.add('cost', cost, 'passes, time and memory of scoring, by criterion', '--threads 2'))
    parser = made.add(
        'benchmark',
        benchmark,
        'time of the camera and BEV parts of BEVFusion with fewer channels, on the CPU',
        '--rows r101_second --threads 2',
        after_interrupt=benchmarks.KEPT,
    )
    benchmarks.add_options(parser, devices=('cpu',), dtypes=('float32',))
    parser.add_argument(
        '--round-to', type=int, metavar='N', help='kept channels are a multiple of N (default: 32; row tiny: 1)'
    )
    return made


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_detector(parser, CONFIG, 'fusion detector')
    add_checkpoint(parser, CONFIG)
    add_folder(parser, FOLDER)


def _start(args: argparse.Namespace) -> tuple[Config, Path]:
    """Prepares the folder of the study; returns config and weights of the fusion detector."""
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
    """Prints the table."""
    from .table import table

    prepare_folder(args, make=False)
    print(table(args.out))


def redundancy(args: argparse.Namespace) -> None:
    """Prints what each stream contributes, and how much of it the other stream predicts."""
    from .redundancy import redundancy, redundancy_table

    print(redundancy_table(redundancy(*_start(args), args.out)))


def statistics(args: argparse.Namespace) -> None:
    """Prints statistics of the scores."""
    from .score_statistics import plans_of, score_statistics, statistics_table

    print(statistics_table(score_statistics(*_start(args), plans_of(sparsity=0.8), args.out)))


def cost(args: argparse.Namespace) -> None:
    """Prints what scoring costs."""
    from .scoring_cost import cost_table, scoring_cost

    print(cost_table(scoring_cost(*_start(args), args.out)))


def features(args: argparse.Namespace) -> None:
    """Draws feature maps of a sample, prints the name of the picture."""
    from .features import draw_states
    from .study import plan_of

    path = args.out / f'features_{args.sample}.png'
    draw_states(*_start(args), plan_of(args.sparsity), args.sample, path)
    print(path)


def benchmark(args: argparse.Namespace) -> None:
    """Times dense and slim detectors."""
    from . import benchmark

    benchmarks.run(
        args,
        benchmark.ROWS,
        lambda row: benchmark.measure(row, args.repeats, round_to=args.round_to),
        benchmark.markdown,
    )


if __name__ == '__main__':
    commands().main()
