"""AlterMOMA on synthetic data: trainings of the study, or the tables of those that are there.

    python tools/study_fusion.py train dense altermoma-80 prospr-80 --seed 0
    python tools/study_fusion.py table
    python tools/study_fusion.py redundancy
    python tools/study_fusion.py scores
    python tools/study_fusion.py cost
    python tools/study_fusion.py features --sample 40

A training is skipped if its result is there. `redundancy` masks the streams of the unpruned detector in turn and
measures how well they predict each other; `scores` compares the two parts of AlterMOMA's score, `cost` what the
criteria cost; `features` draws the maps of the streams before and after pruning.
"""

from __future__ import annotations

import argparse
from pathlib import Path

CONFIG = Path(__file__).resolve().parents[1] / 'configs' / 'bevfusion' / 'bevfusion_tiny.py'


def parse_args() -> argparse.Namespace:
    """The command line; see --help."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    train = commands.add_parser('train', help='run trainings, one after the other')
    train.add_argument('names', nargs='+', help='names of trainings; a wrong one lists the valid ones')
    train.add_argument('--seed', type=int, default=0)
    made = commands.add_parser('table', help='accuracy of what was trained, and pictures')
    masked = commands.add_parser('redundancy', help='what each stream is worth, and how alike they are')
    scores = commands.add_parser('scores', help='how contribution and redundancy relate, over settings')
    cost = commands.add_parser('cost', help='passes, time and memory of scoring')
    drawn = commands.add_parser('features', help='feature maps: original, reactivated, pruned')
    drawn.add_argument('--sample', type=int, default=0, help='number of the test sample')
    drawn.add_argument('--sparsity', type=float, default=0.8)
    for command in (train, masked, scores, cost, drawn):
        command.add_argument('--config', type=Path, default=CONFIG, help='the fusion detector')
        command.add_argument(
            '--checkpoint', default=CONFIG.with_suffix('.pth'), help='its weights, a file or an address'
        )
        command.add_argument(
            '--cfg-options',
            nargs='+',
            action=DictAction,
            default={},
            metavar='KEY=VALUE',
            help='overrides of the config',
        )
    for command in (train, made, masked, scores, cost, drawn):
        command.add_argument('--out', type=Path, default=Path('work_dirs/altermoma'), help='folder of the study')
        command.add_argument('--threads', type=int, help='CPU threads')
    return parser.parse_args()


def main() -> None:
    """Trains, tabulates, measures or draws."""
    args = parse_args()
    from mmprune3d.command import run_main

    run_main(lambda: start(args))


def start(args: argparse.Namespace) -> None:
    """Does what was asked for."""
    import torch

    from experiments.altermoma.commands import run
    from mmprune3d.files import writable

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.out.exists() or args.command != 'table':
        writable(args.out)
    run(args)


if __name__ == '__main__':
    main()
