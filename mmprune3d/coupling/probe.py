"""Where channels go: NaN put on channels where they are made shows which layers read them, whatever lies between.

Concatenation, flattening, residual sums, pooling, resizing, sparse tensors and view transforms need no rule of their
own: a NaN survives them all. Layers that make channels are replaced by zeros, so that nothing else is on the way.
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
    """What one run with marked channels touched.

    Attributes:
        readers: Layer name -> bool [input channels], for layers that make channels and those that scale them.
        opaque: Names of layers with trained parameters of another kind that met a mark.
        output: Whether a mark is in the output.
    """

    readers: dict[str, Tensor] = field(default_factory=dict)
    opaque: set[str] = field(default_factory=set)
    output: bool = False


class ChannelProbe:
    """Runs a model with marks instead of features.

    Args:
        model: In eval mode.
        forward: Runs the model; everything tensor-like in what it returns is output.

    Attributes:
        makers: Name -> number of output channels, for the layers that ran, in the order of execution.

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
        """What is touched when ``pattern(name)``, bool [C] or None, marks output channels of the layer `name`."""
        seen = Seen()
        with self._stubs(pattern, seen), torch.no_grad():
            result = self._forward(self._model)
        seen.output = any(bool(tensor.isnan().any()) for tensor in tensors_in(result))
        return seen

    def run_strangers(self) -> Seen:
        """What is touched by the outputs of layers with trained parameters of another kind."""
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
                f'{dirty[0] if dirty else "the output"} is NaN where all features are 0, so that channels cannot be '
                'followed: give a forward that stops earlier, or other inputs'
            )

    def _record(self) -> None:
        """One ordinary run: which layers take part, and what they make of which input."""

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple, output: Any) -> None:
                self.makers[name] = module.weight.shape[weight_layout(module)[0]]
                # Not the values: one element stands for all of them. The sites of sparse tensors do not change.
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
    """Where a dense layer has its channels, counted from the last dimension."""
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
    """A tensor, or the features of a sparse one."""
    return getattr(value, 'features', value)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every floating-point tensor changed: in lists, tuples, dicts and sparse tensors."""
    return map_tensors(value, lambda tensor: change(tensor) if tensor.is_floating_point() else tensor)
