"""tgGBC: accuracy and time of a decoder with fewer keys; ``python -m experiments.tggbc``."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments import benchmark as benchmarks
from experiments.command import Commands, add_overrides
from mmprune3d.command import NOTHING_KEPT


def commands() -> Commands:
    """The commands study, benchmark, sweep and overfit."""
    made = Commands('tggbc', 'What removing keys of the cross-attention costs and gains (tgGBC).')
    parser = made.add(
        'study',
        study,
        "accuracy under every ablation of the paper, on the config's own test set",
        'configs/petr/petr_tiny.py configs/petr/petr_tiny.pth --out work_dirs/study',
        'Writes study.json, study.md and a plot per part; settings that were tested are not tested again.',
    )
    parser.add_argument('config', type=Path, help='config of the unpruned detector')
    parser.add_argument('checkpoint', help='its checkpoint: a file or an address')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/study'), metavar='DIR', help='folder for tables and plots'
    )
    parser.add_argument('--samples', type=int, help='number of test samples, evenly spaced (default: all)')
    parser.add_argument(
        '--parts', default='r,n,k,score,tome,random,place', help='what is studied (default: %(default)s)'
    )
    add_overrides(parser)
    parser = made.add(
        'benchmark',
        benchmark,
        "time of the paper's decoders: stock, with fused attention, tgGBC as published, ToMe, ours",
        '--rows streampetr_vov_1600x640 --repeats 7 --json out.json',
        after_interrupt=benchmarks.KEPT,
    )
    benchmarks.add_options(parser)
    parser = made.add(
        'sweep',
        sweep,
        'time and operations against r, n and k, with plots',
        '--rows streampetr_vov_1600x640 --plots work_dirs/sweep',
        after_interrupt=benchmarks.KEPT,
    )
    benchmarks.add_options(parser)
    parser.add_argument(
        '--plots', type=Path, default=Path('work_dirs/sweep'), metavar='DIR', help='folder for the plots'
    )
    parser = made.add(
        'overfit',
        overfit,
        'cars that a detector, over-fitted to one nuScenes frame, still finds without most of its keys',
        'configs/petr/petr_tiny.py FRAME --checkpoint configs/petr/petr_tiny.pth',
        after_interrupt=NOTHING_KEPT,
    )
    parser.add_argument('config', type=Path, help='config of the detector')
    parser.add_argument('frame', type=Path, help='folder with infos.pkl and the images that it names')
    parser.add_argument('--checkpoint', help='weights to start from: a file or an address')
    parser.add_argument('--steps', type=int, default=600, help='most training steps (default: %(default)s)')
    parser.add_argument('--lr', type=float, default=2e-4, help='learning rate (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the first weights (default: %(default)s)')
    parser.add_argument(
        '--ratios', type=float, nargs='+', default=[0.5, 0.7, 0.875], metavar='SHARE', help='shares of keys to remove'
    )
    return made


def study(args: argparse.Namespace) -> None:
    """Tests the settings that were not tested yet, prints the tables."""
    from mmprune3d.files import writable

    from .study import run_study

    writable(args.out)
    print(run_study(args.config, args.checkpoint, args.out, args.samples, args.parts, args.cfg_options))


def benchmark(args: argparse.Namespace) -> None:
    """Times the rows of the paper's Table 1."""
    import torch

    from . import benchmark

    dtype = getattr(torch, args.dtype)
    benchmarks.run(
        args,
        benchmark.ROWS,
        lambda row: benchmark.measure(row, args.repeats, device=args.device, dtype=dtype),
        benchmark.markdown,
    )


def sweep(args: argparse.Namespace) -> None:
    """Times rows under many plans, and draws the times."""
    import torch

    from . import sweep

    dtype = getattr(torch, args.dtype)
    results = benchmarks.run(
        args,
        sweep.ROWS,
        lambda row: sweep.measure(row, args.repeats, device=args.device, dtype=dtype),
        sweep.markdown,
        folders=[args.plots],
    )
    print('Plots:', *(sweep.plot(result, args.plots) for result in results))


def overfit(args: argparse.Namespace) -> None:
    """Trains on a frame, prunes, counts."""
    from .overfit import run

    run(args.config, args.frame, args.checkpoint, args.steps, args.lr, args.seed, args.ratios)


if __name__ == '__main__':
    commands().main()
