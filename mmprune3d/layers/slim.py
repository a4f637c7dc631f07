"""Reduction of modules to fewer channels in place, from the shapes of a slim state dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def weight_layout(module: nn.Module) -> tuple[int, int] | None:
    """The dimensions (output channels, input channels) of a module's weight; None if channels are mixed otherwise.

    Supported are linear layers, convolutions and transposed convolutions without groups, and sparse convolutions of
    spconv 2 ``(out, *kernel, in)`` and mmcv ``(*kernel, in, out)``, recognized by their attributes, not by their class.
    """
    if isinstance(module, nn.Linear):
        return 0, 1
    if isinstance(module, _ConvNd):
        if module.groups != 1:
            return None
        return (1, 0) if isinstance(module, _ConvTransposeNd) else (0, 1)
    if is_sparse_conv(module):
        last = module.weight.dim() - 1
        of_mmcv = any(base.__module__.startswith('mmcv.') for base in type(module).__mro__)
        return (last, last - 1) if of_mmcv else (0, last)
    return None


def is_sparse_conv(module: nn.Module) -> bool:
    """Whether a module is a sparse convolution of spconv or mmcv, or of a subclass."""
    return hasattr(module, 'indice_key') and isinstance(getattr(module, 'weight', None), Tensor)


def is_depthwise(module: nn.Module) -> bool:
    """Whether a module is a convolution that processes every channel separately."""
    if not isinstance(module, _ConvNd) or isinstance(module, _ConvTransposeNd):
        return False
    return module.groups == module.in_channels == module.out_channels > 1


def slim_model_(model: nn.Module, structure: Mapping[str, Sequence[int]]) -> list[str]:
    """Gives the tensors of a model the shapes of `structure`, in place, and updates the attributes of its layers.

    The values are the first entries of the dense tensors: load the slim weights afterwards. Parameters are new objects,
    so call this before an optimizer is built. ``in_channels``, ``out_channels``, ``groups``, ``in_features``,
    ``out_features``, ``num_features`` and ``normalized_shape`` are updated, also those of mmcv's ConvModule.

    Args:
        model: The dense model.
        structure: Name of a tensor in the state dict -> shape; tensors that it does not name are not changed.

    Returns:
        Names of the tensors that became smaller; an empty list if `structure` is that of the dense model.

    Raises:
        ValueError: If `structure` names tensors that the model does not have, or shapes that are not part of the dense
            ones, or shapes within a layer that do not match, or that belong to a layer that cannot become narrower.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    owners = {name: name.rpartition('.')[::2] for name in structure}
    unknown = [name for name, (path, leaf) in owners.items() if path not in modules or leaf not in _own(modules[path])]
    if unknown:
        raise ValueError(
            f'the structure names {len(unknown)} tensors that are not in the model: {", ".join(unknown[:5])}; it '
            f'belongs to another model, this one has {", ".join(list(model.state_dict())[:3])}, ...'
        )
    changed: list[str] = []
    was_depthwise = {path: is_depthwise(module) for path, module in modules.items()}
    for name, (path, leaf) in owners.items():
        if _narrow_(modules[path], leaf, name, tuple(structure[name])):
            changed.append(name)
    for path in dict.fromkeys(owners[name][0] for name in changed):
        _renumber_(modules[path], path, was_depthwise[path])
        _renumber_wrapper_(modules.get(path.rpartition('.')[0]), modules[path])
    return changed


def _own(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in {**module._parameters, **module._buffers}.items() if value is not None}


def _narrow_(module: nn.Module, leaf: str, name: str, shape: tuple[int, ...]) -> bool:
    """Cuts one tensor to `shape`; returns whether that changed anything."""
    tensor = _own(module)[leaf]
    if tuple(tensor.shape) == shape:
        return False
    if tensor.dim() != len(shape) or not all(1 <= new <= old for new, old in zip(shape, tensor.shape)):
        raise ValueError(
            f'{name}: cannot make {list(shape)} of {list(tensor.shape)} by removing channels; the structure belongs to '
            'another model'
        )
    smaller = tensor.detach()[tuple(slice(size) for size in shape)].clone(memory_format=torch.contiguous_format)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(smaller, requires_grad=tensor.requires_grad)
    else:
        module._buffers[leaf] = smaller
    return True


def _renumber_(module: nn.Module, path: str, depthwise: bool) -> None:
    """Updates the width attributes of a layer from its weight, and checks its other tensors against it."""
    layout = weight_layout(module)
    if depthwise:
        out = module.groups = module.in_channels = module.out_channels = len(module.weight)
    elif isinstance(module, nn.Linear):
        out, module.in_features = module.weight.shape
        module.out_features = out
    elif layout is not None:
        out, module.in_channels = (module.weight.shape[dim] for dim in layout)
        module.out_channels = out
    elif isinstance(module, _BatchNorm):
        out = module.num_features = len(next(iter(_own(module).values())))
    elif isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        out = len(module.weight)
        module.normalized_shape = (out,)
    else:
        raise ValueError(f'{path}: a {type(module).__name__} cannot be made narrower; leave its tensors as they are')
    vectors = {name: list(value.shape) for name, value in _own(module).items() if value.dim() == 1}
    if any(shape != [out] for shape in vectors.values()):
        raise ValueError(f'{path}: the structure gives it {out} channels, but {vectors}; name all tensors of a layer')


def _renumber_wrapper_(parent: nn.Module | None, module: nn.Module) -> None:
    """Updates mmcv's ConvModule, which repeats the width attributes of its convolution."""
    if parent is not None and getattr(parent, 'conv', None) is module and hasattr(parent, 'in_channels'):
        parent.in_channels, parent.out_channels = module.in_channels, module.out_channels
