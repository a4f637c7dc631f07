"""``mmprune3d synth``: generate and look at synthetic data sets in the nuScenes format."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import common
from .common import whole

HELP = 'generate driving scenes in the nuScenes format, or draw a data set'
EPILOG = """
example:
  mmprune3d synth make data/nuscenes-synthetic --train-scenes 20 --val-scenes 5 --workers 2
"""
SENSORS = ('camera', 'lidar', 'radar')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``mmprune3d synth`` to its parser."""
    common.add_commands(parser, {'make': MAKE, 'show': SHOW})


def run(args: argparse.Namespace) -> int:
    """Prints the help: one of the commands below it is needed."""
    return common.print_help(args)


def _add_make(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('out', metavar='OUT', type=Path, help='folder of the data set; it appears when everything is complete')
    add('--train-scenes', metavar='N', type=int, default=10, help='training scenes, 0 to 700 (default: 10)')
    add('--val-scenes', metavar='N', type=int, default=2, help='validation scenes, 0 to 150 (default: 2)')
    add('--samples-per-scene', metavar='N', type=int, default=40, help='keyframes at 2 Hz, 1 to 40 (default: 40)')
    add('--image-size', type=int, nargs=2, default=(704, 256), metavar=('W', 'H'), help='pixels (default: 704 256)')
    add('--seed', metavar='N', type=int, default=0, help='the same seed gives the same bytes')
    add('--workers', metavar='N', type=int, default=1, help='processes; the result does not depend on it')
    add('--sweeps', metavar='N', type=int, default=0, help='recordings between keyframes, 0 to 9 (4: 10 Hz, 9: 20 Hz)')
    names = f'of {", ".join(SENSORS)}'
    add('--sweep-sensors', nargs='+', default=['lidar'], choices=SENSORS, metavar='NAME', help=f'for sweeps, {names}')
    add('--sensors', nargs='+', default=list(SENSORS), choices=SENSORS, metavar='NAME', help=names)
    add('--no-infos', action='store_true', help="leave out mmdet3d's info files")
    add('--overwrite', action='store_true', help='replace the folder if it exists')
    add('--benchmark', action='store_true', help='print samples per second')
    add('--quiet', action='store_true', help='no progress bar')


def make(args: argparse.Namespace) -> None:
    """Generates the data set and says what is in it."""
    from mmprune3d.datasets.synthetic.config import GeneratorConfig
    from mmprune3d.datasets.synthetic.generate import generate
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


MAKE = common.Command(
    HELP="generate a data set: tables, sensor files and mmdet3d's info files",
    EPILOG="""
example:
  mmprune3d synth make data/nuscenes-synthetic --train-scenes 20 --val-scenes 5 --workers 2
""",
    add_arguments=_add_make,
    run=make,
)


def _add_show(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('data_root', metavar='FOLDER', type=Path, help='folder of the data set; it holds the tables (v1.0-trainval)')
    add('--out', metavar='PATH', type=Path, required=True, help='picture to write, .jpg or .png')
    add('--samples', metavar='N', type=whole(1), default=4, help='samples, spread over the data set (default: 4)')
    add(
        '--draw',
        metavar='INDEX',
        type=whole(0),
        nargs='+',
        default=(),
        help='these samples instead, by their number',
    )
    add('--version', default='v1.0-trainval', help='folder with the tables (default: v1.0-trainval)')
    add(
        '--camera-width',
        metavar='N',
        type=whole(1),
        default=None,
        help='pixels of each camera image (default: 560)',
    )


def show(args: argparse.Namespace) -> None:
    """Draws the contact sheet."""
    from mmprune3d.files import writable
    from mmprune3d.visualization.contact_sheet import CAMERA_WIDTH, save_contact_sheet

    common.check_target(args.out)
    writable(args.out.parent)
    width = CAMERA_WIDTH if args.camera_width is None else args.camera_width
    try:
        drawn = save_contact_sheet(args.data_root, args.out, args.samples, args.draw, args.version, width)
    except IndexError as error:
        raise ValueError(str(error)) from error
    print(f'{args.out}: samples {", ".join(map(str, drawn))}')


SHOW = common.Command(
    HELP='draw samples of a data set in the nuScenes format: cameras with boxes, LiDAR and radar from above',
    EPILOG="""
example:
  mmprune3d synth show data/nuscenes-synthetic --out sheet.jpg --samples 3
""",
    add_arguments=_add_show,
    run=show,
)
