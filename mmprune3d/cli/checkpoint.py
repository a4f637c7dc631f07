"""Converts published weights into ours.

    python tools/convert_checkpoint.py petr_vov_800x320.pth petr_ours.pth --from petr-official
    python tools/convert_checkpoint.py bevfusion-det.pth bevfusion_ours.pth --from bevfusion-mit
    python tools/convert_checkpoint.py sst_waymo.pth sst_ours.pth --from sst-0.15

petr-official: megvii-research/PETR.  petr-mmdet3d: projects/PETR of mmdetection3d.
bevfusion-mit: detectors of mit-han-lab/bevfusion. Those of mmdetection3d's projects/BEVFusion need no conversion.
sst-0.15: tusen-ai/SST on mmdetection3d 0.15, with a centre head or an anchor head.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    """Parses and converts."""
    from mmprune3d.checkpoint.convert import ALL_SOURCES
    from mmprune3d.command import NOTHING_KEPT, run_main

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', help='published checkpoint: a file or an address')
    parser.add_argument('dst', type=Path, help='where to write ours; must not exist')
    parser.add_argument(
        '--from', '--source', dest='source', choices=ALL_SOURCES, required=True, help='where the checkpoint comes from'
    )
    args = parser.parse_args()
    run_main(lambda: run(args), NOTHING_KEPT)


def run(args: argparse.Namespace) -> None:
    """Converts."""
    from mmprune3d.checkpoint.convert import convert_file
    from mmprune3d.files import writable

    writable(args.dst.parent)
    convert_file(args.src, args.dst, args.source)
    print(f'wrote {args.dst}')


if __name__ == '__main__':
    main()
