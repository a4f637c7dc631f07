"""Baseline and upgraded model side by side: accuracy, time, operations, memory and pictures, in one process."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import Runner
from torch import nn
from tqdm import tqdm

from mmprune3d import adapters
from mmprune3d.adapters.learned_queries import num_queries
from mmprune3d.measure.baseline import check_baseline
from mmprune3d.measure.flops import count_operations
from mmprune3d.measure.memory import peak_memory
from mmprune3d.measure.tested import TestedSet
from mmprune3d.measure.timing import StageTimer, medians
from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.visualization.upgrade import draw_upgrade
from mmprune3d.visualization.upgrade_2d import draw_upgrade_2d


@dataclass(frozen=True)
class Variant:
    """A model, and what is pruned while it runs.

    Attributes:
        model: With its weights.
        plan: Keys to remove, or None.
    """

    model: nn.Module
    plan: KeyPlan | None = None

    def take(self, runner: Runner) -> nn.Module:
        """Puts itself into the runner, and returns the model."""
        runner.model = self.model
        if self.plan is None:
            adapters.detach(self.model)
        else:
            adapters.attach(self.model, self.plan)
        return self.model


class Comparison:
    """Baseline and upgraded model in one process, on the same samples.

    Args:
        runner: Built from the prepared config; its checkpoint is loaded here, and its test set is used for both.
        upgraded: What to compare its model with.
        timed: How many test batches to time.
        repeats: How often each is timed.
        tested: Its test set, if it was checked already.
    """

    def __init__(
        self, runner: Runner, upgraded: Variant, timed: int = 8, repeats: int = 3, tested: TestedSet | None = None
    ) -> None:
        check_baseline(runner)
        self.tested = tested or TestedSet.of(runner)
        runner.load_or_resume()
        self.runner = runner
        self.repeats = repeats
        self.batches = list(islice(runner.test_dataloader, timed))
        self.variants = {'baseline': Variant(runner.model), 'upgraded': upgraded}

    @torch.no_grad()
    def predict(self, batch: dict[str, Any]) -> list[Any]:
        """Predictions for a batch, which stays as it is."""
        with self.tested.precision():
            return self.runner.model.test_step(copy.deepcopy(batch))

    def accuracy(self) -> dict[str, dict[str, float]]:
        """Metrics of both, over the test set; none where accuracy cannot be measured."""
        results = {}
        for name, variant in self.variants.items():
            variant.take(self.runner)
            results[name] = self.tested.figures(name)
        return results

    def latency(self) -> dict[str, dict[str, float]]:
        """Median milliseconds per stage of both; they alternate, so that a busy machine slows both."""
        timers, times = {}, {name: [] for name in self.variants}
        for name, variant in self.variants.items():
            timers[name] = StageTimer(adapters.stages(variant.take(self.runner).eval()))
            self.predict(self.batches[0])
        for batch in tqdm(self.batches * self.repeats, desc='timing', unit='batch'):
            for name, variant in self.variants.items():
                model, data = variant.take(self.runner), copy.deepcopy(batch)
                with torch.no_grad(), self.tested.precision():
                    times[name].append(timers[name].measure(lambda model=model, data=data: model.test_step(data)))
        return {name: medians(values) for name, values in times.items()}

    def costs(self) -> dict[str, dict[str, Any]]:
        """GFLOPs, peak memory, queries and keys per layer of both, on the first batch."""
        results, batch = {}, self.batches[0]
        for name, variant in self.variants.items():
            model = variant.take(self.runner).eval()
            counted = count_operations(lambda: self.predict(batch), adapters.stages(model))
            flops = counted.gflops
            results[name] = {
                'gflops': flops.pop('total'),
                'gflops_by_stage': flops,
                'not_counted': list(counted.unknown),
                'peak_mib': peak_memory(lambda: self.predict(batch)),
                'queries': num_queries(model),
                'keys': adapters.keys_per_layer(model, lambda: self.predict(batch)),
            }
        return results

    def report(self, title: str, costs: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
        """Everything measured, as plain types.

        Args:
            title: Of the report.
            costs: What `costs` gave, if it was called already.
        """
        plan = self.variants['upgraded'].plan
        # the quick parts first: a plan that does not fit fails in seconds
        costs, latency, accuracy = costs or self.costs(), self.latency(), self.accuracy()
        return {
            'title': title,
            'plan': None if plan is None else plan.to_dict(),
            **{name: {**accuracy[name], 'ms': latency[name], **costs[name]} for name in self.variants},
            'samples': self.tested.to_dict(count_samples(self.batches), accuracy.values()),
            'warnings': self.tested.all_warnings(),
            'env': self.tested.env,
        }

    def pictures(self, folder: Path, count: int) -> list[Path]:
        """Draws `count` samples spread over the test set, before and after; those that fail are warnings."""

        def draw(number: int, batch: dict[str, Any], info: dict[str, Any]) -> Path:
            path, found = folder / f'sample_{number:04d}.jpg', {}
            for name, variant in self.variants.items():
                variant.take(self.runner)
                found[name] = self.predict(batch)[0]
            kept = [ids[0] for ids in adapters.kept_keys(self.runner.model, lambda: self.predict(batch))]
            if 'pred_instances_3d' in found['upgraded']:
                images = info.get('images') or {}
                draw_upgrade(path, batch['inputs']['img'][0], found['baseline'], found['upgraded'], kept, images)
            else:
                draw_upgrade_2d(path, batch['inputs'][0], found['baseline'], found['upgraded'], kept, info)
            return path

        return self.tested.draw(count, draw)


def count_samples(batches: Iterable[dict[str, Any]]) -> int:
    """How many samples there are in batches; the last one may be smaller."""
    return sum(len(batch['data_samples']) for batch in batches)
