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
    import mmprune3d  # noqa: F401, for the allow-list of mmengine's checkpoints
    from mmprune3d.checkpoint.publish import publish

    try:
        publish(args.source, args.target)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f'error: {error}') from error
    print(f'{args.target}: {args.target.stat().st_size / 2**20:.1f} MiB')


if __name__ == '__main__':
    main()
