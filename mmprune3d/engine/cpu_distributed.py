"""Several processes on a machine without CUDA, where mmengine's launcher asks for a GPU of each."""

from __future__ import annotations

import atexit
import os

import torch
from torch import distributed


def join_gloo_group() -> bool:
    """Joins the process group that `torchrun` describes in the environment, by gloo, if there is no CUDA.

    mmengine skips its own initialisation, which would set CUDA devices, when a group exists. The model wrapper then
    has to leave devices alone too: `model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None)`.

    Returns:
        Whether a group was joined: False outside `torchrun`, with CUDA, or in a group already.
    """
    launched = {'RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'} <= os.environ.keys()
    if not launched or torch.cuda.is_available() or distributed.is_initialized():
        return False
    distributed.init_process_group('gloo')
    atexit.register(leave_group)
    return True


def leave_group() -> None:
    """Leaves the process group, if there still is one: gloo threads that outlive the interpreter abort the process."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
