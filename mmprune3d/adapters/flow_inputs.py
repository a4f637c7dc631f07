"""The input of ones and the summed outputs of SynFlow, for detectors that read images and points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmprune3d.layers.nested import tensors_in

from .fusion import FusionMap, frozen, prunable, resolve


def flow_outputs(model: nn.Module, batch: Mapping[str, Any], fusion: FusionMap) -> Tensor:
    """Sums all outputs of the network, inside of `linear_flow`, when the input of its first layers is ones.

    The geometry is that of the batch: positions of voxels, calibration. The ones replace the input of the layers that
    read raw data, which are those whose input depends on no parameter.

    Args:
        model: The detector, without a wrapper.
        batch: Arguments of the detector.
        fusion: Fusion map of the detector, whose `head` names the module at the end of the network.

    Raises:
        ValueError: If no output tensor depends on a parameter.
    """
    with _ones_for_raw_data(model), _SampleInOneDtype():
        outputs = _run_to_head(model, batch, fusion.head) if fusion.head else model(**batch, mode='tensor')
    sums = [tensor.sum() for tensor in tensors_in(outputs) if tensor.requires_grad]
    if not sums:
        raise ValueError(
            f"{type(model).__name__} gives no tensors in mode='tensor': set head='bbox_head' to the module that makes "
            'the outputs from which losses are computed'
        )
    return sum(sums)


class _SampleInOneDtype(TorchFunctionMode):
    """Converts positions that were computed in float32 and features in float64 to one dtype for sampling."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.grid_sample and len(args) > 1:
            args = (args[0], args[1].to(args[0].dtype), *args[2:])
        return func(*args, **(kwargs or {}))


class _HeadReached(Exception):  # noqa: N818, it is not an error
    def __init__(self, outputs: Any) -> None:
        self.outputs = outputs


def _run_to_head(model: nn.Module, batch: Mapping[str, Any], path: str) -> Any:
    """Output of the module at `path` when the model predicts; later modules do not run."""

    def stop(head: nn.Module, args: tuple, outputs: Any) -> None:
        raise _HeadReached(outputs)

    handle = resolve(model, path).register_forward_hook(stop)
    try:
        model(**batch, mode='predict')
    except _HeadReached as reached:
        return reached.outputs
    finally:
        handle.remove()
    raise ValueError(f'head={path!r} did not run when {type(model).__name__} predicted')


@contextmanager
def _ones_for_raw_data(model: nn.Module) -> Iterator[None]:
    names = [name.removesuffix('.weight') for name in (*prunable(model), *frozen(model)) if name.endswith('.weight')]
    with ExitStack() as stack:
        for name in names:
            stack.callback(model.get_submodule(name).register_forward_pre_hook(_ones).remove)
        yield


def _ones(layer: nn.Module, args: tuple) -> tuple | None:
    first = args[0] if args else None
    values = getattr(first, 'features', first)  # the features of a sparse tensor
    if not isinstance(values, Tensor) or values.requires_grad:
        return None
    ones = torch.ones_like(values, dtype=layer.weight.dtype)
    return (ones if values is first else first.replace_feature(ones), *args[1:])
