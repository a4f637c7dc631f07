"""Weights from which a training of PETR starts: random or given ones, with aligned position embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_state_dict
from torch import Tensor, nn

import mmprune3d  # noqa: F401
from mmprune3d.checkpoint.read import read_checkpoint
from mmprune3d.files import save_checkpoint, writable
from mmprune3d.ops.cameras import lidar2img_of

from .alignment import align


def aligned_detector(
    config_file: Path,
    out: Path,
    frames: int,
    steps: int,
    seed: int = 0,
    data_root: str | None = None,
    checkpoint: str | None = None,
    only: Sequence[str] | None = None,
) -> None:
    """Initialises a detector, aligns it on frames of the training set and writes its weights.

    Args:
        config_file: Config of a PETR3D detector.
        out: Checkpoint to write.
        frames: Training frames whose cameras and features are used.
        steps: Optimizer steps.
        seed: Seed of weights, frames and points.
        data_root: Data set to use instead of the one in the config.
        checkpoint: Weights to start from, a file or an address; None starts from random ones.
        only: Prefixes of the names of the weights that are taken from `checkpoint`; None takes all.

    Raises:
        OSError: If `out` cannot be written, or config or checkpoint is missing.
        ValueError: If the checkpoint cannot be read.
    """
    writable(out.parent)
    start = read_checkpoint(checkpoint)['state_dict'] if checkpoint else {}
    config = Config.fromfile(config_file)
    config.update(work_dir=str(out.parent), randomness=dict(seed=seed))
    config.train_dataloader.update(batch_size=1, num_workers=0, persistent_workers=False)
    if data_root:
        config.train_dataloader.dataset.data_root = data_root
    runner = Runner.from_cfg(config)
    runner.model.init_weights()
    if start:
        prefixes = tuple(only or [''])
        load_state_dict(runner.model, {name: value for name, value in start.items() if name.startswith(prefixes)})
    model = runner.model.eval()
    matrices, features, canvas = seen_frames(model, runner.build_dataloader(config.train_dataloader), frames)
    align(model.pts_bbox_head, matrices, features, canvas, steps)
    save_checkpoint({'state_dict': model.state_dict(), 'meta': {}}, out)


@torch.no_grad()
def seen_frames(model: nn.Module, loader: Sequence, frames: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Cameras and image features of the first frames of a loader.

    Args:
        model: A PETR3D.
        loader: Loader with a batch size of 1.
        frames: How many.

    Returns:
        Projections [F, cameras, 4, 4] from the LiDAR's frame to the images, projected features [F, cameras, C, H, W],
        and (height, width) of the padded images in pixels.
    """
    matrices, features, batches = [], [], iter(loader)
    for _ in range(frames):
        data = model.data_preprocessor(next(batches), False)
        levels = model.extract_feat(data['inputs']['imgs'])
        features.append(model.pts_bbox_head.input_proj(levels[0].flatten(0, 1)))
        meta = data['data_samples'][0].metainfo
        matrices.append(torch.as_tensor(lidar2img_of(meta), dtype=torch.float32))
    return torch.stack(matrices), torch.stack(features), tuple(data['inputs']['imgs'].shape[-2:])
