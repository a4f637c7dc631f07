"""Converts published weights into ours.

    python tools/convert_checkpoint.py petr_vov_800x320.pth petr_ours.pth --from petr-official

petr-official: megvii-research/PETR.  petr-mmdet3d: projects/PETR of mmdetection3d.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    """Parses and converts."""
    from mmprune3d.checkpoint.convert import SOURCES, convert_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', type=Path, help='published checkpoint')
    parser.add_argument('dst', type=Path, help='where to write ours; must not exist')
    parser.add_argument('--from', dest='source', choices=SOURCES, required=True, help='where the checkpoint comes from')
    args = parser.parse_args()
    try:
        convert_file(args.src, args.dst, args.source)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    print(f'wrote {args.dst}')


if __name__ == '__main__':
    main()
