"""Propagation of channels through a model: NaN in the outputs of layers marks channels, and reaches all their readers.

Concatenation, flattening, residual sums, pooling, resizing, sparse tensors and view transforms need no rules of their
own, because a NaN passes through all of them. The outputs of layers that make channels are replaced by zeros, so that
there are no other values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from mmprune3d.layers.nested import map_tensors, tensors_in
from mmprune3d.layers.slim import is_depthwise, weight_layout

Forward = Callable[[nn.Module], Any]
Pattern = Callable[[str], Tensor | None]
NAN = float('nan')


@dataclass
class Seen:
    """The inputs and layers that the marks of one run reached.

    Attributes:
        readers: Layer name -> inputs with a mark, bool [input channels], for layers that make or scale channels.
        opaque: Names of other layers with trained parameters whose input has a mark.
        output: Whether a mark is in the output of the model.
    """

    readers: dict[str, Tensor] = field(default_factory=dict)
    opaque: set[str] = field(default_factory=set)
    output: bool = False


class ChannelProbe:
    """Runs a model with marks (NaN) instead of features.

    Args:
        model: Model in evaluation mode.
        forward: Function that runs the model; all tensors in its result are outputs.

    Attributes:
        makers: Name -> number of output channels of each layer that ran, in the order of execution.

    Raises:
        ValueError: If `forward` returns no tensors, or features are NaN without any mark.
    """

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        self._model = model
        self._forward = forward
        named = dict(model.named_modules())
        self._makers = {name: module for name, module in named.items() if weight_layout(module) is not None}
        self._scalers = {n: m for n, m in named.items() if isinstance(m, _BatchNorm) or is_depthwise(m)}
        self._opaque = {
            name: module
            for name, module in named.items()
            if name not in self._makers
            and name not in self._scalers
            and any(p is not None and p.requires_grad for p in module._parameters.values())
        }
        self._outputs: dict[tuple[str, torch.Size], Any] = {}
        self.makers: dict[str, int] = {}
        self._record()
        self._check_clean(self.run(lambda name: None))

    def run(self, pattern: Pattern) -> Seen:
        """Returns what the marks reach if ``pattern(name)``, bool [C] or None, marks output channels of each layer."""
        seen = Seen()
        with self._stubs(pattern, seen), torch.no_grad():
            result = self._forward(self._model)
        seen.output = any(bool(tensor.isnan().any()) for tensor in tensors_in(result))
        return seen

    def run_strangers(self) -> Seen:
        """Returns what the outputs of other layers with trained parameters, which cannot be sliced, reach."""
        hooks = [
            module.register_forward_hook(lambda module, args, output: mapped(output, lambda t: torch.full_like(t, NAN)))
            for module in self._opaque.values()
        ]
        try:
            return self.run(lambda name: None)
        finally:
            for hook in hooks:
                hook.remove()

    def _check_clean(self, seen: Seen) -> None:
        dirty = [name for name, touched in seen.readers.items() if touched.any()] or sorted(seen.opaque)
        if dirty or seen.output:
            raise ValueError(
                f'{dirty[0] if dirty else "the output"} is NaN where all features are 0, so channels cannot be '
                'followed: give a forward that stops earlier, or other inputs'
            )

    def _record(self) -> None:
        """Records, in one ordinary run, the layers that take part and the shape of their output for each input."""

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple, output: Any) -> None:
                self.makers[name] = module.weight.shape[weight_layout(module)[0]]
                # Only the shape is kept: one expanded zero takes no memory. The sites of sparse tensors are kept too.
                self._outputs[name, features(args[0]).shape] = mapped(output, lambda t: t.new_zeros(()).expand(t.shape))

            return hook

        handles = [module.register_forward_hook(note(name)) for name, module in self._makers.items()]
        try:
            with torch.no_grad():
                result = self._forward(self._model)
        finally:
            for handle in handles:
                handle.remove()
        if next(tensors_in(result), None) is None:
            raise ValueError(f'forward must return tensors (nested in lists, tuples or dicts), not {type(result)}')

    @contextmanager
    def _stubs(self, pattern: Pattern, seen: Seen) -> Iterator[None]:
        handles = []
        for name, module in self._scalers.items():
            handles.append(module.register_forward_pre_hook(self._reader(name, seen)))
        for name, module in self._opaque.items():
            handles.append(module.register_forward_pre_hook(_opaque_hook(name, seen), with_kwargs=True))
        try:
            for name in self.makers:
                self._makers[name].forward = self._stub(name, pattern(name), seen)
            yield
        finally:
            for name in self.makers:
                self._makers[name].__dict__.pop('forward', None)
            for handle in handles:
                handle.remove()

    def _stub(self, name: str, marked: Tensor | None, seen: Seen) -> Callable[..., Any]:
        module = self._makers[name]
        note, dim = self._reader(name, seen), _channel_dim(module)

        def stub(value: Any, *args: Any, **kwargs: Any) -> Any:
            note(module, (value,))
            made = self._outputs[name, features(value).shape]
            return mapped(made, lambda zeros: _marked(zeros.contiguous(), dim, marked))

        return stub

    def _reader(self, name: str, seen: Seen) -> Callable[[nn.Module, tuple], None]:
        def note(module: nn.Module, args: tuple) -> None:
            touched = _touched(features(args[0]), _input_dim(module))
            seen.readers[name] = seen.readers.get(name, torch.zeros_like(touched)) | touched

        return note


def _opaque_hook(name: str, seen: Seen) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        if any(bool(tensor.isnan().any()) for tensor in tensors_in((args, kwargs))):
            seen.opaque.add(name)

    return hook


def _channel_dim(module: nn.Module) -> int:
    """Dimension of the channels in the input of a dense layer, counted from the last dimension."""
    return -1 - len(module.kernel_size) if isinstance(module, _ConvNd) else -1


def _input_dim(module: nn.Module) -> int:
    return 1 if isinstance(module, _BatchNorm) else _channel_dim(module)


def _touched(value: Tensor, dim: int) -> Tensor:
    others = [other for other in range(value.dim()) if other != dim % value.dim()]
    return (value.sum(others) if others else value).isnan().cpu()


def _marked(value: Tensor, dim: int, marked: Tensor | None) -> Tensor:
    if marked is None:
        return value
    return value.index_fill_(dim, marked.nonzero()[:, 0].to(value.device), NAN)


def features(value: Any) -> Tensor:
    """Returns the features of a sparse tensor, and any other tensor as it is."""
    return getattr(value, 'features', value)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every floating-point tensor changed: in lists, tuples, dicts and sparse tensors."""
    return map_tensors(value, lambda tensor: change(tensor) if tensor.is_floating_point() else tensor)
