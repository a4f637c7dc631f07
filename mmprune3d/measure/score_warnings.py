"""Warnings where the evaluation of nuScenes depends on details of the scores rather than on the boxes.

Its devkit takes equal scores in the order of the file, leaves scores of exactly 0 out of the true-positive errors, and
ignores velocities that are not numbers; docs/user_guides/evaluators.md has the measurements. Models whose scores were
rounded (bfloat16 has 128 values between two powers of two) or saturate at 1 meet all of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

TIED = 0.05
"""From this share of detections with a score that another of their class has, too, ties are worth a warning.

Scores in float32 tie by chance only: among 100 000 detections of a class between two powers of two, each shares its
score with another with a probability of 1.2 % (there are 2^23 values); five times as many would have to lie there.
"""


@dataclass(frozen=True)
class Detections:
    """What a model found in a whole test set, in the order in which the evaluator lists it.

    Attributes:
        scores: [N] of any floating type.
        labels: [N] integers, the class of each.
        velocities: [N, 2] in m/s, or None where boxes have none.
        samples: How many samples the model was asked about, as far as its predictions have scores and labels.
    """

    scores: Tensor
    labels: Tensor
    velocities: Tensor | None = None
    samples: int = 0

    def tied(self) -> Tensor:
        """[N] bool: whether another detection of the same class has the same score."""
        tied = torch.zeros(len(self.scores), dtype=torch.bool)
        for label in self.labels.unique():
            same = self.labels == label
            _, inverse, counts = self.scores[same].unique(return_inverse=True, return_counts=True)
            tied[same] = counts[inverse] > 1
        return tied

    def unknown_velocities(self) -> int:
        """How many velocities have a component that is NaN."""
        return 0 if self.velocities is None else int(self.velocities.isnan().any(dim=1).sum())


def score_warnings(models: Mapping[str, Detections], nuscenes: bool = True) -> list[str]:
    """One sentence for each detail of the scores that would decide figures of a model.

    Args:
        models: Detections of each model by its name, such as ``baseline`` and ``upgraded``.
        nuscenes: Whether nuScenes' evaluation judges them; of others only ties are known to matter.
    """
    sentences = []
    for name, found in models.items():
        texts = (_nothing(found), _ties(found, nuscenes), *_nuscenes(found, nuscenes))
        sentences += [f'{name}: {text}' for text in texts if text]
    return sentences


def _nothing(found: Detections) -> str:
    """That there is not one detection, or nothing."""
    if len(found.scores) or not found.samples:
        return ''
    return f'nothing was found in any of {found.samples} samples: the figures are those of an empty result.'


def _ties(found: Detections, nuscenes: bool) -> str:
    """About equal scores, or nothing."""
    tied = found.tied()
    share = float(tied.double().mean()) if len(tied) else 0.0
    if share < TIED:
        return ''
    values, counts = found.scores[tied].double().unique(return_counts=True)
    most = int(counts.argmax())
    errors = ' The errors (mATE to mAAE) are those of the detection listed last.' if nuscenes else ''
    return (
        f'{int(tied.sum())} of {len(tied)} detections ({share:.1%}) have the score of another of their class, most '
        f'often {float(values[most]):.6g} ({int(counts[most])} times). The order in the file decides which of them '
        f'counts first, and with that the average precision.{errors} Scores that were never rounded (float32, without '
        'autocast) tell detections apart.'
    )


def _nuscenes(found: Detections, nuscenes: bool) -> Iterator[str]:
    """About scores of 0 and unknown velocities."""
    number, zeros, unknown = len(found.scores), int((found.scores == 0).sum()), found.unknown_velocities()
    if zeros and nuscenes:
        yield (
            f'{zeros} of {number} detections have a score of exactly 0. They count in mAP and not in the errors (mATE '
            'to mAAE), which are 1 for a class that has no other score.'
        )
    if unknown and nuscenes:
        yield (
            f'{unknown} of {number} predicted velocities are not a number. nuScenes ignores them, and takes an error '
            'of 0 for those more confident than the first known velocity of their class: mAVE and NDS are too good.'
        )


class DetectionsHook(Hook):
    """Keeps scores, labels and velocities of all predictions of a test, on the CPU."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Takes the predictions of a batch: 3D where a sample has them, otherwise those in the image."""
        self._parts += [part for sample in outputs or () if (part := _scored(sample)) is not None]

    def detections(self) -> Detections:
        """Everything so far; no velocities if boxes of some sample have none."""
        if not self._parts:
            return Detections(torch.zeros(0), torch.zeros(0, dtype=torch.long))
        scores, labels, velocities = zip(*self._parts)
        known = None if any(each is None for each in velocities) else torch.cat(velocities)
        return Detections(torch.cat(scores), torch.cat(labels), known, len(self._parts))


def _scored(sample: Any) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Scores, labels and velocities of a sample, or None where it is nothing with scores and labels."""
    for kind, end in (('pred_instances_3d', '_3d'), ('pred_instances', '')):
        found = getattr(sample, kind, None)
        names = (f'scores{end}', f'labels{end}')
        if found is None or any(name not in found for name in names):
            continue
        scores, labels = (found[name].detach().cpu() for name in names)
        boxes = getattr(found.get('bboxes_3d'), 'tensor', None)
        if boxes is None or boxes.shape[-1] < 9:
            return scores, labels, None
        return scores, labels, boxes[:, 7:9].detach().float().cpu()
    return None


@contextmanager
def collected(runner: Runner) -> Iterator[DetectionsHook]:
    """While it lasts, tests of `runner` leave their predictions in the hook that it gives."""
    hook = DetectionsHook()
    runner.register_hook(hook, priority='VERY_LOW')
    try:
        yield hook
    finally:
        runner.hooks.remove(hook)


def markdown(warnings: Iterable[str]) -> list[str]:
    """The sentences as lines of a report, with a heading; none without a warning."""
    lines = [f'* {warning}' for warning in warnings]
    return ['', '## Warnings', '', *lines] if lines else []
