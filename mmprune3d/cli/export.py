"""Export PETR's head and decoder, pruned or not, for ONNX Runtime and TensorRT.

    python tools/export_onnx.py CONFIG CHECKPOINT --out head.onnx --tggbc r=3000,n=2,k=175

Image features and camera matrices go in, class logits and box codes come out; all shapes are fixed. The file is written
if ONNX Runtime computes with it what PyTorch does and keeps the same keys.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """The command line; see --help."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path, help='config of the detector, as for mmdet3d tools/test.py')
    parser.add_argument('checkpoint', help='its checkpoint: a file or an address')
    parser.add_argument('--out', type=Path, default=Path('head.onnx'), help='the file to write')
    parser.add_argument(
        '--tggbc', metavar='r=R,n=N,k=K', help="remove R keys over N layers, by K queries; default: the config's hook"
    )
    parser.add_argument(
        '--image-size', nargs=2, type=int, metavar=('H', 'W'), help='pixels; default: as in the test pipeline'
    )
    parser.add_argument('--cameras', type=int, help='images per sample; default: as in the test pipeline')
    parser.add_argument('--batch', type=int, default=1, help='samples per run')
    parser.add_argument(
        '--split-topk', action='store_true', help='split a TopK above 3840, the most that TensorRT takes'
    )
    parser.add_argument(
        '--check', action=argparse.BooleanOptionalAction, default=True, help='compare with PyTorch first'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='overrides of the config'
    )
    return parser.parse_args()


def main() -> None:
    """Parses and exports."""
    args = parse_args()
    from mmprune3d.command import NOTHING_KEPT, run_main

    run_main(lambda: run(args), NOTHING_KEPT)


def run(args: argparse.Namespace) -> None:
    """Exports."""
    from mmprune3d.export.graph import TENSORRT_TOPK
    from mmprune3d.export.onnx import run_export
    from mmprune3d.files import writable
    from mmprune3d.pruning.key_plan import TgGBCPlan

    writable(args.out.parent)
    run_export(
        args.config,
        args.checkpoint,
        args.out,
        plan=None if args.tggbc is None else TgGBCPlan.parse(args.tggbc),
        overrides=args.cfg_options,
        image_size=args.image_size and tuple(args.image_size),
        cameras=args.cameras,
        batch=args.batch,
        largest_topk=TENSORRT_TOPK if args.split_topk else None,
        check=args.check,
    )


if __name__ == '__main__':
    main()
