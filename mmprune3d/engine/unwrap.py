"""The model behind its wrapper, and its averaged copies."""

from __future__ import annotations

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """`model` without the wrapper that distributed training puts around it."""
    return model.module if is_model_wrapper(model) else model


def averaged_models(runner: Runner) -> list[nn.Module]:
    """Copies of the model that hooks keep, as EMAHook does."""
    return [hook.ema_model.module for hook in runner.hooks if hasattr(hook, 'ema_model')]
