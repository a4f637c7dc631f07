"""``mmprune3d export``: detectors for other runtimes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import common
from .common import whole

if TYPE_CHECKING:
    from mmprune3d.pruning.tggbc import TgGBCPlan

HELP = 'export a detector, pruned or not, for ONNX Runtime and TensorRT'
EPILOG = """
example:
  mmprune3d export onnx CONFIG CHECKPOINT tggbc r=3000 n=2 --out head.onnx
"""
METHODS = ('tggbc',)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``mmprune3d export`` to its parser."""
    common.add_commands(parser, {'onnx': ONNX})


def run(args: argparse.Namespace) -> int:
    """Prints the help: one of the commands below it is needed."""
    return common.print_help(args)


def _add_onnx(parser: argparse.ArgumentParser) -> None:
    common.add_model(parser)
    common.add_words(parser, 'METHOD KEY=VALUE', "tggbc r=R n=N k=K (default: as the config's hook prunes, if any)")
    common.add_out(parser, 'head.onnx', 'the file to write')
    add = parser.add_argument
    add(
        '--image-size',
        nargs=2,
        type=whole(1),
        metavar=('H', 'W'),
        help='pixels (default: as in the test pipeline)',
    )
    add('--cameras', metavar='N', type=whole(1), help='images per sample (default: as in the test pipeline)')
    add('--batch', metavar='N', type=whole(1), default=1, help='samples per run (default: 1)')
    add('--split-topk', action='store_true', help='split every TopK above 3840, the largest that TensorRT takes')
    add('--no-check', action='store_true', help='do not compare ONNX Runtime with PyTorch before writing')
    common.add_overrides(parser)


def onnx(args: argparse.Namespace) -> None:
    """Exports PETR's head and decoder."""
    from mmprune3d.export.graph import TENSORRT_TOPK
    from mmprune3d.export.onnx import run_export
    from mmprune3d.files import writable

    plan = read_plan(args.words)
    common.check_target(args.out, args.config, args.checkpoint)
    writable(args.out.parent)
    run_export(
        args.config,
        args.checkpoint,
        args.out,
        plan=plan,
        overrides=args.cfg_options,
        image_size=args.image_size and tuple(args.image_size),
        cameras=args.cameras,
        batch=args.batch,
        largest_topk=TENSORRT_TOPK if args.split_topk else None,
        check=not args.no_check,
    )


def read_plan(words: Sequence[str]) -> TgGBCPlan | None:
    """The plan of the command line, or None if no method is named.

    Raises:
        ValueError: If a method cannot be exported, or a setting is invalid.
    """
    from mmprune3d.pruning.tggbc import TgGBCPlan

    found = common.methods(words, METHODS)
    return TgGBCPlan.parse(','.join(found['tggbc'])) if found else None


ONNX = common.Command(
    HELP="export PETR's head and decoder as an ONNX file",
    EPILOG="""
Image features and camera matrices go in, class logits and box codes come out; all shapes are fixed. The file is
written only if ONNX Runtime computes what PyTorch does and keeps the same keys.

example:
  mmprune3d export onnx CONFIG CHECKPOINT tggbc r=3000 n=2 k=175 --out head.onnx
""",
    add_arguments=_add_onnx,
    run=onnx,
)
