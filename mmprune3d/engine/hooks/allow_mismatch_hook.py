"""Leaves weights of other shapes out of a checkpoint, for fine-tuning a model with another head."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmprune3d.engine.unwrap import unwrap
from mmprune3d.pruning import checks

from .plan_arguments import names_arguments


@HOOKS.register_module()
class AllowShapeMismatchHook(Hook):
    """Lets the weights under some names keep their initial values where the checkpoint has another shape.

    mmprune3d refuses checkpoints with tensors of other shapes. A classification layer for other classes is the one good
    reason for them, and this hook says so in the config. Weights that fit are always loaded, so that the hook may stay
    in the config for resuming and for testing.

    Args:
        prefixes: Beginnings of the names concerned, for example ``['pts_bbox_head.cls_branches']``.

    Raises:
        ValueError: If `prefixes` is not a list of names, or if one of them matches nothing in the checkpoint.
    """

    # Before EMAHook, which loads the same weights into its copy of the model.
    priority = 'VERY_HIGH'

    @names_arguments
    def __init__(self, prefixes: Sequence[str]) -> None:
        what = "a list of beginnings of names, such as ['bbox_head.fc_cls']"
        self.prefixes = checks.texts('AllowShapeMismatchHook: prefixes', prefixes, what)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Drops the weights that do not fit; `checkpoint` is changed in place."""
        weights = checkpoint.get('state_dict', checkpoint)
        shapes = {name: tensor.shape for name, tensor in unwrap(runner.model).state_dict().items()}
        for prefix in self.prefixes:
            concerned = [name for name in weights if name.startswith(prefix)]
            if not concerned:
                begins = sorted({'.'.join(name.split('.')[:2]) for name in weights})
                raise ValueError(f'no weight of the checkpoint begins with {prefix!r}; its names begin with {begins}')
            dropped = [name for name in concerned if name in shapes and weights[name].shape != shapes[name]]
            for name in dropped:
                del weights[name]
            runner.logger.info(
                f'{prefix}: {len(dropped)} of {len(concerned)} weights have other shapes, left as they are'
            )
