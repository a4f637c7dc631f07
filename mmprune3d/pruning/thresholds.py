"""From scores to keep masks: exact counts, ties decided by order, any number of weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from .checks import shortened

SCOPES = ('global', 'per_group', 'per_layer')
ROUNDINGS = ('nearest', 'down')
TIES = ('first', 'drop')


def num_removed(total: int, sparsity: float, rounding: str = 'nearest') -> int:
    """How many of `total` weights are removed.

    Args:
        total: Number of weights.
        sparsity: Share to remove, 0..1.
        rounding: 'nearest' (halves up), or 'down' as in Synaptic-Flow, which truncates the product of floats.
    """
    return math.floor(total * sparsity + 0.5) if rounding == 'nearest' else int(sparsity * total)


@torch.no_grad()
def keep_masks(
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    groups: Mapping[str, str] | None = None,
    scope: str = 'global',
    protected: Collection[str] = (),
    min_keep: int | float = 0,
    rounding: str = 'nearest',
    ties: str = 'first',
) -> dict[str, Tensor]:
    """Keeps the highest scores (AlterMOMA Eq. 2: the k = (1 - sparsity) N weights of highest importance).

    Scores may be those of single weights or, as vectors, of channels. Weights that must stay (`protected`, `min_keep`)
    count in N: `sparsity` of all scores is removed, from the others. Only with `scope='per_layer'` fewer are removed
    where not enough others are left.

    Args:
        scores: Name -> scores of any shape; -inf is removed first.
        sparsity: Share to remove, 0..1; exactly `num_removed` weights are removed.
        groups: Name -> group; needed for `scope='per_group'`.
        scope: 'global' ranks all scores together, 'per_group' and 'per_layer' remove the share in each group or tensor.
        protected: Names, or beginnings of names up to a dot, of tensors that are kept whole.
        min_keep: How many of the best of each tensor are kept at least: a number, or a share below 1 (rounded up).
        rounding: See `num_removed`.
        ties: Which of equal scores at the threshold are kept: 'first' keeps the first by name, then by position;
            'drop' removes them all, so that more are removed than asked for (Synaptic-Flow's convention).

    Returns:
        Name -> bool mask of the same shape, True = keep, in the order of `scores`.

    Raises:
        ValueError: If a setting is invalid, a score is nan, a group or protected name is unknown, or more must stay
            than `sparsity` leaves.
    """
    _check(scores, sparsity, groups, scope, min_keep, rounding, ties)
    whole = protected_names(scores, protected)
    masks: dict[str, Tensor] = {}
    for what, names in _parts(scores, groups, scope):
        sizes = [scores[name].numel() for name in names]
        flat = torch.cat([_flat(scores[name]) for name in names])
        removed = num_removed(len(flat), sparsity, rounding)
        stays = torch.cat([_forced(scores[name], name in whole, min_keep) for name in names])
        free = flat[~stays] if bool(stays.any()) else flat
        if scope == 'per_layer':
            removed = min(removed, len(free))
        if removed > len(free):
            raise ValueError(
                f'sparsity={sparsity} removes {removed} of {len(flat)} weights ({what}), but {len(flat) - len(free)} '
                f'must stay: {len(whole & set(names))} tensors are protected, min_keep={min_keep}'
            )
        kept = _highest(free, len(free) - removed, ties)
        keep = kept if len(free) == len(flat) else stays.masked_scatter(~stays, kept)
        masks |= {name: mask.view(scores[name].shape) for name, mask in zip(names, keep.split(sizes))}
    return {name: masks[name].clone() for name in scores}


def protected_names(names: Collection[str], protected: Collection[str]) -> set[str]:
    """The `names` that an entry of `protected` names, or that lie below it.

    Raises:
        ValueError: If an entry matches none.
    """
    found: set[str] = set()
    for entry in protected:
        below = {name for name in names if name == entry or name.startswith(f'{entry}.')}
        if not below:
            raise ValueError(f'protected: {entry!r} matches no scores; there are {shortened(sorted(names), 20)}')
        found |= below
    return found


def _check(
    scores: Mapping[str, Tensor],
    sparsity: float,
    groups: Mapping[str, str] | None,
    scope: str,
    min_keep: int | float,
    rounding: str,
    ties: str,
) -> None:
    for name, value, valid in (('scope', scope, SCOPES), ('rounding', rounding, ROUNDINGS), ('ties', ties, TIES)):
        if value not in valid:
            raise ValueError(f'{name}={value!r}; valid are {", ".join(valid)}')
    if not scores:
        raise ValueError('there are no scores')
    if not 0 <= sparsity <= 1:
        raise ValueError(f'sparsity={sparsity!r} must lie between 0 and 1')
    if min_keep < 0 or (isinstance(min_keep, float) and min_keep >= 1):
        raise ValueError(f'min_keep={min_keep!r} must be a whole number, or a share below 1')
    unknown = [name for name in scores if name not in (groups or {})] if scope == 'per_group' else []
    if unknown:
        raise ValueError(f"scope='per_group': no group is given for {shortened(unknown)}")
    bad = [name for name, score in scores.items() if bool(score.isnan().any())]
    if bad:
        raise ValueError(f'scores are nan in {shortened(bad)}')


def _parts(
    scores: Mapping[str, Tensor], groups: Mapping[str, str] | None, scope: str
) -> Iterator[tuple[str, list[str]]]:
    """What is ranked together, and its name; sorted, so that ties do not depend on the order of the mapping."""
    names = sorted(scores)
    if scope == 'global':
        yield 'global', names
    elif scope == 'per_layer':
        yield from ((name, [name]) for name in names)
    else:
        group_of = groups or {}
        for group in sorted({group_of[name] for name in names}):
            yield group, [name for name in names if group_of[name] == group]


def _flat(score: Tensor) -> Tensor:
    return score.detach().flatten().to(torch.promote_types(score.dtype, torch.float32))


def _forced(score: Tensor, whole: bool, min_keep: int | float) -> Tensor:
    """What stays whatever its rank, flat."""
    num = score.numel()
    least = min(num, math.ceil(min_keep * num - 1e-9) if isinstance(min_keep, float) else min_keep)
    return _highest(_flat(score), num if whole else least, 'first')


def _highest(values: Tensor, keep: int, ties: str) -> Tensor:
    """Which of `values` [N] are the `keep` highest; among equal ones the first."""
    if keep in (0, len(values)):
        return torch.full_like(values, bool(keep), dtype=torch.bool)
    threshold = kth_smallest(values, len(values) - keep)
    kept = values > threshold
    if ties == 'first':
        missing = keep - int(kept.sum())
        kept[(values == threshold).nonzero()[:missing, 0]] = True
    return kept


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """The k-th smallest of `values` [N], from 1, as `Tensor.kthvalue`; by counting, 16 bits of the numbers at a time.

    `kthvalue` takes quadratic time for values in descending order (hours for a million), and `torch.quantile` refuses
    more than 2^24 of them.

    Args:
        values: float32 or float64, without nan.
        k: 1 <= k <= N.
    """
    bits = 8 * values.element_size()
    rest = _flip_negative(values.view(torch.int64 if bits == 64 else torch.int32), bits)
    for shift in range(bits - 16, -1, -16):
        digits = (rest >> shift) + 2**15 if shift == bits - 16 else (rest >> shift) & 0xFFFF
        counts = digits.bincount(minlength=2**16).cumsum(0)
        digit = int((counts < k).sum())
        k -= int(counts[digit - 1]) if digit else 0
        rest = rest[digits == digit]
    return _flip_negative(rest[:1], bits).view(values.dtype)[0]


def _flip_negative(numbers: Tensor, bits: int) -> Tensor:
    """Bits of floats to integers in the same order, and back."""
    return numbers ^ ((numbers >> (bits - 1)) & (2 ** (bits - 1) - 1))


@torch.no_grad()
def project_nm(mask: Tensor, scores: Tensor, n: int = 2, m: int = 4, dim: int = 1) -> Tensor:
    """The part of a mask that n:m sparsity allows: of every `m` weights in a row along `dim`, the `n` best that stay.

    Args:
        mask: Bool mask, True = keep.
        scores: Scores of the same shape.
        n: How many weights of a block may stay, 0 <= n <= m.
        m: Length of a block. A shorter block at the end may keep `n` too.
        dim: The dimension of the input channels: 1 for (out, in) and (out, in, kh, kw), -1 for spconv's (out, kd, kh,
            kw, in).

    Raises:
        ValueError: If shapes differ, `n` is out of range, or a score is nan.
    """
    if mask.shape != scores.shape or not 0 <= n <= m or bool(scores.isnan().any()):
        raise ValueError(
            f'n:m sparsity: mask {tuple(mask.shape)} and scores {tuple(scores.shape)} must have one shape, scores must '
            f'not be nan, and 0 <= n <= m, got {n}:{m}'
        )
    num = mask.shape[dim]
    padding = (0, -num % m)
    blocks = torch.nn.functional.pad(mask.movedim(dim, -1), padding).unflatten(-1, (-1, m))
    values = torch.nn.functional.pad(scores.movedim(dim, -1), padding).unflatten(-1, (-1, m))
    by_score = values.argsort(dim=-1, descending=True, stable=True)
    kept_first = blocks.gather(-1, by_score).to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    best = by_score.gather(-1, kept_first)[..., :n]
    allowed = torch.zeros_like(blocks).scatter_(-1, best, True) & blocks
    return allowed.flatten(-2)[..., :num].movedim(-1, dim).contiguous()
