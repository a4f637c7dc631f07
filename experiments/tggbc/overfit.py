"""Over-fits a detector on one real nuScenes frame, then counts the cars that survive key pruning.

python tools/overfit_frame.py configs/petr/petr_tiny.py FRAME_FOLDER [--checkpoint configs/petr/petr_tiny.pth]
"""

from __future__ import annotations

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """The command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path, help='config of the detector')
    parser.add_argument('frame', type=Path, help='folder with infos.pkl and the images it names')
    parser.add_argument('--checkpoint', help='start from these weights: a file or an address')
    parser.add_argument('--steps', type=int, default=600, help='at most so many training steps')
    parser.add_argument('--lr', type=float, default=2e-4)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--ratios', type=float, nargs='+', default=[0.5, 0.7, 0.875], help='shares of keys to remove')
    return parser.parse_args()


def main() -> None:
    """Parses and runs."""
    args = parse_args()
    from mmprune3d.command import NOTHING_KEPT, run_main

    run_main(lambda: run(args), NOTHING_KEPT)


def run(args: argparse.Namespace) -> None:
    """Trains, prunes, prints."""
    import torch
    from mmdet3d.registry import MODELS
    from mmengine.config import Config

    from experiments.tggbc.single_frame import SingleFrame, frame_dataset
    from mmprune3d.checkpoint.read import load_weights

    torch.manual_seed(args.seed)
    config = Config.fromfile(args.config)
    dataset = frame_dataset(config, args.frame)
    model = MODELS.build(config.model)
    model.init_weights()
    if args.checkpoint:
        try:
            load_weights(model, args.checkpoint)
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(f'error: {error}') from error
    frame = SingleFrame(model, dataset)
    total = len(frame.cars)
    found = frame.overfit(args.steps, args.lr, lambda s, loss, n: print(f'step {s}: loss {loss:.2f}, {n}/{total} cars'))
    print(f'baseline: {found} of {total} cars within 2 m')
    for ratio, count in frame.survivors(tuple(args.ratios), n=2, k=175).items():
        print(f'{ratio:.1%} of the keys removed: {count} of {total} cars within 2 m')


if __name__ == '__main__':
    main()
