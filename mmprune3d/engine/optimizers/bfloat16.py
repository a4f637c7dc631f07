"""Training in bfloat16 where mmengine's AmpOptimWrapper refuses to: on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """An OptimWrapper whose forward passes run under bfloat16 autocast on the device of the model.

    Weights, gradients and optimizer state stay float32, and bfloat16 has the range of float32, so no loss scaling is
    needed. On processors with matrix units for bfloat16 (Intel AMX) convolutions and products train several times
    faster.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast around gradient accumulation's context."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield
