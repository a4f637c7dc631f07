"""Score, prune and fine-tune in one training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mmprune3d import files
from mmprune3d.adapters.fusion import parameter_groups, prunable
from mmprune3d.engine.batches import CachedBatches, draw, seeded
from mmprune3d.engine.criteria import batches_needed, choose_masks, keep_report, keep_table, make_masks, score_model
from mmprune3d.engine.hooks.mask_hook import MaskHook
from mmprune3d.engine.recalibration import recalibrate
from mmprune3d.engine.unwrap import averaged_models, unwrap
from mmprune3d.pruning.altermoma import WeightPlan
from mmprune3d.pruning.saliency import magnitude

from .settings import PruningSettings

REPORT = 'keep_rates.json'
"""File in the work folder that says how many weights were kept."""
PRUNED = 'pruned.pth'
"""Checkpoint in the work folder from right after pruning, before fine-tuning."""
REWIND = 'rewind.pth'
"""Weights in the work folder that IMP goes back to."""


class _PrunesFirst:
    """What the two loops have in common: pruning is the first thing that they do, unless a resumed run has done it.

    All processes find the same masks; :class:`MaskHook` applies them from then on, and stores them in checkpoints. A
    run that is killed before there is a checkpoint begins anew and finds the same masks, because these depend on
    weights, data and seed only.
    """

    makes_masks = True
    _of_loop: ClassVar[tuple[str, ...]]
    """Settings of mmengine's loop; the first is the length of the training, which must be given."""
    _length: ClassVar[str]
    """The length of the training in the other loop, which this one does not have."""

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, **settings: Any) -> None:
        of_loop = {name: settings.pop(name) for name in self._of_loop if name in settings}
        if self._length in settings:
            raise ValueError(f'{type(self).__name__}: unknown setting {self._length}; its length is {self._of_loop[0]}')
        if self._of_loop[0] not in of_loop:
            raise ValueError(f'{type(self).__name__}: {self._of_loop[0]}, the length of the training, is missing')
        self.settings = PruningSettings.from_dict(settings)
        super().__init__(runner, dataloader, **of_loop)
        self.mask_hook = _mask_hook(runner)

    def run(self) -> Any:
        """Checks what was loaded and whether the settings fit the model, then trains."""
        _check_loaded(self.runner)
        self._rehearse()
        return super().run()

    def _rehearse(self) -> None:
        """Finds before the first batch what would stop a round of IMP that comes after epochs of training.

        Raises:
            ValueError: If the map does not fit the model, or protected parts and `min_keep` leave too little to prune.
        """
        plan, model = self.settings.plan, unwrap(self.runner.model)
        groups = parameter_groups(model, self.settings.fusion_map(model))
        if self.settings.epochs_per_round:
            choose_masks(magnitude(prunable(model)), plan.sparsity, plan, groups)

    def _prune_when_due(self) -> None:
        done = self.mask_hook.record.get('round', 0)
        if done:
            self._check_resumed()
        for number in range(done + 1, self.settings.rounds + 1):
            if self.settings.due(number) > self.epoch:
                break
            self._prune(number)

    def _check_resumed(self) -> None:
        ours, theirs = self.settings.plan.to_dict(), self.mask_hook.record['plan']
        if ours != theirs:
            raise ValueError(
                f'{self.settings.plan.title}: the resumed run was pruned by the plan {theirs}, the config has {ours}'
            )

    def _prune(self, number: int) -> None:
        runner, settings, hook = self.runner, self.settings, self.mask_hook
        model = unwrap(runner.model)
        fusion = settings.fusion_map(model)
        batches = self._batches(max(batches_needed(settings.plan), settings.recalibrate))
        scores = score_model(model, settings.plan, batches, fusion)
        groups = parameter_groups(model, fusion)
        masks = make_masks(scores, settings.plan, groups, settings.sparsity_after(number), hook.masks)
        report = keep_report(model, settings.plan, fusion, scores, masks)
        if settings.rewind == 'init':
            self._rewind()
        hook.set_masks(runner, masks, {'plan': settings.plan.to_dict(), 'round': number})
        if settings.recalibrate:
            with seeded(settings.plan.seed):
                recalibrate(model, batches[: settings.recalibrate])
            self._follow('buffers')
        self._tell(report, number)
        self._save()

    def _batches(self, count: int) -> Sequence[Any]:
        seed = self.settings.plan.seed
        return CachedBatches(draw(self.dataloader, count, seed), unwrap(self.runner.model).data_preprocessor, seed)

    def _tell(self, report: dict[str, Any], number: int) -> None:
        runner, plan = self.runner, self.settings.plan
        for name, row in {'': report['total'], **{f'_{group}': row for group, row in report['groups'].items()}}.items():
            runner.message_hub.update_scalar(f'train/keep_rate{name}', row['rate'])
        of = f', round {number} of {self.settings.rounds}' if self.settings.rounds > 1 else ''
        runner.logger.info(f'{plan.title}: pruned by {plan.criterion}{of}\n{keep_table(report)}')
        for where, names in report['notes'].get('without_gradient', {}).items():
            runner.logger.warning(
                f'{plan.title}, {where}: {len(names)} weights had no gradient: {", ".join(names[:5])}'
            )
        if report['frozen']:
            runner.logger.warning(f'{plan.title}: {len(report["frozen"])} weights are frozen, and stay as they are')
        if is_main_process():
            files.write_json(Path(runner.work_dir) / REPORT, {'round': number, **report}, indent=1)

    def _save(self) -> None:
        """Writes a checkpoint to resume from, so that scoring need not be repeated."""
        runner = self.runner
        runner.save_checkpoint(runner.work_dir, PRUNED, meta=dict(epoch=self.epoch, iter=self.iter))
        if is_main_process():  # as CheckpointHook does, which resumed runs ask
            files.write_text(Path(runner.work_dir) / 'last_checkpoint', str(Path(runner.work_dir) / PRUNED))

    def _remember(self) -> None:
        """Keeps the weights that IMP goes back to, once."""
        if self.settings.rewind == 'init' and self.iter == 0 and is_main_process():
            weights = {name: p.detach().cpu() for name, p in unwrap(self.runner.model).named_parameters()}
            files.save_checkpoint(weights, Path(self.runner.work_dir) / REWIND)

    @torch.no_grad()
    def _rewind(self) -> None:
        barrier()
        path = Path(self.runner.work_dir) / REWIND
        if not path.is_file():
            raise ValueError(f"rewind='init': {path}, written when the training began, is gone")
        weights = torch.load(path, map_location='cpu', weights_only=True)
        for name, parameter in unwrap(self.runner.model).named_parameters():
            parameter.copy_(weights[name])
        self._follow('parameters')
        wrapper = self.runner.optim_wrapper
        for one in wrapper.values() if hasattr(wrapper, 'values') else [wrapper]:
            one.zero_grad()
            one.optimizer.state.clear()
        for hook in self.runner.hooks:
            if hasattr(hook, 'ema_model'):
                hook.ema_model.steps.zero_()

    @torch.no_grad()
    def _follow(self, what: str) -> None:
        """Gives the averaged models the values that the model has in `what`: 'parameters' or 'buffers'."""
        for averaged in averaged_models(self.runner):
            for copy, value in zip(getattr(averaged, what)(), getattr(unwrap(self.runner.model), what)()):
                copy.copy_(value)


@LOOPS.register_module(name=['PruningLoop', 'AlterMOMALoop'])
class PruningLoop(_PrunesFirst, EpochBasedTrainLoop):
    """A training that scores and prunes a detector, by any criterion, and fine-tunes what is left.

    In a config it is ``train_cfg=dict(type='PruningLoop', max_epochs=6, val_interval=1, sparsity=0.8)``, with
    ``load_from`` naming the converged detector. The loop is also registered as 'AlterMOMALoop'. It writes
    ``pruned.pth`` (right after pruning, to resume from) and ``keep_rates.json`` into the work folder.

    Args:
        runner: The runner.
        dataloader: The data loader of the training. Batches to score with are drawn from its data set; the order of the
            training does not change.
        **settings: Settings of mmengine's EpochBasedTrainLoop (`max_epochs` counts all epochs, also those between the
            rounds of IMP), and the settings of pruning, which `PruningSettings` lists.

    Raises:
        ValueError: If a setting is unknown, the rounds do not fit into the training, the model has no fusion map, masks
            are given although the loop makes them, or the resumed run was pruned by another plan.
    """

    _of_loop = ('max_epochs', 'val_begin', 'val_interval', 'dynamic_intervals')
    _length = 'max_iters'

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, **settings: Any) -> None:
        super().__init__(runner, dataloader, **settings)
        last = self.settings.due(self.settings.rounds)
        if last and last >= self.max_epochs:
            raise ValueError(
                f'{self.settings.rounds} rounds of {self.settings.epochs_per_round} epochs and fine-tuning do not fit '
                f'into max_epochs={self.max_epochs}; it must be {last + 1} or more'
            )

    def run_epoch(self) -> None:
        """Trains an epoch; a round of pruning that is due comes before it."""
        self._remember()
        self._prune_when_due()
        super().run_epoch()


@LOOPS.register_module(name=['PruningIterLoop', 'AlterMOMAIterLoop'])
class PruningIterLoop(_PrunesFirst, IterBasedTrainLoop):
    """:class:`PruningLoop` for trainings that count iterations (`max_iters`); they prune once, at the beginning.

    The loop is also registered as 'AlterMOMAIterLoop'.
    """

    _of_loop = ('max_iters', 'val_begin', 'val_interval', 'dynamic_intervals')
    _length = 'max_epochs'

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, **settings: Any) -> None:
        super().__init__(runner, dataloader, **settings)
        if self.settings.epochs_per_round:
            raise ValueError('epochs_per_round: this training counts iterations; IMP needs PruningLoop and max_epochs')

    def run_iter(self, data_batch: Sequence[dict]) -> None:
        """Trains an iteration; pruning comes before the first."""
        self._prune_when_due()
        super().run_iter(data_batch)


AlterMOMALoop, AlterMOMAIterLoop = PruningLoop, PruningIterLoop
"""The same loops by the name of their default criterion, for older code; in configs both names are registered."""


def _mask_hook(runner: Runner) -> MaskHook:
    """The runner's MaskHook; it gets one if it has none.

    Raises:
        ValueError: If it has masks of its own.
    """
    found = next((hook for hook in runner.hooks if isinstance(hook, MaskHook)), None)
    if found is None:
        found = MaskHook()
        runner.register_hook(found)
    if found.path is not None:
        raise ValueError(
            f'MaskHook has masks={found.path!r}, but the loop makes masks: leave them out, or train with '
            'EpochBasedTrainLoop'
        )
    return found


def _check_loaded(runner: Runner) -> None:
    """Loads what ``tools/train.py --resume`` forgets when there is nothing to resume; warns of random weights."""
    if runner._has_loaded:
        return
    written = Path(runner.cfg.filename or '.')
    source = Config.fromfile(written, import_custom_modules=False) if written.is_file() else {}
    if runner._resume and source.get('load_from'):
        runner.logger.info('There is no checkpoint to resume from: the training begins with load_from of the config')
        runner._resume = False
        runner.load_checkpoint(source['load_from'])
    else:
        runner.logger.warning(f'{WeightPlan.title}: no checkpoint was loaded, the scores are those of initial weights')
