"""Over-fits a detector to one real nuScenes frame, then counts the cars that it finds without most of its keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config

from mmprune3d.checkpoint.read import load_weights

from .single_frame import SingleFrame, frame_dataset


def run(
    config_file: Path, folder: Path, checkpoint: str | None, steps: int, lr: float, seed: int, ratios: Sequence[float]
) -> None:
    """Trains, prunes and prints how many cars are found.

    Args:
        config_file: Config of the detector.
        folder: The frame, see `frame_dataset`.
        checkpoint: Weights to start from, a file or an address; None starts from random ones.
        steps: Most training steps.
        lr: Learning rate.
        seed: Seed of the random weights.
        ratios: Shares of the keys that are removed.

    Raises:
        FileNotFoundError: If config, frame or checkpoint is missing.
        ValueError: If the checkpoint does not fit the detector.
    """
    torch.manual_seed(seed)
    config = Config.fromfile(config_file)
    dataset = frame_dataset(config, folder)
    model = MODELS.build(config.model)
    model.init_weights()
    if checkpoint:
        load_weights(model, checkpoint)
    frame = SingleFrame(model, dataset)
    total = len(frame.cars)
    found = frame.overfit(
        steps, lr, lambda step, loss, found: print(f'step {step}: loss {loss:.2f}, {found}/{total} cars')
    )
    print(f'baseline: {found} of {total} cars within 2 m')
    for ratio, count in frame.survivors(tuple(ratios), n=2, k=175).items():
        print(f'{ratio:.1%} of the keys removed: {count} of {total} cars within 2 m')
