"""Weights that were pruned stay exactly zero during training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from mmprune3d.checkpoint.masks import STATE, load_masks, packed_state
from mmprune3d.engine.unwrap import averaged_models, unwrap
from mmprune3d.pruning import checks
from mmprune3d.pruning.masks import apply_masks_, unpack

from .plan_arguments import names_arguments
from .single import check_single


@HOOKS.register_module()
class MaskHook(Hook):
    """Keeps the weights that masks remove at exactly zero, in training, validation and test.

    Gradients are masked as they arrive, so that clipping by norm, momentum and Adam's moments see masked gradients; the
    weights are masked again after every optimizer step, against weight decay and states from before. The averaged
    weights of EMAHook are masked as well. Parameters stay what they are: the state dict has the keys of the unmodified
    detector, and a masked checkpoint is tested and loaded without this hook.

    The masks travel bit-packed in ``checkpoint['mmprune3d']`` and are taken up again when a run is resumed.

    Args:
        masks: Name of a file with masks, written by ``mmprune3d prune``, or of a checkpoint that has masks. None: the
            masks of the checkpoint that is loaded or resumed, or those that the training loop makes (``PruningLoop``).
            Default: None.

    Raises:
        ValueError: If there are no masks when training begins, or they do not fit the model, or the model is sharded.
    """

    # Before EMAHook averages and CheckpointHook saves the weights.
    priority = 'ABOVE_NORMAL'
    holds_weights: ClassVar[bool] = True
    """It holds a model to the masks of one checkpoint: comparisons of several models leave it out."""

    @names_arguments
    def __init__(self, masks: str | Path | None = None) -> None:
        what = "the name of a file with masks, such as 'masks.pth', or None"
        self.path = masks if masks is None else checks.text('MaskHook: masks', _as_text(masks), what)
        self.masks: dict[str, Tensor] | None = None
        self.record: dict[str, Any] = {}
        self._handles: list[Any] = []

    @property
    def prunes_tests(self) -> bool:
        """Whether a model that is tested with this hook is pruned: only if its masks come from a file."""
        return self.path is not None

    def before_run(self, runner: Runner) -> None:
        """Loads the masks of the file, if one is given."""
        check_single(runner, MaskHook, 'mask weights')
        if 'FullyShardedDataParallel' in type(runner.model).__name__:
            raise ValueError(
                'MaskHook: the parameters of FullyShardedDataParallel are pieces; use DistributedDataParallel'
            )
        if self.path is not None:
            self.masks = load_masks(self.path)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Takes the masks of the checkpoint; those of the file have priority, unless a run is resumed."""
        state = checkpoint.get(STATE, {})
        if 'masks' in state and (runner._resume or self.path is None):
            self.masks = unpack(state['masks'])
            self.record = dict(state.get('record', {})) if runner._resume else {}

    def before_train(self, runner: Runner) -> None:
        """Masks the weights and, from now on, the gradients.

        Raises:
            ValueError: If there are no masks and the loop makes none.
        """
        if self.masks is not None:
            self.set_masks(runner, self.masks, self.record)
        elif not getattr(runner.train_loop, 'makes_masks', False):
            raise ValueError(
                'MaskHook: no masks. Give the file that "mmprune3d prune" wrote, '
                "dict(type='MaskHook', masks='masks.pth'), load a checkpoint that has them, or make them with "
                "train_cfg=dict(type='PruningLoop', ...)"
            )

    def set_masks(self, runner: Runner, masks: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Masks the model by `masks` from now on; earlier masks are replaced.

        Args:
            runner: With the model.
            masks: Parameter -> bool, True where a weight stays.
            record: Plain data that go with the masks into checkpoints, and come back in `record` of a resumed run.

        Raises:
            ValueError: If a mask is of an unknown parameter, or has another shape.
        """
        parameters = dict(unwrap(runner.model).named_parameters())
        check_masks(masks, parameters)
        self.masks = {name: mask.to(parameters[name].device) for name, mask in masks.items()}
        self.record = dict(record)
        self.stop()
        for name, mask in self.masks.items():
            # filled rather than multiplied: 0 times an infinite gradient is not 0
            self._handles.append(parameters[name].register_hook(_filler(~mask)))
        self.enforce(runner)

    def enforce(self, runner: Runner) -> None:
        """Sets the weights that the masks remove to zero, in the model and in averaged copies of it."""
        for model in (unwrap(runner.model), *averaged_models(runner)):
            apply_masks_(dict(model.named_parameters()), self.masks or {})

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Masks the weights again, before EMAHook averages them."""
        if self.masks is not None:
            apply_masks_(dict(unwrap(runner.model).named_parameters()), self.masks)

    def before_val_epoch(self, runner: Runner) -> None:
        """Masks the weights, which may have been loaded just for this validation."""
        self.before_test_epoch(runner)

    def before_test_epoch(self, runner: Runner) -> None:
        """Masks the weights, which may have been loaded just for this test."""
        if self.masks is not None:
            check_masks(self.masks, dict(unwrap(runner.model).named_parameters()))
            self.enforce(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Stores the masks, bit-packed, with their record and their plan in the checkpoint."""
        if self.masks is None:
            return
        checkpoint[STATE] = packed_state(self.masks, self.record)
        if 'plan' in self.record:
            plan = self.record['plan']
            checkpoint['meta'].setdefault('mmprune3d', {})[plan['method']] = plan

    def after_train(self, runner: Runner) -> None:
        """Stops masking gradients."""
        self.stop()

    def stop(self) -> None:
        """Removes the hooks that mask gradients."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def check_masks(masks: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    """Raises ValueError if there are no masks, or a mask fits no parameter."""
    if not masks:
        raise ValueError('the masks name no parameter: nothing would be pruned')
    unknown = sorted(set(masks) - set(parameters))
    if unknown:
        raise ValueError(
            f'masks of {len(unknown)} parameters that the model lacks: {", ".join(unknown[:5])}; '
            f'it has, for example, {", ".join(list(parameters)[:3])}. The masks are of another model'
        )
    for name, mask in masks.items():
        if mask.shape != parameters[name].shape:
            raise ValueError(
                f'mask of {name}: shape {list(mask.shape)}, the parameter has {list(parameters[name].shape)}. '
                'The masks are of another model, or of another layout of sparse convolutions'
            )


def _as_text(path: str | Path) -> str:
    return str(path) if isinstance(path, Path) else path


def _filler(removed: Tensor) -> Any:
    return lambda gradient: gradient.masked_fill(removed, 0)
