"""Which learned queries a detector uses: how often each is selected, where they are, what GPQ removed.

    python tools/analyze_queries.py CONFIG CHECKPOINT --out work_dirs/queries
    python tools/analyze_queries.py CONFIG CHECKPOINT --compare pruned=CONFIG:CHECKPOINT --history gpq_history.jsonl

Writes queries.json, queries.md, frequency.png, points.png (of detectors with reference points) and, with a history,
trajectories.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """The command line; see --help."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path, help='config of a detector with learned queries')
    parser.add_argument('checkpoint', help='its checkpoint with or without removed queries: a file or an address')
    parser.add_argument('--name', help='what it is called in tables and pictures; by default, as its config')
    parser.add_argument(
        '--compare', nargs='+', default=[], metavar='NAME=CONFIG:CHECKPOINT', help='more detectors, side by side'
    )
    parser.add_argument('--history', type=Path, help='gpq_history.jsonl of a training with GPQHook')
    parser.add_argument('--samples', type=int, help='test samples, evenly spaced; all if not given')
    parser.add_argument(
        '--score-threshold', type=float, default=0.3, help='lowest score of a confident result (default: %(default)s)'
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/queries'), help='folder for table and pictures')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='overrides of all configs'
    )
    return parser.parse_args()


def main() -> None:
    """Parses, runs, prints the table."""
    args = parse_args()
    from mmprune3d.command import NOTHING_KEPT, run_main

    run_main(lambda: run(args), NOTHING_KEPT)


def run(args: argparse.Namespace) -> None:
    """Looks at the detectors."""
    from mmprune3d.files import writable
    from mmprune3d.inspect.gpq import Candidate, run_analysis

    writable(args.out)
    first = Candidate(args.name or args.config.stem, args.config, args.checkpoint)
    candidates = [first, *map(Candidate.parse, args.compare)]
    print(run_analysis(candidates, args.out, args.history, args.samples, args.score_threshold, args.cfg_options))


if __name__ == '__main__':
    main()
