"""Whether two models compute the same, although rounding may tip what is chosen on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from mmprune3d.layers.nested import tensors_in
from mmprune3d.layers.preserved import evaluating


class Decisions(TorchDispatchMode):
    """Records what is decided by floating-point numbers (order, index of the largest, comparisons), or repeats it.

    Args:
        made: What another run recorded under `made`; it replaces what this run decides, where it has the same shape
            (where it has not, the decision is one per channel, of which there are fewer). None records.
    """

    def __init__(self, made: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.made: list[Tensor] = []
        self._given = None if made is None else iter(made)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Calls the operator, and replaces the whole numbers and booleans that it made of other numbers."""
        result = func(*args, **(kwargs or {}))
        if func._schema.is_mutable or not any(_is_float(leaf) for leaf in tree_leaves((args, kwargs))):
            return result
        leaves, structure = tree_flatten(result)
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and not _is_float(leaf):
                leaves[place] = self._settled(leaf)
        return tree_unflatten(leaves, structure)

    def _settled(self, own: Tensor) -> Tensor:
        if self._given is None:
            self.made.append(own)
            return own
        theirs = next(self._given, own)
        return theirs if theirs.shape == own.shape and theirs.dtype == own.dtype else own


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Single precision on GPUs too: TF32 has an error of 1e-3, which would hide a wrong channel."""
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


@torch.no_grad()
def output_difference(model: nn.Module, reference: nn.Module, call: Callable[[nn.Module], Any]) -> float:
    """The largest difference of an output tensor, relative to the largest value of that tensor.

    What `reference` decides (which cells become proposals, in which order) holds for `model` too: there are always two
    scores that differ by rounding only.

    Args:
        model: The one to check; in evaluation mode during the calls, as is the other.
        reference: A model that computes what is expected.
        call: Runs a model on always the same sample; returns nested tensors.

    Raises:
        ValueError: If the outputs have different shapes.
    """
    recording = Decisions()
    with _without_tf32(), evaluating(model), evaluating(reference):
        with recording:
            theirs = list(tensors_in(call(reference)))
        with Decisions(recording.made):
            ours = list(tensors_in(call(model)))
    shapes = [[list(tensor.shape) for tensor in tensors] for tensors in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f'the outputs have the shapes {shapes[0]}, those of the reference {shapes[1]}')
    scales = (tensor.abs().amax().clamp(min=1e-12) for tensor in theirs)
    return max(float((a - b).abs().amax() / scale) for a, b, scale in zip(ours, theirs, scales) if a.numel())
