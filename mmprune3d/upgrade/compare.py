"""A detector and its upgraded version side by side, in one process, on the same samples."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from mmengine.runner import Runner
from torch import nn

from mmprune3d import adapters
from mmprune3d.adapters.learned_queries import num_queries
from mmprune3d.measure import report as reports
from mmprune3d.measure.baseline import check_baseline
from mmprune3d.measure.flops import count_operations
from mmprune3d.measure.memory import peak_memory
from mmprune3d.measure.tested import BASELINE, TestedSet
from mmprune3d.measure.timing import StageTimer, medians
from mmprune3d.screen import bar
from mmprune3d.visualization.bev_boxes import draw_bev_boxes
from mmprune3d.visualization.upgrade import annotated_boxes, confident_boxes, draw_upgrade
from mmprune3d.visualization.upgrade_2d import draw_upgrade_2d

THRESHOLD = 0.3
"""Boxes below this score are not drawn."""
UPGRADED = 'upgraded'


class AtRunTime(Protocol):
    """What prunes a model while it runs, such as a step of an upgrade."""

    def attach(self, model: nn.Module) -> None:
        """Makes a model prune."""

    def detach(self, model: nn.Module) -> None:
        """Makes a model what it was."""


class SideBySide:
    """Accuracy, times, costs and pictures of two models: of the baseline, and of the upgraded one.

    Args:
        runner: Built from the config of the baseline; its checkpoint is loaded here, and its test set is used for both.
        upgraded: The upgraded model, with its weights; that of `runner` if pruning happens only at run time.
        timed: How many test batches to time.
        repeats: How often each is timed.
        tested: The test set of `runner`, if it was checked already.
        attached: What prunes the upgraded model while it runs.

    Raises:
        ValueError: If the baseline is pruned.
    """

    def __init__(
        self,
        runner: Runner,
        upgraded: nn.Module,
        timed: int = 8,
        repeats: int = 3,
        tested: TestedSet | None = None,
        attached: Sequence[AtRunTime] = (),
    ) -> None:
        check_baseline(runner)
        self.tested = tested or TestedSet.of(runner)
        runner.load_or_resume()
        self.runner, self.repeats, self.attached = runner, repeats, tuple(attached)
        self.batches = list(islice(runner.test_dataloader, timed))
        self.models = {BASELINE: runner.model, UPGRADED: upgraded}

    def take(self, name: str) -> nn.Module:
        """Puts a model into the runner, in evaluation mode and pruned only if it is the upgraded one.

        Args:
            name: 'baseline' or 'upgraded'.

        Returns:
            The model.
        """
        model = self.runner.model = self.models[name]
        for one in self.attached:
            if name == UPGRADED:
                one.attach(model)
            else:
                one.detach(model)
        return model.eval()

    def stages(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules to time, none inside another: by default the direct children that have parameters."""
        return {name: child for name, child in model.named_children() if next(child.parameters(), None) is not None}

    def grouped(self, spent: Mapping[str, float]) -> dict[str, float]:
        """Milliseconds as they are reported, from those per stage, ``rest`` and ``total``."""
        return dict(spent)

    @torch.no_grad()
    def predict(self, name: str, batch: dict[str, Any]) -> list[Any]:
        """Predictions of a model for a batch, which stays as it is."""
        return self.run(self.take(name), batch)

    @torch.no_grad()
    def run(self, model: nn.Module, batch: dict[str, Any]) -> list[Any]:
        """Predictions of the model that was taken last."""
        detector: Any = model
        with self.tested.precision():
            return detector.test_step(copy.deepcopy(batch))

    def accuracy(self) -> dict[str, dict[str, float]]:
        """Metrics of both models over the test set; none where accuracy cannot be measured."""
        results = {}
        for name in self.models:
            self.take(name)
            results[name] = self.tested.figures(name)
        return results

    def latency(self) -> dict[str, dict[str, float]]:
        """Median milliseconds of both models; they alternate, so that a busy machine slows both.

        What belongs to no module, such as decoding and the transfer of inputs, is the rest.
        """
        timers: dict[str, StageTimer] = {}
        times: dict[str, list[dict[str, float]]] = {name: [] for name in self.models}
        for name in self.models:
            timers[name] = StageTimer(self.stages(self.take(name)))
            self.predict(name, self.batches[0])
        for batch in bar(self.batches * self.repeats, desc='timing', unit='batch'):
            for name in self.models:
                detector: Any = self.take(name)
                step = partial(detector.test_step, copy.deepcopy(batch))
                with torch.no_grad(), self.tested.precision():
                    spent = timers[name].measure(step)
                times[name].append(self.grouped(spent))
        return {name: medians(values) for name, values in times.items()}

    def costs(self) -> dict[str, dict[str, Any]]:
        """What both models cost on the first batch: `cost_of`, and ``peak_mib``, the peak memory in MiB."""
        results, batch = {}, self.batches[0]
        for name in self.models:
            model = self.take(name)
            cost = self.cost_of(name, model, batch)
            results[name] = {**cost, 'peak_mib': peak_memory(partial(self.run, model, batch))}
        return results

    def cost_of(self, name: str, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """What the model that was taken last costs on a batch.

        Returns:
            ``gflops``, ``gflops_by_stage``, ``not_counted`` (names of operators), ``params``, and what else `rows`
            shows.
        """
        return {**self.operations(model, batch), 'params': sum(p.numel() for p in model.parameters())}

    def operations(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """``gflops``, ``gflops_by_stage`` and ``not_counted`` of the model that was taken last."""
        counted = count_operations(lambda: self.run(model, batch), self.stages(model))
        flops = dict(counted.gflops)
        return {'gflops': flops.pop('total'), 'gflops_by_stage': flops, 'not_counted': list(counted.unknown)}

    @staticmethod
    def rows(baseline: Mapping[str, Any], upgraded: Mapping[str, Any]) -> Iterable[str]:
        """The lines of the report's table, from the figures of both models."""
        yield from reports.figures(baseline, upgraded)
        yield reports.row('parameters (millions)', baseline['params'] / 1e6, upgraded['params'] / 1e6, 3)

    def report(self, title: str, costs: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
        """Everything measured, as plain types.

        Args:
            title: Title of the report.
            costs: What `costs` returned, if it was called already.
        """
        # the quick parts first: a plan that does not fit fails in seconds
        costs, latency, accuracy = costs or self.costs(), self.latency(), self.accuracy()
        return {
            'title': title,
            **{name: {**accuracy[name], 'ms': latency[name], **costs[name]} for name in self.models},
            'samples': self.tested.to_dict(count_samples(self.batches), accuracy.values()),
            'warnings': self.tested.all_warnings(),
            'env': self.tested.env,
        }

    def pictures(self, folder: Path, count: int) -> list[Path]:
        """Draws `count` samples spread over the test set, before and after; those that fail are warnings."""
        return self.tested.draw(count, lambda *sample: self.picture(folder, *sample))

    def picture(self, folder: Path, number: int, batch: dict[str, Any], info: dict[str, Any]) -> Path:
        """Draws the boxes of both models in one sample, seen from above.

        Args:
            folder: Folder for the picture.
            number: Number of the sample in the test set.
            batch: A batch of this sample alone.
            info: What the data set says about the sample.
        """
        found = {name: self.predict(name, batch)[0] for name in self.models}
        truth = annotated_boxes(found[UPGRADED])
        boxes = {name: confident_boxes(sample, THRESHOLD).corners[:, :4, :2] for name, sample in found.items()}
        path, points = folder / f'sample_{number:04d}.png', batch['inputs']['points'][0]
        draw_bev_boxes(
            path,
            getattr(points, 'tensor', points).numpy(),
            None if truth is None else truth.corners[:, :4, :2],
            boxes,
            title=f'sample {number}, scores from {THRESHOLD}',
        )
        return path


class KeyComparison(SideBySide):
    """Detectors with a decoder whose keys or queries are pruned."""

    def stages(self, model: nn.Module) -> dict[str, nn.Module]:
        """Backbone, neck, encoder and decoder, as far as the detector has them."""
        return adapters.stages(model)

    def cost_of(self, name: str, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """GFLOPs, and numbers of queries and of keys per layer."""
        return {
            **self.operations(model, batch),
            'queries': num_queries(model),
            'keys': adapters.keys_per_layer(model, lambda: self.run(model, batch)),
        }

    @staticmethod
    def rows(baseline: Mapping[str, Any], upgraded: Mapping[str, Any]) -> Iterable[str]:
        """The common lines, then queries and keys."""
        yield from reports.figures(baseline, upgraded)
        if baseline['queries'] is not None:
            yield reports.row('queries', baseline['queries'], upgraded['queries'], 0)
        keys = [' '.join(map(str, side['keys'])) for side in (baseline, upgraded)]
        yield f'| keys per layer | {keys[0]} | {keys[1]} | |'

    def picture(self, folder: Path, number: int, batch: dict[str, Any], info: dict[str, Any]) -> Path:
        """Draws the images of a sample with the boxes of both models, and tints the keys that were removed."""
        path, found = folder / f'sample_{number:04d}.jpg', {}
        for name in self.models:
            found[name] = self.predict(name, batch)[0]
        model = self.take(UPGRADED)
        kept = [ids[0] for ids in adapters.kept_keys(model, lambda: self.run(model, batch))]
        if 'pred_instances_3d' in found[UPGRADED]:
            images = info.get('images') or {}
            draw_upgrade(path, batch['inputs']['img'][0], found[BASELINE], found[UPGRADED], kept, images)
        else:
            draw_upgrade_2d(path, batch['inputs'][0], found[BASELINE], found[UPGRADED], kept, info)
        return path


def count_samples(batches: Iterable[dict[str, Any]]) -> int:
    """How many samples there are in batches; the last one may be smaller."""
    return sum(len(batch['data_samples']) for batch in batches)
