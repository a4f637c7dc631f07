"""A fusion detector and its pruned version side by side: accuracy, time per stream, operations, memory, pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.runner import Runner
from torch import nn

from mmprune3d.adapters.fusion import FusionMap, has, resolve
from mmprune3d.measure import report as reports
from mmprune3d.measure.flops import count_operations
from mmprune3d.measure.layer_costs import count_costs, gflops_by_part
from mmprune3d.measure.memory import peak_memory
from mmprune3d.measure.tested import TestedSet
from mmprune3d.measure.timing import REST, TOTAL
from mmprune3d.pruning.channel_selection import Costs

from .compare import SideBySide


class FusionComparison(SideBySide):
    """Baseline and upgraded fusion detector, by the groups of their map.

    Args:
        runner: See :class:`SideBySide`, as all but the third.
        upgraded: The pruned model, with its weights.
        fusion: The map of both.
        timed: How many test batches to time.
        repeats: How often each is timed.
        tested: Its test set, if it was checked already.
    """

    def __init__(
        self,
        runner: Runner,
        upgraded: nn.Module,
        fusion: FusionMap,
        timed: int = 8,
        repeats: int = 3,
        tested: TestedSet | None = None,
    ) -> None:
        super().__init__(runner, upgraded, timed, repeats, tested)
        self.fusion = fusion

    def stages(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules that the groups name."""
        return timed_modules(model, self.fusion)

    def grouped(self, spent: Mapping[str, float]) -> dict[str, float]:
        """Sums per group."""
        sums = dict.fromkeys(self.fusion.groups, 0.0)
        for module in spent.keys() - {REST, TOTAL}:
            sums[str(self.fusion.group_of(module))] += spent[module]
        return {**sums, REST: spent[REST], TOTAL: spent[TOTAL]}

    def costs(self) -> dict[str, dict[str, Any]]:
        """GFLOPs, peak memory and parameters of both, on the first batch; also with weights that are 0 left out."""
        results, batch = {}, self.batches[0]
        for name, model in self.models.items():
            costs = count_costs(model.eval(), lambda name=name: self.predict(name, batch))
            gflops = gflops_by_part(costs, layers_by_group(costs, self.fusion))
            results[name] = {
                'gflops': gflops.pop('total'),
                'gflops_by_stage': gflops,
                'not_counted': list(count_operations(lambda name=name: self.predict(name, batch), {}).unknown),
                'peak_mib': peak_memory(lambda name=name: self.predict(name, batch)),
                'params': sum(p.numel() for p in model.parameters()),
                'nonzero': nonzero(model, costs),
            }
        return results


def timed_modules(model: nn.Module, fusion: FusionMap) -> dict[str, nn.Module]:
    """The modules that the groups name, as far as the model has them; none lies inside another."""
    prefixes = [prefix for group in fusion.groups.values() for prefix in group if has(model, prefix)]
    outer = [name for name in prefixes if not any(name.startswith(f'{other}.') for other in prefixes)]
    found = {name: resolve(model, name) for name in outer}
    return {name: module for name, module in found.items() if isinstance(module, nn.Module)}


def layers_by_group(costs: Costs, fusion: FusionMap) -> dict[str, list[str]]:
    """Group -> names of its layers that cost something."""
    layers = [name.removesuffix('.weight') for name in costs.per_element]
    return {group: [name for name in layers if fusion.group_of(name) == group] for group in fusion.groups}


def nonzero(model: nn.Module, costs: Costs) -> dict[str, float]:
    """``params`` that are not zero, and the ``gflops`` that a machine would need that skips zeros among weights."""
    parameters = dict(model.named_parameters())
    counts = {name: int(p.count_nonzero()) for name, p in parameters.items()}
    spent = sum(each * counts[name] for name, each in costs.per_element.items() if name in counts)
    return {'params': sum(counts.values()), 'gflops': (spent + costs.fixed) / 1e9}


def fusion_rows(baseline: Mapping[str, Any], upgraded: Mapping[str, Any]) -> Iterable[str]:
    """The lines of the table."""
    yield from reports.figures(baseline, upgraded)
    yield reports.row('parameters (millions)', baseline['params'] / 1e6, upgraded['params'] / 1e6, 3)
    before, after = baseline['nonzero'], upgraded['nonzero']
    yield reports.row('parameters that are not 0 (millions)', before['params'] / 1e6, after['params'] / 1e6, 3)
    yield reports.row('GFLOPs of weights that are not 0 (in theory)', before['gflops'], after['gflops'], 3)
