"""Speed of pruned parts against their baselines, on random features; all ways take turns in one run.

python tools/benchmark.py decoder --rows streampetr_vov_1600x640 --repeats 7 --json out.json
python tools/benchmark.py sweep --rows streampetr_vov_1600x640 --plots work_dirs/sweep
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """The command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, text in (
        ('decoder', 'decoder and heads of the detectors of the tgGBC paper, six ways'),
        ('sweep', 'time against r, n and k, with plots'),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument('--rows', nargs='+', metavar='NAME', help='rows of the table; all if left out')
        command.add_argument('--repeats', type=int, default=5, help='timed rounds; the median counts')
        command.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
        command.add_argument('--dtype', choices=('float32', 'bfloat16', 'float16'), default='float32')
        command.add_argument('--threads', type=int, help="CPU threads; torch's own choice if left out")
        command.add_argument('--json', type=Path, help='write the figures here')
        if name == 'sweep':
            command.add_argument('--plots', type=Path, default=Path('work_dirs/sweep'), help='folder for the plots')
    return parser.parse_args()


def main() -> None:
    """Measures row by row, prints Markdown."""
    args = parse_args()
    import torch

    from mmprune3d.analysis import decoder_benchmark, decoder_sweep
    from mmprune3d.analysis.report import environment

    if args.threads:
        torch.set_num_threads(args.threads)
    rows = args.rows or list(decoder_benchmark.ROWS)
    unknown = sorted(set(rows) - set(decoder_benchmark.ROWS))
    if unknown:
        raise SystemExit(f'error: no row {", ".join(unknown)}; valid are {", ".join(decoder_benchmark.ROWS)}')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise SystemExit('error: --device cuda, but torch sees no GPU')
    run = decoder_benchmark.measure if args.command == 'decoder' else decoder_sweep.measure
    results = []
    for row in rows:
        results.append(run(row, args.repeats, args.device, getattr(torch, args.dtype)))
        print(f'{row}: done', flush=True)
    env = environment(batch_size=1, dtype=args.dtype, device=args.device)
    if args.json:
        args.json.write_text(json.dumps({'rows': results, 'env': env}, indent=2) + '\n')
    if args.command == 'decoder':
        print(decoder_benchmark.markdown(results))
    else:
        print(decoder_sweep.markdown(results))
        print('Plots:', *(decoder_sweep.plot(result, args.plots) for result in results))
    print(', '.join(f'{name} {value}' for name, value in env.items()))


if __name__ == '__main__':
    main()
