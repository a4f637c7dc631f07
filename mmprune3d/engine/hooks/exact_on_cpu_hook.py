"""Detectors of others, runnable and exact where there is no GPU."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmprune3d.adapters.dynamic_voxels import make_cpu_ready
from mmprune3d.engine.unwrap import unwrap

from .plan_arguments import names_arguments


@HOOKS.register_module()
class ExactOnCPUHook(Hook):
    """Replaces sparse convolutions and dynamic voxels of a detector by exact ones on a CPU; on a GPU nothing changes.

    spconv loses rows on a CPU with several threads and cannot train there, and mmcv's scatter has no CPU version: with
    this hook configs of mmdet3d such as MVX-Net or CenterPoint train and test without a GPU. Parameters and checkpoints
    stay as they are.

    Raises:
        ValueError: If the detector has nothing of that kind, or layers of spconv without an exact version.
    """

    priority = 'VERY_HIGH'

    @names_arguments
    def __init__(self) -> None:
        pass

    def before_run(self, runner: Runner) -> None:
        """Changes the classes of the modules, in place."""
        changed = make_cpu_ready(unwrap(runner.model))
        if not changed:
            raise ValueError(
                'ExactOnCPUHook: the model has no sparse convolution of spconv and no dynamic voxels (or they are '
                'exact already, as those of BEVFusion3D): leave the hook out'
            )
        runner.logger.info(f'{changed} modules compute exactly on a CPU now')
