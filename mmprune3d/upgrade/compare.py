"""A detector and its pruned version side by side, in one process, on the same samples."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import Runner
from torch import nn
from tqdm import tqdm

from mmprune3d.measure.baseline import check_baseline
from mmprune3d.measure.tested import TestedSet
from mmprune3d.measure.timing import StageTimer, medians
from mmprune3d.visualization.bev_boxes import draw_bev_boxes
from mmprune3d.visualization.upgrade import annotated_boxes, confident_boxes

from .key_comparison import count_samples

THRESHOLD = 0.3
"""Boxes below this score are not drawn."""


class SideBySide:
    """Accuracy, times and pictures of two models; what they cost is up to the kind of detector.

    Args:
        runner: Built from the config of the baseline; its checkpoint is loaded here, and its test set is used for both.
        upgraded: The pruned model, with its weights.
        timed: How many test batches to time.
        repeats: How often each is timed.
        tested: Its test set, if it was checked already.
    """

    def __init__(
        self, runner: Runner, upgraded: nn.Module, timed: int = 8, repeats: int = 3, tested: TestedSet | None = None
    ) -> None:
        check_baseline(runner)
        self.tested = tested or TestedSet.of(runner)
        runner.load_or_resume()
        self.runner, self.repeats = runner, repeats
        self.batches = list(islice(runner.test_dataloader, timed))
        self.models = {'baseline': runner.model, 'upgraded': upgraded}

    def stages(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules to time, none inside another."""
        raise NotImplementedError

    def grouped(self, spent: Mapping[str, float]) -> dict[str, float]:
        """Milliseconds as they are reported, from those per stage, ``rest`` and ``total``."""
        return dict(spent)

    def costs(self) -> dict[str, dict[str, Any]]:
        """``gflops``, ``gflops_by_stage``, ``peak_mib``, ``params`` of both, and what else the table shows."""
        raise NotImplementedError

    @torch.no_grad()
    def predict(self, name: str, batch: dict[str, Any]) -> list[Any]:
        """Predictions of a model for a batch, which stays as it is."""
        with self.tested.precision():
            return self.models[name].eval().test_step(copy.deepcopy(batch))

    def accuracy(self) -> dict[str, dict[str, float]]:
        """Metrics of both, over the test set; none where accuracy cannot be measured."""
        results = {}
        for name, model in self.models.items():
            self.runner.model = model
            results[name] = self.tested.figures(name)
        return results

    def latency(self) -> dict[str, dict[str, float]]:
        """Median milliseconds of both; they alternate, so that a busy machine slows both.

        What belongs to no module, such as decoding and the transfer of inputs, is the rest.
        """
        timers = {name: StageTimer(self.stages(model)) for name, model in self.models.items()}
        times: dict[str, list[dict[str, float]]] = {name: [] for name in self.models}
        for name in self.models:
            self.predict(name, self.batches[0])
        for batch in tqdm(self.batches * self.repeats, desc='timing', unit='batch'):
            for name in self.models:
                spent = timers[name].measure(lambda name=name, batch=batch: self.predict(name, batch))
                times[name].append(self.grouped(spent))
        return {name: medians(values) for name, values in times.items()}

    def report(self, title: str) -> dict[str, Any]:
        """Everything measured, as plain types."""
        costs, latency, accuracy = self.costs(), self.latency(), self.accuracy()
        return {
            'title': title,
            **{name: {**accuracy[name], 'ms': latency[name], **costs[name]} for name in self.models},
            'samples': self.tested.to_dict(count_samples(self.batches), accuracy.values()),
            'warnings': self.tested.all_warnings(),
            'env': self.tested.env,
        }

    def pictures(self, folder: Path, count: int) -> list[Path]:
        """Draws `count` samples spread over the test set, with the boxes of both models from above.

        Pictures that fail are warnings.
        """

        def draw(number: int, batch: dict[str, Any], _: dict[str, Any]) -> Path:
            found = {name: self.predict(name, batch)[0] for name in self.models}
            truth = annotated_boxes(found['upgraded'])
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

        return self.tested.draw(count, draw)
