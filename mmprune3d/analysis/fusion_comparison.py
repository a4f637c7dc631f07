"""A fusion detector and its pruned version side by side: accuracy, time per stream, operations, memory, pictures."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import Runner
from torch import nn
from tqdm import tqdm

from mmprune3d.adapters.fusion import FusionMap, has, resolve
from mmprune3d.pruning.channel_selection import Costs
from mmprune3d.visualization.bev_boxes import draw_bev_boxes
from mmprune3d.visualization.upgrade import annotated_boxes, confident_boxes

from . import report as reports
from .accuracy import evaluate, evenly_spaced, summarize
from .fusion_flops import count_costs, gflops_by_part
from .latency import REST, TOTAL, StageTimer, medians
from .memory import peak_memory

THRESHOLD = 0.3
"""Boxes below this score are not drawn."""


class FusionComparison:
    """Baseline and upgraded model in one process, on the same samples.

    Args:
        runner: Built from the config of the baseline; its checkpoint is loaded here, and its test set is used for both.
        upgraded: The pruned model, with its weights.
        fusion: The map of both.
        timed: How many test batches to time.
        repeats: How often each is timed.
    """

    def __init__(
        self, runner: Runner, upgraded: nn.Module, fusion: FusionMap, timed: int = 8, repeats: int = 3
    ) -> None:
        runner.load_or_resume()
        self.runner, self.fusion, self.repeats = runner, fusion, repeats
        self.batches = list(islice(runner.test_dataloader, timed))
        self.models = {'baseline': runner.model, 'upgraded': upgraded}

    @torch.no_grad()
    def predict(self, name: str, batch: dict[str, Any]) -> list[Any]:
        """Predictions of a model for a batch, which stays as it is."""
        return self.models[name].eval().test_step(copy.deepcopy(batch))

    def accuracy(self) -> dict[str, dict[str, float]]:
        """Metrics of both, over the whole test set."""
        results = {}
        for name, model in self.models.items():
            self.runner.model = model
            results[name] = summarize(evaluate(self.runner, name))
        return results

    def latency(self) -> dict[str, dict[str, float]]:
        """Median milliseconds per group of both; they alternate, so that a busy machine slows both.

        What belongs to no module, such as decoding and the transfer of inputs, is the rest.
        """
        parts = {name: timed_modules(model, self.fusion) for name, model in self.models.items()}
        timers = {name: StageTimer(modules) for name, modules in parts.items()}
        times: dict[str, list[dict[str, float]]] = {name: [] for name in self.models}
        for name in self.models:
            self.predict(name, self.batches[0])
        for batch in tqdm(self.batches * self.repeats, desc='timing', unit='batch'):
            for name in self.models:
                spent = timers[name].measure(lambda name=name, batch=batch: self.predict(name, batch))
                times[name].append(self._by_group(spent))
        return {name: medians(values) for name, values in times.items()}

    def _by_group(self, spent: Mapping[str, float]) -> dict[str, float]:
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
                'peak_mib': peak_memory(lambda name=name: self.predict(name, batch)),
                'params': sum(p.numel() for p in model.parameters()),
                'nonzero': nonzero(model, costs),
            }
        return results

    def report(self, title: str) -> dict[str, Any]:
        """Everything measured, as plain types."""
        costs, latency, accuracy = self.costs(), self.latency(), self.accuracy()
        dtype = str(next(self.models['upgraded'].parameters()).dtype).removeprefix('torch.')
        batch_size = self.runner.test_dataloader.batch_size
        return {
            'title': title,
            **{name: {**accuracy[name], 'ms': latency[name], **costs[name]} for name in self.models},
            'samples': {'evaluated': len(self.runner.test_dataloader.dataset), 'timed': len(self.batches) * batch_size},
            'env': reports.environment(batch_size, dtype),
        }

    def pictures(self, folder: Path, count: int) -> list[Path]:
        """Draws `count` samples spread over the test set, with the boxes of both models from above."""
        dataset, paths = self.runner.test_dataloader.dataset, []
        for index in evenly_spaced(len(dataset), min(count, len(dataset))) if count else ():
            batch = self.runner.test_dataloader.collate_fn([dataset[index]])
            found = {name: self.predict(name, batch)[0] for name in self.models}
            truth = annotated_boxes(found['upgraded'])
            boxes = {name: confident_boxes(sample, THRESHOLD).corners[:, :4, :2] for name, sample in found.items()}
            paths.append(folder / f'sample_{index:04d}.png')
            points = batch['inputs']['points'][0]
            draw_bev_boxes(
                paths[-1],
                getattr(points, 'tensor', points).numpy(),
                None if truth is None else truth.corners[:, :4, :2],
                boxes,
                title=f'sample {index}, scores from {THRESHOLD}',
            )
        return paths


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
