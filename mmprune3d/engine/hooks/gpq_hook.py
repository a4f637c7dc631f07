"""GPQ as three lines in a config."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, broadcast, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from mmprune3d import files
from mmprune3d.adapters.learned_queries import LearnedQueries, make_prunable
from mmprune3d.adapters.query_scores import QueryScorer
from mmprune3d.engine.unwrap import averaged_models, unwrap
from mmprune3d.pruning.gpq import GPQPlan, RemovalSchedule, ScoreSums, choose_victims

from .plan_arguments import takes_settings_of
from .single import check_single

STATE = 'gpq'
"""Key of a checkpoint under which the hook stores what a resumed run needs."""
HISTORY = 'gpq_history.jsonl'
"""File in the work folder with a line per removal."""


@HOOKS.register_module()
class GPQHook(Hook):
    """GPQ: removes queries one after the other while the detector is trained or fine-tuned (paper section 3.2).

    `before_run` makes the embedding of the queries prunable, before EMAHook copies the model, and `before_train` fixes
    the schedule. After every iteration the scores of the queries are added up over all processes, and when the schedule
    says so, the queries with the worst scores are removed. The forward pass uses the queries that are left, in
    training, validation and test, with or without this hook. ``mmprune3d compact`` makes a small checkpoint for the
    unmodified detector.

    If no query has a score when a removal is due (frames without objects for ``criterion='cost'``, logits that are not
    finite), the removal waits for the first iteration with scores; the log says so, and the schedule does not change.
    If fewer queries than planned are removed in the end, the log ends with an error that says how many are left.

    The sums of the scores are stored in every checkpoint, so that a resumed run makes the same decisions as an
    uninterrupted one. The work folder gets ``gpq_history.jsonl`` with a line per removal: ``iter`` (number of
    iterations done), ``removed`` (ids in the order of removal) and ``scores`` (id -> mean score over the interval, of
    the queries that were left before the removal).

    In a config::

        custom_imports = dict(imports=['mmprune3d'], allow_failed_imports=False)
        custom_hooks = [dict(type='GPQHook', target=300, epochs=6)]

    Args:
        target: Number of queries that are left in the end, 1 or more. Required.
        interval: Number of iterations from one removal to the next. Default: as many as it takes to reach `target`
            within `epochs`.
        epochs: Length of the pruning in epochs, or parts of one; give either this or `interval`. Default: 6, as in the
            paper, where the whole training takes 24.
        per_step: Number of queries that are removed at a time, or ``'all'`` to remove all of them after one interval
            (an ablation of Table 5). With `epochs`, more are removed at a time if there are more queries than
            iterations. Default: 1.
        begin: Number of iterations before the first interval. Default: 0.
        criterion: Which queries are removed: ``'lowest'`` (class scores), or to compare with, ``'highest'``, ``'cost'``
            (those whose best match with any object costs most) and ``'random'`` (Table 5). Default: ``'lowest'``.
        score: What is averaged over an interval: ``'logit'``, the highest class logit of a query, or
            ``'probability'``, its sigmoid or softmax. Default: ``'logit'``.
        seed: Seed of ``criterion='random'``. Default: 0.

    Raises:
        ValueError: For unknown, missing or invalid settings, a model without learned queries that an adapter knows, a
            schedule that does not fit the training, or a resumed checkpoint of another plan.
        RuntimeError: When a removal is due although the head has not run, or training ends without any removal.

    A ValueError also ends a training in which an attention gets a mask that was made for queries that were removed.
    """

    # Before EMAHook copies or averages the model; before CheckpointHook.
    priority = 'HIGH'

    @takes_settings_of(GPQPlan)
    def __init__(
        self,
        target: int,
        interval: int | None = None,
        epochs: float | None = None,
        per_step: int | str = 1,
        begin: int = 0,
        criterion: str = 'lowest',
        score: str = 'logit',
        seed: int = 0,
    ) -> None:
        self.plan = GPQPlan(target, interval, epochs, per_step, begin, criterion, score, seed)
        self._resumed: dict[str, Any] | None = None
        self._removed_rows: Tensor | None = None
        self._waits = False
        self._watched: list[Any] = []

    def before_run(self, runner: Runner) -> None:
        """Makes the queries prunable; the outputs of the detector do not change."""
        check_single(runner, GPQHook, 'prune queries')
        self.queries: LearnedQueries = make_prunable(unwrap(runner.model))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Takes the state of the hook out of a checkpoint from which the run is resumed.

        Raises:
            ValueError: If the run that is resumed had no GPQHook, or one with another plan.
        """
        if not runner._resume:
            return
        plan = checkpoint.get('meta', {}).get('mmprune3d', {}).get(GPQPlan.method)
        if STATE not in checkpoint or plan is None:
            raise ValueError('GPQ: the resumed run had no GPQHook; to prune its result, use load_from, not resume')
        if GPQPlan.from_dict(plan) != self.plan:
            raise ValueError(f'GPQ: the resumed run has the plan {plan}, the config {self.plan.to_dict()}')
        self._resumed = checkpoint[STATE]

    def before_train(self, runner: Runner) -> None:
        """Fixes the schedule and begins to listen to the head."""
        embedding = self.queries.embedding
        self.queries.announce()
        if self._resumed is None:
            self.first_count = embedding.num_kept
            self.schedule = self.plan.schedule(self.first_count, len(runner.train_dataloader))
            self.sums = ScoreSums.zeros(embedding.num_kept)
        else:
            self.first_count = self._resumed['first_count']
            self.schedule = RemovalSchedule(**self._resumed['schedule'])
            self.sums = ScoreSums.zeros(embedding.num_kept).plus(self._resumed['sums'])
        self._check_length(runner, self.schedule)
        self.history = Path(runner.work_dir) / HISTORY
        if is_main_process():
            _keep_lines_until(self.history, runner.iter)
        self.scorer = QueryScorer(self.queries, self.plan)
        self._watched = self.queries.watch_masks()
        if self._missing:
            self.scorer.start()
        runner.logger.info(f'GPQ: {embedding.num_kept} queries, {self.plan.target} in the end; {self.schedule}')

    def _check_length(self, runner: Runner, schedule: RemovalSchedule) -> None:
        if schedule.end > runner.max_iters:
            raise ValueError(
                f'GPQ: the last query would go after {schedule.end} iterations, but training has {runner.max_iters} '
                f'({len(runner.train_dataloader)} per epoch): lower epochs or interval, or raise per_step'
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Copies the rows of removed queries, which momentum and weight decay are about to change."""
        self._removed_rows = self.queries.embedding.removed_rows()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Restores the rows of removed queries, adds up the scores, and removes the queries that are due."""
        embedding = self.queries.embedding
        embedding.put_back(self._removed_rows)
        scores = self.scorer.take()
        runner.message_hub.update_scalar('train/num_queries', embedding.num_kept)
        if runner.iter < self.schedule.begin or not self._missing:
            return
        batch = ScoreSums.zeros(embedding.num_kept).add(scores).packed()
        all_reduce(batch)
        self.sums = self.sums.plus(batch)
        due = self.schedule.removed_after(runner.iter + 1) - (self.first_count - embedding.num_kept)
        if due > 0 and self._can_remove(runner, due):
            self._remove(runner, due)

    @property
    def _missing(self) -> int:
        """The number of queries that are still to be removed."""
        return self.queries.embedding.num_kept - (self.first_count - self.schedule.total)

    def _can_remove(self, runner: Runner, due: int) -> bool:
        """Whether there are scores to choose by; if not, the removal waits, and a warning says so once.

        Raises:
            RuntimeError: If waiting is useless, because the head has not run in any process.
        """
        if self.sums.count:
            self._waits = False
            return True
        heard = torch.tensor([float(self.scorer.heard)])
        all_reduce(heard)
        if not heard:
            raise RuntimeError(
                f'GPQ: after {runner.iter + 1} iterations no query has a score, because the head has not run in '
                'training mode; something else trains the detector'
            )
        if not self._waits:
            runner.logger.warning(
                f'GPQ: after {runner.iter + 1} iterations {due} of {self.queries.embedding.num_kept} queries must go, '
                f'but {self.scorer.why_nothing} ({int(heard)} samples were seen); they go as soon as there are scores'
            )
        self._waits = True
        return False

    def _remove(self, runner: Runner, count: int) -> None:
        embedding, scores = self.queries.embedding, self.sums.mean()
        before = embedding.kept.cpu()
        victims = before[choose_victims(scores, count, self.plan.criterion, self.plan.seed)]
        broadcast(victims)  # sums of floats may differ in the last digit between processes
        embedding.remove(victims)
        for copy in averaged_models(runner):
            make_prunable(copy).embedding.follow(embedding)
        self.queries.announce()
        self.sums = ScoreSums.zeros(embedding.num_kept)
        self.scorer.heard = 0
        if is_main_process():
            line = dict(
                iter=runner.iter + 1,
                removed=victims.tolist(),
                scores={id_: round(score, 6) for id_, score in zip(before.tolist(), scores.tolist(), strict=True)},
            )
            with self.history.open('a') as file:
                file.write(json.dumps(line) + '\n')
        if not self._missing:
            runner.logger.info(f'GPQ: {embedding.num_kept} queries are left after {runner.iter + 1} iterations')
            self.scorer.stop()

    def after_train(self, runner: Runner) -> None:
        """Stops listening to the head, and logs an error if queries are left that should have been removed.

        Raises:
            RuntimeError: If no query was removed.
        """
        self.scorer.stop()
        for handle in self._watched:
            handle.remove()
        if not self._missing:
            return
        left = self.queries.embedding.num_kept
        reason = (
            f'the last {self._missing} of {self.schedule.total} would have gone after {self.schedule.end} iterations, '
            f'training ended after {runner.iter}'
        )
        if runner.iter >= self.schedule.end:
            reason = self.scorer.why_nothing
        message = f'GPQ: {left} queries are left, not {self.plan.target}: {reason}. The checkpoints have {left} queries'
        if left == self.first_count:
            raise RuntimeError(f'{message}: nothing was pruned')
        runner.logger.error(message)

    def before_val_epoch(self, runner: Runner) -> None:
        """Tells the detector how many queries it has."""
        self.queries.announce()

    def before_test_epoch(self, runner: Runner) -> None:
        """Tells the detector how many queries it has."""
        self.queries.announce()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Stores the plan and what a resumed run needs in the checkpoint."""
        checkpoint['meta'].setdefault('mmprune3d', {})[self.plan.method] = self.plan.to_dict()
        checkpoint[STATE] = {
            'first_count': self.first_count,
            'schedule': asdict(self.schedule),
            'sums': self.sums.packed(),
        }


def _keep_lines_until(path: Path, iteration: int) -> None:
    """Drops the lines that a run wrote after the checkpoint from which it is resumed, and an incomplete last line."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            is_earlier = json.loads(line)['iter'] <= iteration
        except ValueError:  # written in part
            break
        kept += [line] * is_earlier
    files.write_text(path, ''.join(f'{line}\n' for line in kept))
