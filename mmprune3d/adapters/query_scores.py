"""Recording of the scores of learned queries during training, by which GPQ removes queries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmprune3d.pruning.gpq import GPQPlan, cost_scores, query_scores

from .learned_queries import LearnedQueries


class QueryScorer:
    """Records scores from the head (for ``criterion='cost'`` from the assigner) in training steps.

    Validation and forward passes without gradients are ignored. Between `start` and `stop` there is a forward hook on
    the head (and for costs a replaced method on the assigner); the model is not changed otherwise.

    Args:
        queries: Learned queries of the detector.
        plan: Plan that selects the score.

    Attributes:
        heard: Number of samples of training steps that the head has processed; users may reset it to 0.

    Raises:
        ValueError: If costs are needed, but the assigner is of an unknown kind.
    """

    def __init__(self, queries: LearnedQueries, plan: GPQPlan) -> None:
        self.queries = queries
        self.plan = plan
        self._scores: list[Tensor] = []
        self._costs: list[Tensor] = []
        self._samples = 0
        self.heard = 0
        self._undo: list[Callable[[], object]] = []
        if plan.criterion == 'cost':
            self._listener()

    def start(self) -> None:
        """Registers the hook; recording begins with the next training step."""
        self._undo.append(self.queries.head.register_forward_hook(self._heard).remove)
        if self.plan.criterion == 'cost':
            name, listener = self._listener()
            setattr(self.queries.assigner, name, listener)
            self._undo.append(partial(delattr, self.queries.assigner, name))

    def stop(self) -> None:
        """Removes the hook and restores the assigner."""
        for undo in self._undo:
            undo()
        self._undo = []

    def take(self) -> Tensor:
        """Returns scores [samples, N_q] float64, on the CPU, of the forward passes since the last call.

        Costs are those of the last forward pass.
        """
        heard = [cost_scores(self._costs[-self._samples :])] if self._costs else self._scores
        self._scores, self._costs = [], []
        return torch.cat(heard) if heard else torch.zeros(0, self.queries.num_kept, dtype=torch.float64)

    @property
    def why_nothing(self) -> str:
        """Explains, as a part of messages, why no query has a score although the head has processed samples."""
        if self.plan.criterion == 'cost':
            return (
                'no sample since the last removal had an object that a query could be matched with, which '
                "criterion='cost' needs"
            )
        return 'no sample since the last removal had logits that are all finite'

    def _heard(self, head: nn.Module, inputs: Any, outputs: Any) -> None:
        if not (head.training and torch.is_grad_enabled()):
            return
        logits = self.queries.learned_logits(outputs)
        self._samples = len(logits)
        self.heard += len(logits)
        if self.plan.criterion != 'cost':
            self._scores.append(query_scores(logits, self.plan.score, self.queries.activation).cpu())

    def _listener(self) -> tuple[str, Callable[..., Any]]:
        """The method of the assigner to replace, and its replacement; the last decoder layer is matched last."""
        assigner = self.queries.assigner
        if hasattr(assigner, 'costs'):  # the assigner of this package
            return 'costs', partial(self._costs_of, assigner.costs)
        if hasattr(assigner, 'match_costs'):  # mmdet's HungarianAssigner
            return 'assign', partial(self._assign, assigner, assigner.assign)
        raise ValueError(
            "GPQ: criterion='cost' needs an assigner with `costs` (PETR3DAssigner) or `match_costs` (mmdet's "
            f'HungarianAssigner), found {type(assigner).__name__}; valid here are lowest, highest and random'
        )

    # Methods instead of closures, so that deepcopy and torch.save copy a detector together with the recorder.

    def _costs_of(self, costs: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        self._costs.append(costs(*args, **kwargs).cpu())
        return self._costs[-1]

    def _assign(
        self,
        assigner: Any,
        assign: Callable[..., Any],
        pred_instances: Any,
        gt_instances: Any,
        img_meta: Any = None,
        **kwargs: Any,
    ) -> Any:
        with torch.no_grad():
            parts = (cost(pred_instances, gt_instances, img_meta) for cost in assigner.match_costs)
            self._costs.append(sum(parts).cpu())
        return assign(pred_instances, gt_instances, img_meta, **kwargs)
