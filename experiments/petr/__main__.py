"""PETR: pre-training of its position embeddings; ``python -m experiments.petr``."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.command import Commands
from mmprune3d.command import NOTHING_KEPT


def commands() -> Commands:
    """The command align."""
    made = Commands('petr', 'Where the trainings of small PETR detectors start from.')
    parser = made.add(
        'align',
        align,
        "geometric pre-training of a PETR3D's position embeddings: queries learn where a 3D point is seen",
        'configs/petr/petr_tiny.py work_dirs/start.pth',
        after_interrupt=NOTHING_KEPT,
    )
    parser.add_argument('config', type=Path, help='config of a PETR3D detector')
    parser.add_argument('out', type=Path, help='checkpoint to write, for load_from')
    parser.add_argument('--checkpoint', metavar='FILE', help='weights to start from: a file or an address')
    parser.add_argument('--only', nargs='+', metavar='PREFIX', help='take only weights whose names begin with a PREFIX')
    parser.add_argument('--data-root', metavar='DIR', help='data set to use instead of the one in the config')
    parser.add_argument(
        '--frames', type=int, default=48, help='training frames with their cameras and features (default: %(default)s)'
    )
    parser.add_argument('--steps', type=int, default=1500, help='optimizer steps (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='(default: %(default)s)')
    return made


def align(args: argparse.Namespace) -> None:
    """Aligns the position embeddings of a detector and saves it."""
    from .start import aligned_detector

    aligned_detector(
        args.config, args.out, args.frames, args.steps, args.seed, args.data_root, args.checkpoint, args.only
    )


if __name__ == '__main__':
    commands().main()
