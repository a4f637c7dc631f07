"""Put the camera stream of one checkpoint and a LiDAR detector together: what a fusion model starts from.

    python tools/fuse_checkpoints.py CAMERA_CHECKPOINT LIDAR_CHECKPOINT OUT

Backbone, neck and head behind the fusion are those of the LiDAR detector.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """The command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('camera', help='checkpoint of the camera detector: a file or an address')
    parser.add_argument('lidar', help='checkpoint of the LiDAR detector, likewise')
    parser.add_argument('out', type=Path, help='where to write')
    return parser.parse_args()


def main() -> None:
    """Parses and fuses."""
    args = parse_args()
    from mmprune3d.command import NOTHING_KEPT, run_main

    run_main(lambda: run(args), NOTHING_KEPT)


def run(args: argparse.Namespace) -> None:
    """Reads two files, writes one."""
    from mmprune3d.checkpoint.fuse import fuse_checkpoints
    from mmprune3d.checkpoint.read import read_checkpoint
    from mmprune3d.files import save_checkpoint, writable

    writable(args.out.parent)
    fused = fuse_checkpoints(read_checkpoint(args.camera), read_checkpoint(args.lidar))
    save_checkpoint(fused, args.out)
    print(f'{args.out}: {len(fused["state_dict"])} tensors')


if __name__ == '__main__':
    main()
