"""Make a detector faster, and report how accuracy, time and memory change.

    python tools/upgrade.py CONFIG CHECKPOINT --tggbc r=12000,n=2,k=175 --out work_dirs/upgrade

    python tools/upgrade.py CONFIG CHECKPOINT --tggbc auto --max-drop 0.01 --calibrate 100

    python tools/upgrade.py CONFIG CHECKPOINT --gpq target=300,epochs=6 [--tggbc r=12000]

    python tools/upgrade.py CONFIG CHECKPOINT --altermoma flops=0.5 --epochs 6   (camera-LiDAR fusion; or sparsity=0.8)

    python tools/upgrade.py CONFIG CHECKPOINT --halting sparsity=0.82 --epochs 6   (SST)

    python tools/upgrade.py CONFIG CHECKPOINT --tggbc r=12000 --samples 600   (a part of a large test set)

Writes report.md, report.json, pictures/, and the upgraded config and checkpoint, which mmdet3d's own tools/test.py
runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """The command line; see --help."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path, help='config of the detector, as for mmdet3d tools/test.py')
    parser.add_argument('checkpoint', help='its checkpoint: a file or an address')
    plans = parser.add_mutually_exclusive_group()
    plans.add_argument(
        '--tggbc', metavar='r=R,n=N,k=K', help='remove R keys over N layers, by K queries; "auto" looks for R and N'
    )
    plans.add_argument('--tome', metavar='r=R,n=N', help='merge R keys over N layers, to compare with; or "auto"')
    parser.add_argument(
        '--gpq',
        metavar='target=N,epochs=E',
        help='fine-tune while queries go, until N are left; then keys, if asked for',
    )
    parser.add_argument(
        '--altermoma',
        metavar='sparsity=S|flops=F',
        help='prune weights or channels of a fusion detector and fine-tune; criterion=prospr and so on to compare with',
    )
    parser.add_argument(
        '--halting', metavar='sparsity=S', help='let tokens of an SST halt, on average S of them, and fine-tune'
    )
    parser.add_argument('--epochs', type=int, help="epochs of fine-tuning (default: the config's)")
    parser.add_argument('--lr-factor', type=float, default=0.5, help="fine-tuning: times the config's learning rate")
    parser.add_argument('--max-drop', type=float, help='for auto: largest loss of mAP and NDS (default 0.01, a point)')
    parser.add_argument(
        '--calibrate', type=int, help='for auto: test samples to search on, evenly spaced (default all)'
    )
    parser.add_argument(
        '--samples',
        type=int,
        help='test samples to evaluate, evenly spaced, or whole scenes of temporal models (default all)',
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/upgrade'), help='report folder')
    parser.add_argument('--timed', type=int, default=8, help='test batches to time')
    parser.add_argument('--repeats', type=int, default=3, help='how often each is timed')
    parser.add_argument('--pictures', type=int, default=3, help='samples to draw')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='overrides of the config'
    )
    return parser.parse_args()


def main() -> None:
    """Parses, runs, prints the table."""
    args = parse_args()
    from mmprune3d.command import run_main

    run_main(lambda: run_alone(args))


def run_alone(args: argparse.Namespace) -> None:
    """Runs the upgrade, unless another one works in the same folder."""
    from mmprune3d.files import alone

    with alone(args.out):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Runs the upgrade that is asked for."""
    from mmprune3d.pruning.altermoma import AlterMOMAPlan
    from mmprune3d.pruning.gpq import GPQPlan
    from mmprune3d.pruning.halting import HaltingPlan
    from mmprune3d.upgrade.altermoma import FusionPruning, run_fusion_upgrade
    from mmprune3d.upgrade.finetune import QueryPruning
    from mmprune3d.upgrade.halting import HaltingUpgrade, run_halting_upgrade
    from mmprune3d.upgrade.run import run_upgrade
    from mmprune3d.upgrade.search import parse_plan

    methods = {name: text for name, text in (('tggbc', args.tggbc), ('tome', args.tome)) if text is not None}
    kinds = {
        '--altermoma (fusion detectors)': args.altermoma,
        '--halting (SST)': args.halting,
        '--gpq, --tggbc or --tome (queries and keys)': methods or args.gpq,
    }
    if sum(bool(given) for given in kinds.values()) != 1:
        raise SystemExit(f'error: say what to prune, one kind: {", ".join(kinds)}')
    measured = {name: getattr(args, name) for name in ('timed', 'repeats', 'pictures', 'samples')}
    measured['overrides'] = args.cfg_options
    if args.altermoma:
        pruning = FusionPruning(AlterMOMAPlan.parse(args.altermoma), args.epochs, args.lr_factor)
        run_fusion_upgrade(args.config, args.checkpoint, pruning, args.out, **measured)
        return
    if args.halting:
        halting = HaltingUpgrade(HaltingPlan.parse(args.halting), args.epochs, args.lr_factor)
        run_halting_upgrade(args.config, args.checkpoint, halting, args.out, **measured)
        return
    plans = [parse_plan(*item, args.max_drop, args.calibrate) for item in methods.items()]
    run_upgrade(
        args.config,
        args.checkpoint,
        plans[0] if plans else None,
        args.out,
        gpq=QueryPruning(GPQPlan.parse(args.gpq), args.epochs, args.lr_factor) if args.gpq else None,
        **measured,
    )


if __name__ == '__main__':
    main()
