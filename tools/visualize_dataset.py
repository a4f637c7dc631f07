"""Draw a contact sheet of a nuScenes-format data set: cameras with boxes, LiDAR and radar from above.

Example:
    python tools/visualize_dataset.py data/nuscenes-synthetic --out sheet.jpg --count 3
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmprune3d.command import NOTHING_KEPT, run_main
from mmprune3d.files import writable
from mmprune3d.visualization.contact_sheet import CAMERA_WIDTH, save_contact_sheet


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data_root', type=Path, help='folder that holds the tables (v1.0-trainval)')
    parser.add_argument('--out', type=Path, required=True, help='image file, .jpg or .png')
    parser.add_argument('--count', type=int, default=4, help='number of samples, spread over the data set')
    parser.add_argument('--samples', type=int, nargs='+', default=(), help='positions of the samples instead')
    parser.add_argument('--version', default='v1.0-trainval', help='folder with the tables')
    parser.add_argument('--camera-width', type=int, default=CAMERA_WIDTH, help='pixels of each camera image')
    args = parser.parse_args()
    run_main(lambda: run(args), NOTHING_KEPT)


def run(args: argparse.Namespace) -> None:
    """Draw."""
    writable(args.out.parent)
    try:
        drawn = save_contact_sheet(args.data_root, args.out, args.count, args.samples, args.version, args.camera_width)
    except IndexError as error:
        raise ValueError(str(error)) from error
    print(f'{args.out}: samples {", ".join(map(str, drawn))}')


if __name__ == '__main__':
    main()
