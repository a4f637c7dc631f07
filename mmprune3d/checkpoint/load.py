"""Strict loading of weights.

mmengine prints which tensors do not match and continues with random weights. :func:`load_state_dict` replaces its
function (see :func:`mmprune3d.compat.install_strict_loading`): a tensor of another shape is an error, and missing and
unexpected keys are reported in one message.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from mmengine.dist import get_rank
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from .mismatch import CheckpointMismatchError, explain, parse_error
from .sparse_layout import with_sparse_versions

HEADLINE = 'The model and loaded state dict do not match exactly'
PREPARERS: list[Callable[[nn.Module, Mapping[str, Tensor]], None]] = []
"""Functions of model and state dict that run before loading, to prepare the model for tensors of pruned models only."""


@dataclass
class _Report:
    """Keys and errors that the modules reported while they were loaded."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def load_state_dict(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    strict: bool = False,
    logger: logging.Logger | str | None = None,
) -> None:
    """Loads weights into a model; replaces the function of the same name in ``mmengine.runner.checkpoint``.

    Load pre-hooks and post-hooks, versions in ``state_dict._metadata`` and model wrappers work as in mmengine, and
    ``num_batches_tracked`` may be missing. Weights of sparse convolutions are read in the order that their shapes show,
    whether or not the state dict still has its ``_metadata``.

    Args:
        module: The model, with or without a wrapper.
        state_dict: Name of each tensor -> tensor. It is not modified.
        strict: Whether missing and unexpected keys are errors too.
        logger: Logger of the message about missing and unexpected keys, as in ``mmengine.logging.print_log``.

    Raises:
        CheckpointMismatchError: (a RuntimeError) If a shape differs, if no key matches, or, with `strict`, if keys are
            missing or unexpected. Matching tensors have been loaded by then.
    """
    model = module.module if is_model_wrapper(module) else module
    for prepare in PREPARERS:
        prepare(model, state_dict)
    report = _Report()
    _load(module, dict(state_dict), with_sparse_versions(model, state_dict), '', report)
    missing = [key for key in report.missing if 'num_batches_tracked' not in key]
    if report.errors:
        raise CheckpointMismatchError(_explain_errors(report.errors))
    if state_dict and missing and len(report.unexpected) >= len(state_dict):
        raise CheckpointMismatchError(_explain_strangers(missing, report.unexpected))
    if not missing and not report.unexpected:
        return
    message = summarise(missing, report.unexpected)
    if strict:
        raise CheckpointMismatchError(message)
    if get_rank() == 0:
        print_log(message, logger=logger, level=logging.WARNING)


def _load(module: nn.Module, state: dict[str, Tensor], metadata: Mapping, prefix: str, report: _Report) -> None:
    """Loads one module and its children; `state` holds the tensors below `prefix` and may be changed by load hooks."""
    if is_model_wrapper(module) or isinstance(module, BaseTTAModel):
        module = module.module
    module._load_from_state_dict(
        state, prefix, metadata.get(prefix[:-1], {}), True, report.missing, report.unexpected, report.errors
    )
    for name, child in module._modules.items():
        if child is not None:
            below = f'{prefix}{name}.'
            _load(child, {k: v for k, v in state.items() if k.startswith(below)}, metadata, below, report)
    for hook in module._load_state_dict_post_hooks.values():
        # Post-hooks modify the lists in place, as documented by torch.
        hook(module, _IncompatibleKeys(report.missing, report.unexpected))


def _explain_errors(errors: list[str]) -> str:
    """Combines the errors that torch reports into one message; those that are not about shapes are not changed."""
    parsed = [(error, parse_error(error)) for error in errors]
    mismatches = [mismatch for _, mismatch in parsed if mismatch is not None]
    others = [error for error, mismatch in parsed if mismatch is None]
    parts = [HEADLINE, *([explain(mismatches)] if mismatches else []), *others]
    return '\n'.join(parts)


def _explain_strangers(missing: list[str], unexpected: list[str]) -> str:
    """The message for a checkpoint none of whose keys is in the model."""
    return (
        f'{HEADLINE}: none of its {len(unexpected)} keys is in the model, nothing would be loaded.\n'
        f'  the checkpoint has, for example: {", ".join(unexpected[:3])}\n'
        f'  the model expects, for example: {", ".join(missing[:3])}\n'
        '  -> It belongs to another model, or its keys have another prefix (revise_keys of load_checkpoint, '
        'prefix of init_cfg).'
    )


def summarise(missing: Iterable[str], unexpected: Iterable[str]) -> str:
    """Combines missing and unexpected keys into one message, counted by the modules that they belong to."""
    lines = [HEADLINE]
    for label, keys in (
        ('not in the checkpoint, left as initialised', list(missing)),
        ('only in the checkpoint, not used', list(unexpected)),
    ):
        if keys:
            lines.append(f'  {label}: {len(keys)} ({count_by_module(keys)})')
    return '\n'.join(lines)


def count_by_module(keys: Iterable[str], depth: int = 2, shown: int = 8) -> str:
    """Counts keys by the first `depth` parts of their names, for example ``img_backbone.layer1: 24, img_neck: 8``.

    Args:
        keys: Names from a state dict.
        depth: Number of parts of a name that form a group.
        shown: Largest number of groups that are listed; further ones are only counted.
    """
    groups = Counter('.'.join(key.split('.')[:-1][:depth]) or key for key in keys)
    named = [f'{name}: {count}' for name, count in groups.most_common(shown)]
    rest = len(groups) - len(named)
    return ', '.join(named) + (f' and {rest} more groups' if rest > 0 else '')
