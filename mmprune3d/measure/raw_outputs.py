"""Outputs of a detector without decoding and losses, also where it has no mode for them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from mmprune3d.layers.nested import tensors_in


class _HeadDoneError(Exception):
    """Ends a forward pass behind the detection head.

    Args:
        output: What the head returned.
    """

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def raw_outputs(data: Mapping[str, Any]) -> Callable[[nn.Module], list[Tensor]]:
    """A function that runs a detector on preprocessed data, without decoding and losses.

    Detectors of mmdet3d that lack ``mode='tensor'`` (MVXTwoStageDetector) are run in ``mode='predict'`` as far as the
    first module whose name contains ``head``.

    Args:
        data: What the data preprocessor returned.
    """

    def forward(model: nn.Module) -> list[Tensor]:
        try:
            found = list(tensors_in(model(**copy.deepcopy(dict(data)), mode='tensor')))
        except (TypeError, NotImplementedError):
            found = []
        return found or _head_outputs(model, data)

    return forward


def _head_outputs(model: nn.Module, data: Mapping[str, Any]) -> list[Tensor]:
    """The outputs of a detector's head, whose decoding does not run: it fails where features are marked."""

    def stop(module: nn.Module, args: tuple, output: Any) -> None:
        raise _HeadDoneError(output)

    heads = [child for name, child in model.named_children() if 'head' in name]
    handles = [head.register_forward_hook(stop) for head in heads]
    try:
        model(**copy.deepcopy(dict(data)), mode='predict')
    except _HeadDoneError as done:
        return list(tensors_in(done.output))
    finally:
        for handle in handles:
            handle.remove()
    raise ValueError(f"{type(model).__name__} has neither mode='tensor' nor a head that runs in mode='predict'")
