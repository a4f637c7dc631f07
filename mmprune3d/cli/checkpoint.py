"""``mmprune3d checkpoint``: convert, join, publish and describe checkpoint files."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import common

HELP = 'convert, join, publish or describe checkpoint files'
EPILOG = """
example:
  mmprune3d checkpoint info work_dirs/petr_tiny/epoch_8.pth
"""
A_FILE = 'a file or an address'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``mmprune3d checkpoint`` to its parser."""
    common.add_commands(parser, {'convert': CONVERT, 'fuse': FUSE, 'publish': PUBLISH, 'info': INFO})


def run(args: argparse.Namespace) -> int:
    """Prints the help: one of the commands below it is needed."""
    return common.print_help(args)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('src', metavar='SRC', help=f'published checkpoint: {A_FILE}')
    parser.add_argument('dst', metavar='DST', type=Path, help='the file to write; must not exist')
    parser.add_argument('--from', '--source', dest='source', metavar='SOURCE', required=True, help='where SRC is from')


def convert(args: argparse.Namespace) -> None:
    """Converts a published checkpoint."""
    from mmprune3d.checkpoint.convert import ALL_SOURCES, convert_file
    from mmprune3d.files import writable

    if args.source not in ALL_SOURCES:
        raise ValueError(f'--from {args.source}: valid are {", ".join(ALL_SOURCES)}')
    writable(args.dst.parent)
    convert_file(args.src, args.dst, args.source)
    print(f'wrote {args.dst}')


CONVERT = common.Command(
    HELP='convert published weights so that they load into the detectors of mmprune3d',
    EPILOG="""
sources:
  petr-official   megvii-research/PETR
  petr-mmdet3d    projects/PETR of mmdetection3d
  bevfusion-mit   mit-han-lab/bevfusion (checkpoints of mmdetection3d's projects/BEVFusion need no conversion)
  sst-0.15        tusen-ai/SST on mmdetection3d 0.15, with a centre head or an anchor head

examples:
  mmprune3d checkpoint convert petr_vov_800x320.pth petr_ours.pth --from petr-official
  mmprune3d checkpoint convert bevfusion-det.pth bevfusion_ours.pth --from bevfusion-mit
""",
    add_arguments=_add_convert,
    run=convert,
)


def _add_fuse(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('camera', metavar='CAMERA_CHECKPOINT', help=f'checkpoint of the camera detector: {A_FILE}')
    parser.add_argument('lidar', metavar='LIDAR_CHECKPOINT', help=f'checkpoint of the LiDAR detector: {A_FILE}')
    parser.add_argument('out', metavar='OUT', type=Path, help='the file to write; must not exist')


def fuse(args: argparse.Namespace) -> None:
    """Reads two checkpoints, writes one."""
    from mmprune3d.checkpoint.fuse import fuse_checkpoints
    from mmprune3d.checkpoint.read import read_checkpoint
    from mmprune3d.files import save_checkpoint, writable

    common.check_target(args.out, args.camera, args.lidar, new=True)
    writable(args.out.parent)
    fused = fuse_checkpoints(read_checkpoint(args.camera), read_checkpoint(args.lidar))
    save_checkpoint(fused, args.out)
    print(f'{args.out}: {len(fused["state_dict"])} tensors')


FUSE = common.Command(
    HELP='join a camera detector and a LiDAR detector: what the training of a fusion model starts from',
    EPILOG="""
The camera stream is taken from the first checkpoint; everything else, also the backbone, neck and head behind the
fusion, from the second one.

example:
  mmprune3d checkpoint fuse camera.pth lidar.pth work_dirs/fused.pth
""",
    add_arguments=_add_fuse,
    run=fuse,
)


def _add_publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('source', metavar='SRC', help=f'a checkpoint that a training wrote: {A_FILE}')
    parser.add_argument('target', metavar='DST', type=Path, help='the file to write; must not exist')


def publish(args: argparse.Namespace) -> None:
    """Writes the small checkpoint."""
    from mmprune3d.checkpoint.publish import publish as write_published
    from mmprune3d.files import writable

    common.check_target(args.target, args.source, new=True)
    writable(args.target.parent)
    write_published(args.source, args.target)
    print(f'{args.target}: {args.target.stat().st_size / 2**20:.1f} MiB')


PUBLISH = common.Command(
    HELP='make a training checkpoint small enough to hand out: float16 weights, no optimizer, no logs',
    EPILOG="""
example:
  mmprune3d checkpoint publish work_dirs/petr_tiny/epoch_8.pth petr_tiny.pth
""",
    add_arguments=_add_publish,
    run=publish,
)


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('source', metavar='CHECKPOINT', help=A_FILE)
    parser.add_argument('--json', action='store_true', help='print JSON instead of text')
    parser.add_argument('--tensors', action='store_true', help='list the tensors, with shapes and types, as well')


def info(args: argparse.Namespace) -> None:
    """Describes a checkpoint."""
    import json

    from mmprune3d.checkpoint.info import describe, text

    found = describe(args.source, tensors=args.tensors)
    print(json.dumps(found, indent=2) if args.json else text(found))


INFO = common.Command(
    HELP='say what a checkpoint holds; nothing in the file is run',
    EPILOG="""
Shows the framework that wrote it, epochs and iterations, tensors and parameters by type, and what mmprune3d stored:
plans, masks, removed channels, removed queries.

example:
  mmprune3d checkpoint info work_dirs/petr_tiny/epoch_8.pth
""",
    add_arguments=_add_info,
    run=info,
)
