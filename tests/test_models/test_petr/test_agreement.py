"""A canvas and classes of a batch that do not fit PETR."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from .small import batch, build, detector_config

AUX = {'type': 'PETR3DDenseAuxHead', 'num_classes': 4, 'in_channels': 24}


def loss(
    num_samples: int = 2,
    size: tuple[int, int] | None = None,
    change: Any = None,
    divisor: int = 1,
    aux_only: bool = False,
) -> Any:
    settings = detector_config(aux_only=True, aux_head=AUX) if aux_only else detector_config(aux_head=None)
    model = build(settings)
    model.data_preprocessor.pad_size_divisor = divisor
    given = batch(num_samples) if size is None else batch(num_samples, size=size)
    if change is not None:
        change(given['data_samples'])
    data = model.data_preprocessor(given, True)
    return model(**data, mode='loss')


def test_a_canvas_that_the_features_do_not_divide() -> None:
    """A cell of 16 pixels was taken for one of 15."""
    message = re.escape('set data_preprocessor.pad_size_divisor to a multiple of the stride')
    with pytest.raises(ValueError, match=message):
        loss(size=(30, 62))
    with pytest.raises(ValueError, match=message):
        loss(size=(30, 62), aux_only=True)
    assert loss(size=(30, 62), divisor=32)


def test_labels_are_classes_of_the_auxiliary_head() -> None:
    def change(samples: list) -> None:
        samples[0].gt_instances_3d.labels_3d = torch.full_like(samples[0].gt_instances_3d.labels_3d, 11)

    with pytest.raises(ValueError, match=r'an object has label 11, but aux_head.num_classes='):
        loss(change=change, aux_only=True)
