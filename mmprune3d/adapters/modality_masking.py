"""Masking of one sensor: zeros replace the output of its stream, which does not run (AlterMOMA, Eq. 3 with mu = 0)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mmprune3d.layers.preserved import evaluating

from .fusion import FusionMap, has, resolve

_ABSENT = object()


class ModalityMasker:
    """Replaces the output of one modality's stream by zeros, without running the stream.

    Setting the stream's convolution weights to 0 would not be enough: batch norm turns zeros into constants, and a
    sparse stream would still tell which voxels are occupied. The result equals a stream in which all parameters,
    including those of norm layers, are 0.

    The shape of the output is learned from earlier passes that were not masked, or else from one pass of the stream
    without gradients in evaluation mode, after which the model and the random states are what they were.

    Args:
        model: The detector, without a wrapper.
        fusion: Fusion map of the detector.
        mask_cross_modal_inputs: Whether a masked modality's raw data are also hidden from the other streams, such as
            the depth image from LiDAR in BEVFusion's camera stream.

    Raises:
        ValueError: If raw data are to be hidden, but the model has no flag for this.
    """

    def __init__(self, model: nn.Module, fusion: FusionMap, mask_cross_modal_inputs: bool = False) -> None:
        self.model, self.fusion = model, fusion
        self.flags = fusion.cross_modal if mask_cross_modal_inputs else {}
        if mask_cross_modal_inputs and not any(has(model, flag) for flag in self.flags.values()):
            wanted = ', '.join(self.flags.values()) or 'cross_modal in its fusion map'
            raise ValueError(
                f'mask_cross_modal_inputs: {type(model).__name__} has no flag for it (looked for {wanted}), '
                'so no stream reads raw data of another sensor'
            )
        self._shapes: dict[Hashable, Any] = {}

    @contextmanager
    def masked(self, modality: str | None) -> Iterator[None]:
        """Masks `modality` in this context; with None nothing is masked and shapes are recorded.

        Raises:
            ValueError: If the modality is unknown.
        """
        interfaces = self.fusion.interfaces
        if modality is not None and modality not in interfaces:
            raise ValueError(
                f'unknown modality {modality!r}; those with an interface are {", ".join(interfaces) or "none"}'
            )
        with ExitStack() as stack:
            for name, path in interfaces.items():
                wrap = self._zeros if name == modality else self._recorded
                paths = (*self.fusion.skipped.get(name, ()), path)
                for number, (owner, attribute) in enumerate(call for p in paths for call in _calls(self.model, p)):
                    original = getattr(owner, attribute)
                    stack.enter_context(_patched(owner, attribute, wrap((name, number), original)))
            if modality is not None and self.fusion.mean_fusion:
                for owner, attribute in _calls(self.model, self.fusion.mean_fusion):
                    scale = len(interfaces) / (len(interfaces) - 1)
                    original = getattr(owner, attribute)
                    stack.enter_context(_patched(owner, attribute, _scaled(original, scale)))
            if modality in self.flags:
                owner, _, attribute = self.flags[modality].rpartition('.')
                stack.enter_context(_patched(resolve(self.model, owner) if owner else self.model, attribute, True))
            yield

    def _recorded(self, key: Hashable, original: Callable) -> Callable:
        def forward(*args: Any, **kwargs: Any) -> Any:
            # Before the call, which may modify the inputs in place.
            signature = (key, _signature((args, kwargs)))
            outputs = original(*args, **kwargs)
            self._shapes[signature] = _map_stream(outputs, _Blueprint.of)
            return outputs

        return forward

    def _zeros(self, key: Hashable, original: Callable) -> Callable:
        recorded = self._recorded(key, original)

        def forward(*args: Any, **kwargs: Any) -> Any:
            signature = (key, _signature((args, kwargs)))
            if signature not in self._shapes:
                with evaluating(self.model), torch.no_grad():
                    recorded(*args, **kwargs)
            return tree_map(
                lambda leaf: leaf.zeros() if isinstance(leaf, _Blueprint) else leaf, self._shapes[signature]
            )

        return forward


@contextmanager
def masked(
    model: nn.Module, modality: str | None, fusion: FusionMap, mask_cross_modal_inputs: bool = False
) -> Iterator[None]:
    """Masks `modality` in this context; :class:`ModalityMasker` is faster if this is repeated."""
    with ModalityMasker(model, fusion, mask_cross_modal_inputs).masked(modality):
        yield


def _calls(model: nn.Module, path: str) -> list[tuple[object, str]]:
    """Owners and attribute names that have to be replaced in order to redirect calls of `path`."""
    found = resolve(model, path)
    if isinstance(found, nn.ModuleList):
        return [(module, 'forward') for module in found]
    if isinstance(found, nn.Module):
        return [(found, 'forward')]
    owner, _, attribute = path.rpartition('.')
    return [(resolve(model, owner) if owner else model, attribute)]


@contextmanager
def _patched(owner: object, attribute: str, value: object) -> Iterator[None]:
    before = vars(owner).get(attribute, _ABSENT)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(owner, attribute)
        else:
            setattr(owner, attribute, before)


def _scaled(original: Callable, scale: float) -> Callable:
    return lambda *args, **kwargs: _map_stream(original(*args, **kwargs), lambda tensor: tensor * scale)


def _signature(value: Any) -> Hashable:
    """The values on which the shape of the outputs depends: shapes of tensors, number of samples.

    Lists contain one point cloud or one meta information per sample; the number of points has no influence.
    """
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return tuple((key, _signature(item)) for key, item in value.items())
    if isinstance(value, tuple):
        return tuple(map(_signature, value))
    if isinstance(value, list):
        maps = [item for item in value if isinstance(item, Tensor) and item.ndim > 3]
        return len(value), tuple(map(_signature, maps))
    return None


@dataclass(frozen=True)
class _Blueprint:
    """What zeros are made of."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> _Blueprint:
        return cls(tensor.shape, tensor.dtype, tensor.device)

    def zeros(self) -> Tensor:
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)


def _map_stream(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """What the end of a stream gave, with its tensors replaced.

    Raises:
        TypeError: If it contains other objects, such as a sparse tensor.
    """

    # not map_tensors, which passes on what it does not know: features of the masked modality must not get through
    def changed(leaf: Any) -> Any:
        if leaf is None or isinstance(leaf, Tensor):
            return leaf if leaf is None else change(leaf)
        raise TypeError(
            f'the end of a stream gave a {type(leaf).__name__}; it must give tensors, lists, tuples or dicts of them: '
            'name a later method or module in interfaces'
        )

    return tree_map(changed, value)
