"""The model behind its wrapper."""

from __future__ import annotations

from mmengine.model import is_model_wrapper
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """`model` without the wrapper that distributed training puts around it."""
    return model.module if is_model_wrapper(model) else model
