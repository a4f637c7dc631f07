"""The settings of a training that prunes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from mmprune3d.adapters.fusion import MAP_SETTINGS, FusionMap, check_map_settings, fusion_map
from mmprune3d.pruning import checks
from mmprune3d.pruning.altermoma import WeightPlan
from mmprune3d.pruning.saliency import keep_ratio
from mmprune3d.pruning.settings import names

if TYPE_CHECKING:  # Python 3.10 has no Self
    from typing import Self

REWINDS = ('none', 'init')


@dataclass(frozen=True)
class PruningSettings:
    """When weights are pruned in a training, and by which plan: ``pruning = dict(...)`` of a config.

    The settings of the plan stand beside those below, in one dict: ``sparsity`` (which must be given), ``criterion``,
    ``scope``, ``min_keep``, ``protected``, ``eval_batches``, ``seed`` and ``rounds`` for every criterion; ``alpha``,
    ``beta``, ``reactivation_steps``, ``optimizer``, ``lr``, ``same_eval_batches``, ``mask_cross_modal_inputs`` and
    ``dead_lowest`` for AlterMOMA, of which ProsPr has ``reactivation_steps`` and ``lr`` too. See `WeightPlan` for what
    each of them means; its settings of channels (``mode``, ``flops``, ``params``, ``reduce``) are not for trainings.

    Attributes:
        plan: Criterion, sparsity and the other settings of `WeightPlan`.
        epochs_per_round: Epochs that are trained before each round of pruning. 0 prunes once, at the beginning. It is
            for ``criterion='magnitude'``: together with ``rounds`` this is IMP, which prunes in rounds of equal ratios.
        rewind: With which weights the training goes on after a round of IMP: those that it has, 'none', or those from
            where it began, 'init' (the lottery ticket; the optimizer's state is cleared, learning rate schedules
            go on).
        recalibrate: Number of batches on which the statistics of batch norm are estimated anew after pruning; 0 leaves
            them alone.
        groups: Group -> prefixes of modules, for detectors without a map; see `FusionMap`, as for the next four.
        interfaces: Modality -> method or module at the end of its stream.
        cross_modal: Modality -> flag that hides its raw data from the other streams.
        mean_fusion: Method or module that averages over the modalities.
        head: Module from whose outputs the losses are computed.

    Raises:
        ValueError: If a setting is unknown, or they contradict each other.
    """

    plan: WeightPlan
    epochs_per_round: int = 0
    rewind: str = 'none'
    recalibrate: int = 0
    groups: Mapping[str, Any] | None = None
    interfaces: Mapping[str, str] | None = None
    cross_modal: Mapping[str, str] | None = None
    mean_fusion: str | None = None
    head: str | None = None

    def __post_init__(self) -> None:
        for name in ('epochs_per_round', 'recalibrate'):
            object.__setattr__(self, name, checks.count(name, getattr(self, name)))
        checks.choice('rewind', self.rewind, REWINDS)
        check_map_settings({name: getattr(self, name) for name in MAP_SETTINGS})
        if self.plan.mode != 'unstructured':
            raise ValueError(
                f'mode={self.plan.mode!r} removes channels, for which the model is built anew before a training: '
                'prune with "mmprune3d prune" and train the slim config; masks of single weights need sparsity=...'
            )
        iterative = self.plan.criterion == 'magnitude'
        if not iterative and (self.epochs_per_round or self.rewind != 'none'):
            raise ValueError(
                f"epochs_per_round and rewind are for criterion='magnitude' (IMP), not {self.plan.criterion!r}"
            )
        if iterative and self.plan.rounds > 1 and not self.epochs_per_round:
            raise ValueError(f'rounds={self.plan.rounds} of magnitude pruning need epochs_per_round, 1 or more')
        if self.rewind != 'none' and not self.epochs_per_round:
            raise ValueError(f'rewind={self.rewind!r} needs epochs_per_round: before training there is no way back')

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Settings from a config, those of the plan among them."""
        plan, own = WeightPlan.beside('pruning', data, [name for name in names(cls) if name != 'plan'])
        return cls(plan, **own)

    @property
    def rounds(self) -> int:
        """How often weights are pruned in the training."""
        return self.plan.rounds if self.plan.criterion == 'magnitude' else 1

    def sparsity_after(self, number: int) -> float:
        """The sparsity after round `number`, counted from 1."""
        if number == self.rounds:
            return self.plan.sparsity  # exactly
        return 1 - keep_ratio(self.plan.sparsity, number, self.rounds)

    def due(self, number: int) -> int:
        """Epochs that are trained before round `number`."""
        return number * self.epochs_per_round

    def fusion_map(self, model: nn.Module) -> FusionMap:
        """The fusion map of `model`, as configured."""
        return fusion_map(model, self.groups, self.interfaces, self.cross_modal, self.mean_fusion, self.head)
