"""Detectors of the shipped configs: with random weights for benchmarks, or with weights of a checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

import mmprune3d.models  # noqa: F401
from mmprune3d.checkpoint.read import load_weights
from mmprune3d.engine.batches import draw

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'


def build(model: Config) -> nn.Module:
    """A detector in evaluation mode, with random weights that do not depend on what was drawn before.

    Args:
        model: The section `model` of a config; it is not changed.
    """
    init_default_scope('mmdet3d')
    torch.manual_seed(0)
    return MODELS.build(copy.deepcopy(model)).eval()


def load(config: Config, checkpoint: Path) -> nn.Module:
    """The detector of a config with the weights of a checkpoint."""
    init_default_scope(config.get('default_scope') or 'mmengine')
    model = MODELS.build(copy.deepcopy(config.model))
    load_weights(model, checkpoint)
    return model


def training_batches(config: Config, count: int, seed: int) -> list[Any]:
    """`count` batches of the training set, as the loader yields them.

    Args:
        config: Config with a training set.
        count: How many.
        seed: Decides which ones.
    """
    return draw(Runner.build_dataloader(config.train_dataloader, seed=seed), count, seed)
