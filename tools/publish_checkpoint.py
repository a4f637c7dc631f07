"""Writes a training checkpoint as a small one: float16 weights, no optimizer, no logs.

python tools/publish_checkpoint.py work_dirs/petr_tiny/epoch_8.pth configs/petr/petr_tiny.pth
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    """Parses and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='a checkpoint written in training: a file or an address')
    parser.add_argument('target', type=Path, help='the file to write')
    args = parser.parse_args()
    from mmprune3d.command import NOTHING_KEPT, run_main

    run_main(lambda: run(args), NOTHING_KEPT)


def run(args: argparse.Namespace) -> None:
    """Writes the small checkpoint."""
    from mmprune3d.checkpoint.publish import publish
    from mmprune3d.files import writable

    writable(args.target.parent)
    publish(args.source, args.target)
    print(f'{args.target}: {args.target.stat().st_size / 2**20:.1f} MiB')


if __name__ == '__main__':
    main()
