"""Generate a synthetic data set in the nuScenes format, complete with tables, sensor files and mmdet3d info files.

Example:
    python tools/synthesize_nuscenes.py data/nuscenes-synthetic --train-scenes 20 --val-scenes 5 --workers 2
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmprune3d.datasets.synthetic.config import MODALITIES, GeneratorConfig
from mmprune3d.datasets.synthetic.generate import generate


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, help='folder of the data set; it appears when everything is complete')
    parser.add_argument('--train-scenes', type=int, default=10, help='scenes with official training names, 0 to 700')
    parser.add_argument('--val-scenes', type=int, default=2, help='scenes with official validation names, 0 to 150')
    parser.add_argument('--samples-per-scene', type=int, default=40, help='keyframes per scene at 2 Hz, 1 to 40')
    parser.add_argument('--image-size', type=int, nargs=2, default=(704, 256), metavar=('WIDTH', 'HEIGHT'))
    parser.add_argument('--seed', type=int, default=0, help='the same seed gives the same bytes')
    parser.add_argument('--workers', type=int, default=1, help='processes; the result does not depend on it')
    parser.add_argument(
        '--sweeps', type=int, default=0, help='recordings between keyframes, 0 to 9 (4: 10 Hz, 9: 20 Hz)'
    )
    parser.add_argument('--sweep-sensors', nargs='+', default=['lidar'], choices=MODALITIES, help='what records sweeps')
    parser.add_argument('--sensors', nargs='+', default=list(MODALITIES), choices=MODALITIES, help='what to record')
    parser.add_argument('--no-infos', action='store_true', help="leave out mmdet3d's info files")
    parser.add_argument('--overwrite', action='store_true', help='replace the folder if it exists')
    parser.add_argument('--benchmark', action='store_true', help='print samples per second')
    parser.add_argument('--quiet', action='store_true', help='no progress bar')
    return parser.parse_args()


def main() -> None:
    """Read the command line and generate."""
    args = parse_args()
    from mmprune3d.command import NOTHING_KEPT, run_main

    run_main(lambda: run(args), NOTHING_KEPT)


def run(args: argparse.Namespace) -> None:
    """Generate the data set and say what is in it."""
    from mmprune3d.files import writable

    config = GeneratorConfig(
        out=args.out,
        train_scenes=args.train_scenes,
        val_scenes=args.val_scenes,
        samples_per_scene=args.samples_per_scene,
        image_size=tuple(args.image_size),
        seed=args.seed,
        workers=args.workers,
        sweeps=args.sweeps,
        sweep_sensors=tuple(args.sweep_sensors),
        sensors=tuple(args.sensors),
        infos=not args.no_infos,
        overwrite=args.overwrite,
    )
    writable(args.out.parent)
    report = generate(config, progress=not args.quiet)
    print(f'{args.out}: {report.samples} samples')
    for category, count in report.annotations.items():
        print(f'  {count:8d}  {category}')
    if args.benchmark:
        print(f'{report.samples_per_second:.2f} samples/s with {args.workers} worker(s), {report.seconds:.1f} s in all')


if __name__ == '__main__':
    main()
