"""Key pruning in decoders written by others, with hooks on their layers.

No class is replaced and no forward is copied. A hook before each decoder layer replaces the keys that the decoder
passes by the remaining ones, and a hook after it asks the pruner which keys the next layer needs. The details of each
family of decoders are in a subclass of :class:`HookedDecoder`.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmprune3d.layers.attention import Keys, most_valid
from mmprune3d.layers.key_pruning import KeyRecord, make_pruner
from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.pruning.selection import once_per_tensor
from mmprune3d.pruning.tggbc import TgGBCPlan

from .fused_attention import FusedStandIn, bool_mask

MARK = 'mmprune3d_hooks'
"""Attribute of a decoder that stores its attached plan."""


class HookedDecoder(ABC):
    """A plan that is applied to one decoder; its class methods are the adapter of a family (see `adapters.Family`).

    The decoder must have ``layers`` that run one after the other, each exactly once. Their first argument and their
    output are the queries; other arguments are called ``key`` and, if they exist, ``value``, ``key_pos``,
    ``key_padding_mask`` and `mask_argument`.

    A plan that removes nothing changes nothing. With a plan that removes keys, the cross-attention also runs in a fused
    kernel; outputs of the layers before the first removal are then equal up to rounding.

    Args:
        model: Model in which `find` finds a decoder.
        plan: Keys to remove. Queries cannot be removed, because the decoders stack the outputs of their layers.
        record: Whether to keep the original ids of the keys; see ``KeyPruner.kept``.

    Raises:
        ValueError: If the plan does not match the decoder or its head.
    """

    LOOKS_FOR: ClassVar[str]
    """Description of what `fits` looks for, for the message about a model without adapter."""
    STAGES: ClassVar[Mapping[str, str]] = {}
    """Stage -> attribute of the model that contains it, for tables of times; the decoder need not be listed."""
    batch_first: ClassVar[bool] = True
    """Whether the decoder's tensors are [B, N, C] instead of [N, B, C]."""
    mask_argument: ClassVar[str] = 'cross_attn_mask'
    """Name of the layers' argument for the mask of the cross-attention, [N_q, N_k] or [B * heads, N_q, N_k]."""

    def __init__(self, model: nn.Module, plan: KeyPlan, record: bool = False) -> None:
        self.owner = self.owner_in(model)
        self.decoder = self.decoder_of(self.owner)
        self.layers = list(self.decoder.layers)
        self.stand_ins = [self.stand_in(layer) for layer in self.layers]
        self.plan = plan
        self._check_plan()
        self.pruner = make_pruner(plan, len(self.layers), record)
        self._handles: list[Any] = []
        self._keys: Keys | None = None
        self._pruned = False

    # Details of a family, implemented by subclasses.

    @classmethod
    @abstractmethod
    def fits(cls, module: nn.Module) -> bool:
        """Returns whether `module` contains both the decoder and the head of a detector of this family."""

    @staticmethod
    @abstractmethod
    def decoder_of(owner: nn.Module) -> nn.Module:
        """Returns the decoder of a module that `fits`."""

    @abstractmethod
    def stand_in(self, layer: nn.Module) -> FusedStandIn:
        """Creates the fused stand-in for the cross-attention of a decoder layer."""

    @abstractmethod
    def normed(self, output: Tensor) -> Tensor:
        """Converts the output of a layer to the input of the head, [B, N_q, C], with the norm."""

    @abstractmethod
    def logits(self, layer: int, query: Tensor) -> Tensor:
        """Computes the head's class logits [B, N_q, classes] from the output of `normed` of decoder layer `layer`."""

    @property
    @abstractmethod
    def activation(self) -> str:
        """The function from logits to scores: 'sigmoid', or 'softmax' with the background in the last column."""

    def cross_mask(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """Finds the mask of the cross-attention among the arguments of a layer."""
        return arguments.get(self.mask_argument)

    def with_cross_mask(self, arguments: Mapping[str, Any], mask: Tensor) -> dict[str, Any]:
        """Replaces the mask of the cross-attention in the arguments of a layer."""
        return {**arguments, self.mask_argument: mask}

    # Functions of the adapter.

    @classmethod
    def owner_in(cls, model: nn.Module) -> nn.Module | None:
        """Finds the first module of `model` that `fits`; None if there is none."""
        return next((module for module in model.modules() if cls.fits(module)), None)

    @classmethod
    def find(cls, model: nn.Module) -> nn.Module | None:
        """Finds the decoder whose keys can be pruned; None if the model is of another family."""
        owner = cls.owner_in(model)
        return None if owner is None else cls.decoder_of(owner)

    @classmethod
    def attach(cls, model: nn.Module, plan: KeyPlan) -> None:
        """Makes the decoder prune by `plan`; a plan attached before is replaced, unless this one is invalid."""
        hooked = cls(model, plan)
        cls.detach(model)
        setattr(hooked.decoder, MARK, hooked)
        if plan.removes:
            hooked.install()

    @classmethod
    def detach(cls, model: nn.Module) -> None:
        """Removes the plan; the model is then bit for bit as it was before `attach`."""
        hooked = cls._attached(model)
        if hooked is not None:
            hooked.remove()
            delattr(hooked.decoder, MARK)

    @classmethod
    def is_attached(cls, model: nn.Module) -> bool:
        """Returns whether a plan is attached."""
        return cls._attached(model) is not None

    @classmethod
    def has_pruned(cls, model: nn.Module) -> bool:
        """Returns whether any key was removed since `attach`."""
        return cls._attached(model).pruner.has_pruned

    @classmethod
    def record_keys(cls, model: nn.Module, call: Callable[[], object]) -> KeyRecord:
        """The keys that each decoder layer attends to during `call`, with or without a plan attached."""
        attached = cls._attached(model)
        recorder = cls(model, TgGBCPlan(r=0) if attached is None else attached.plan, record=True)
        was_installed = attached is not None and attached.remove()
        recorder.install()
        try:
            call()
        finally:
            recorder.remove()
            if was_installed:
                attached.install()
        return recorder.pruner.recorded

    @classmethod
    def hear_keys(cls, model: nn.Module, heard: Callable[[int], None]) -> RemovableHandle:
        """Calls `heard` with the largest number of valid keys of a sample, in each forward pass."""
        reader = cls(model, TgGBCPlan(r=0))

        def before(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            names = list(inspect.signature(layer.forward).parameters) if len(args) > 1 else []
            heard(most_valid(reader._read({**dict(zip(names[1:], args[1:])), **kwargs})))

        return reader.layers[0].register_forward_pre_hook(before, with_kwargs=True)

    @classmethod
    def _attached(cls, model: nn.Module) -> HookedDecoder | None:
        return getattr(cls.find(model), MARK, None)

    # Hooks and stand-ins.

    def install(self) -> None:
        """Registers hooks on the layers and puts fused kernels into their cross-attention."""
        for layer, stand_in in zip(self.layers, self.stand_ins, strict=True):
            stand_in.install()
            self._handles.append(layer.register_forward_pre_hook(self._before_layer, with_kwargs=True))
            self._handles.append(layer.register_forward_hook(self._after_layer))

    def remove(self) -> bool:
        """Reverts `install`; returns whether it was installed."""
        was_installed = bool(self._handles)
        for handle in self._handles:
            handle.remove()
        for stand_in in self.stand_ins if was_installed else ():
            stand_in.remove()
        self._handles, self._keys = [], None
        return was_installed

    def _check_plan(self) -> None:
        title, plan = self.plan.title, self.plan
        if getattr(plan, 'q', 0):
            raise ValueError(
                f'{title}: q={plan.q} removes queries, but {type(self.decoder).__name__} needs the same queries in all '
                'layers; leave q out'
            )
        scores = isinstance(plan, TgGBCPlan) and plan.removes and plan.score != 'none'
        if scores and plan.activation != self.activation:
            raise ValueError(
                f'{title}: activation={plan.activation!r} does not fit the head of {type(self.owner).__name__}, which '
                f'is trained with {self.activation}: set activation={self.activation!r}'
            )

    def _before_layer(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        index = self.layers.index(layer)
        # Decoders pass the same argument by position or by name, so all but the queries are collected by name.
        names = list(inspect.signature(layer.forward).parameters) if len(args) > 1 else []
        arguments = {**dict(zip(names[1:], args[1:])), **kwargs}
        if index == 0:
            self._keys, self._pruned = self._read(arguments), False
        # No keys are chosen after the last layer, so its attention need not be recorded.
        self.stand_ins[index].armed = index < len(self.layers) - 1
        # Until keys were removed the arguments are passed on as they are: a plan that removes nothing changes nothing.
        return (args[:1], self._write(arguments)) if self._pruned else (args, kwargs)

    def _after_layer(self, layer: nn.Module, args: tuple, output: Tensor) -> None:
        index, keys = self.layers.index(layer), self._keys
        if index == len(self.layers) - 1:
            self._keys = None
            return
        with torch.no_grad():
            query = self.normed(output)
        record = self.stand_ins[index].take_record(keys)
        self._keys = self.pruner(index, query, keys, record, self.logits).keys
        self._pruned |= self._keys is not keys

    def _read(self, arguments: Mapping[str, Any]) -> Keys:
        """The keys that the decoder passes to a layer, converted to batch-first."""
        if arguments.get('key') is None:
            raise ValueError(f'{type(self.decoder).__name__} passes no `key` to its layers')
        turned = once_per_tensor(self._turned)
        key = turned(arguments['key'])
        value = key if arguments.get('value') is None else turned(arguments['value'])
        padding = bool_mask(arguments.get('key_padding_mask'))
        if padding is not None and not padding.any():
            padding = None  # a mask without padding would only slow down the kernel
        mask = mask_per_sample(self.cross_mask(arguments), len(key))
        return Keys(key, value, padding, mask, turned(arguments.get('key_pos')))

    def _write(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a layer with the remaining keys; arguments that the decoder does not pass are not added."""
        keys, turned = self._keys, once_per_tensor(self._turned)
        left = {'key': keys.key, 'value': keys.value, 'key_pos': keys.key_pos}
        left = {name: turned(tensor) for name, tensor in left.items() if arguments.get(name) is not None}
        arguments = {**arguments, **left}
        if arguments.get('key_padding_mask') is not None:
            arguments['key_padding_mask'] = keys.padding_mask
        if keys.attention_mask is None:
            return arguments
        # After pruning each sample has other keys, so a mask that was shared becomes one per sample and head.
        heads = self.stand_ins[0].attention.num_heads
        return self.with_cross_mask(arguments, keys.attention_mask.repeat_interleave(heads, dim=0))

    def _turned(self, tokens: Tensor) -> Tensor:
        """Converts between the decoder's layout and batch-first, in either direction."""
        return tokens if self.batch_first else tokens.transpose(0, 1)


def mask_per_sample(mask: Tensor | None, batch: int) -> Tensor | None:
    """Reshapes a mask [N_q, N_k] or [B * heads, N_q, N_k] to [B, N_q, N_k] bool.

    Raises:
        ValueError: If the heads of a sample have different masks, because keys are removed for all heads together.
    """
    mask = bool_mask(mask)
    if mask is None or mask.dim() == 2:
        return None if mask is None else mask.expand(batch, -1, -1)
    mask = mask.unflatten(0, (batch, -1))
    if (mask != mask[:, :1]).any():
        raise ValueError('cross-attention masks that differ between heads cannot be pruned')
    return mask[:, 0]


def activation_of(head: nn.Module) -> str:
    """Returns the function with which a head of mmdet turns logits into scores, by its classification loss."""
    return 'sigmoid' if head.loss_cls.use_sigmoid else 'softmax'
