"""Speed of pruned parts against their baselines, on random features; all ways take turns in one run.

python tools/benchmark.py decoder --rows streampetr_vov_1600x640 --repeats 7 --json out.json
python tools/benchmark.py sweep --rows streampetr_vov_1600x640 --plots work_dirs/sweep
python tools/benchmark.py queries --rows petr_800x320 --queries 900 150
python tools/benchmark.py channels --rows r101_second --threads 2
python tools/benchmark.py backbone --layout objects scattered --json out.json
"""

from __future__ import annotations

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """The command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, text in (
        ('decoder', 'decoder and heads of the detectors of the tgGBC paper, six ways'),
        ('sweep', 'time against r, n and k, with plots'),
        ('queries', 'decoders of the GPQ paper with fewer queries, in PyTorch and ONNX Runtime on the CPU'),
        ('channels', 'camera and BEV parts of BEVFusion with fewer channels, on the CPU'),
        ('backbone', 'attention, backbone and detector of SST with halted tokens'),
    ):
        command = commands.add_parser(name, help=text)
        rows = ('--layout', '--rows') if name == 'backbone' else ('--rows',)
        command.add_argument(*rows, dest='rows', nargs='+', metavar='NAME', help='rows of the table; all if left out')
        command.add_argument('--repeats', type=int, default=5, help='timed rounds; the median counts')
        command.add_argument('--threads', type=int, help="CPU threads; torch's own choice if left out")
        command.add_argument('--json', type=Path, help='write the figures here')
        if name == 'channels':
            command.add_argument('--round-to', type=int, default=32, help='kept channels are a multiple of this')
            command.set_defaults(device='cpu', dtype='float32')
            continue
        if name == 'queries':
            command.add_argument('--queries', nargs='+', type=int, default=(900, 300, 150), help='numbers of queries')
            command.set_defaults(device='cpu', dtype='float32')
            continue
        if name == 'backbone':
            command.add_argument('--tokens', type=int, default=20000, help='tokens of a rendered scan, about')
            command.add_argument('--window', type=int, default=12, help='side of a window in pillars')
            command.add_argument('--points', type=Path, help='float32 points: the layout "frame" needs them')
            command.add_argument('--dims', type=int, default=5, help='numbers per point in that file')
            command.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
            command.set_defaults(dtype='float32', threads=2)
            continue
        command.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
        command.add_argument('--dtype', choices=('float32', 'bfloat16', 'float16'), default='float32')
        if name == 'sweep':
            command.add_argument('--plots', type=Path, default=Path('work_dirs/sweep'), help='folder for the plots')
    return parser.parse_args()


def main() -> None:
    """Parses and measures."""
    args = parse_args()
    from mmprune3d.command import run_main

    run_main(lambda: run(args), 'rows that were done are in the file of --json, if there is one')


def run(args: argparse.Namespace) -> None:
    """Measures row by row, prints Markdown."""
    import torch

    from experiments.altermoma import benchmark as channel_benchmark
    from experiments.gpq import benchmark as query_benchmark
    from experiments.halting import benchmark as backbone_benchmark
    from experiments.tggbc import benchmark as decoder_benchmark
    from experiments.tggbc import sweep as decoder_sweep
    from mmprune3d.files import writable, write_json
    from mmprune3d.measure.report import environment

    if args.threads:
        torch.set_num_threads(args.threads)
    module = {
        'decoder': decoder_benchmark,
        'sweep': decoder_sweep,
        'queries': query_benchmark,
        'channels': channel_benchmark,
        'backbone': backbone_benchmark,
    }[args.command]
    valid = module.rows_with(args.points) if args.command == 'backbone' else list(module.ROWS)
    rows = args.rows or valid
    unknown = sorted(set(rows) - set(valid))
    if unknown:
        raise ValueError(f'no row {", ".join(unknown)}; valid are {", ".join(valid)}')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda, but torch sees no GPU')
    for folder in ([args.json.parent] if args.json else []) + ([args.plots] if args.command == 'sweep' else []):
        writable(folder)
    env = environment(batch_size=1, dtype=args.dtype, device=args.device)
    options: dict[str, object] = {}
    if args.command == 'queries':
        options, env = {'queries': args.queries}, env | query_benchmark.versions()
    elif args.command == 'channels':
        options = {'round_to': args.round_to}
    elif args.command == 'backbone':
        options = {name: getattr(args, name) for name in ('tokens', 'window', 'points', 'dims', 'device')}
    else:
        options = {'device': args.device, 'dtype': getattr(torch, args.dtype)}
    results = []
    for row in rows:
        found = module.measure(row, args.repeats, **options)
        results += found if args.command == 'backbone' else [found]
        print(f'{row}: done', flush=True)
        if args.json:  # an interrupted run keeps what it has
            write_json(args.json, {'rows': results, 'env': env})
    print(module.markdown(results))
    if args.command == 'sweep':
        print('Plots:', *(decoder_sweep.plot(result, args.plots) for result in results))
    print(', '.join(f'{name} {value}' for name, value in env.items()))


if __name__ == '__main__':
    main()
