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
    """Reads two files, writes one."""
    args = parse_args()
    import torch

    import mmprune3d  # noqa: F401  (its allow-list is what loads training checkpoints)
    from mmprune3d.checkpoint.fuse import fuse_checkpoints
    from mmprune3d.checkpoint.read import read_checkpoint

    try:
        fused = fuse_checkpoints(read_checkpoint(args.camera), read_checkpoint(args.lidar))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f'error: {error}') from error
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(fused, args.out)
    print(f'{args.out}: {len(fused["state_dict"])} tensors')


if __name__ == '__main__':
    main()
