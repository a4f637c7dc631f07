"""How much accuracy key pruning costs a detector: every ablation of the tgGBC paper on the config's own test set.

    python tools/study_keys.py CONFIG CHECKPOINT --out work_dirs/study

Writes study.json, study.md and a plot per part. Run it again to go on after an interruption.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """The command line; see --help."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path, help='config of the unpruned detector')
    parser.add_argument('checkpoint', help='its checkpoint: a file or an address')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/study'), help='folder for tables and plots')
    parser.add_argument('--samples', type=int, help='test samples, evenly spaced; all if not given')
    parser.add_argument(
        '--parts', default='r,n,k,score,tome,random,place', help='what to study (default: %(default)s, everything)'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='overrides of the config'
    )
    return parser.parse_args()


def main() -> None:
    """Parses, runs, prints the tables."""
    args = parse_args()
    from mmprune3d.command import run_main

    run_main(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Runs what is missing."""
    from experiments.tggbc.study import run_study
    from mmprune3d.files import writable

    writable(args.out)
    print(run_study(args.config, args.checkpoint, args.out, args.samples, args.parts, args.cfg_options))


if __name__ == '__main__':
    main()
