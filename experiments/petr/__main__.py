"""Geometric pre-training of a PETR's position embeddings; see mmprune3d/models/petr/alignment.py.

python tools/align_positions.py configs/petr/petr_tiny.py OUT.pth [--checkpoint START.pth]
"""

from __future__ import annotations

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """The command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path, help='config of a PETR3D detector')
    parser.add_argument('out', type=Path, help='checkpoint to write, for load_from')
    parser.add_argument('--checkpoint', help='start from these weights: a file or an address')
    parser.add_argument('--only', nargs='+', metavar='PREFIX', help='... of which only those whose names begin so')
    parser.add_argument('--data-root', help='instead of the one in the config')
    parser.add_argument('--frames', type=int, default=48, help='training frames that lend cameras and features')
    parser.add_argument('--steps', type=int, default=1500, help='optimizer steps')
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Parses and aligns."""
    args = parse_args()
    from mmprune3d.command import NOTHING_KEPT, run_main

    run_main(lambda: run(args), NOTHING_KEPT)


def run(args: argparse.Namespace) -> None:
    """Loads or initialises the model, aligns it on frames of the training set, saves it."""
    import torch
    from mmengine.config import Config
    from mmengine.runner import Runner
    from mmengine.runner.checkpoint import load_state_dict

    import mmprune3d  # noqa: F401
    from experiments.petr.alignment import align
    from mmprune3d.checkpoint.read import read_checkpoint
    from mmprune3d.files import save_checkpoint, writable
    from mmprune3d.ops.cameras import lidar2img_of

    writable(args.out.parent)
    start = read_checkpoint(args.checkpoint) if args.checkpoint else {}
    config = Config.fromfile(args.config)
    config.update(work_dir=str(args.out.parent), randomness=dict(seed=args.seed))
    config.train_dataloader.update(batch_size=1, num_workers=0, persistent_workers=False)
    if args.data_root:
        config.train_dataloader.dataset.data_root = args.data_root
    runner = Runner.from_cfg(config)
    runner.model.init_weights()
    if args.checkpoint:
        weights = start['state_dict']
        prefixes = tuple(args.only or [''])
        load_state_dict(runner.model, {name: value for name, value in weights.items() if name.startswith(prefixes)})
    model, matrices, features = runner.model.eval(), [], []
    loader = iter(runner.build_dataloader(config.train_dataloader))
    with torch.no_grad():
        for _ in range(args.frames):
            data = model.data_preprocessor(next(loader), False)
            levels = model.extract_feat(data['inputs']['imgs'])
            features.append(model.pts_bbox_head.input_proj(levels[0].flatten(0, 1)))
            meta = data['data_samples'][0].metainfo
            matrices.append(torch.as_tensor(lidar2img_of(meta), dtype=torch.float32))
    canvas = tuple(data['inputs']['imgs'].shape[-2:])
    align(model.pts_bbox_head, torch.stack(matrices), torch.stack(features), canvas, args.steps)
    save_checkpoint({'state_dict': model.state_dict(), 'meta': {}}, args.out)


if __name__ == '__main__':
    main()
