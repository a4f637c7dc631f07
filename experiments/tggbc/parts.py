"""The settings that the study of key pruning tests: the ablations of the tgGBC paper (sections 4.2, 4.3 and 4.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.pruning.tome import ToMePlan

from .chance import RandomPlan

SHARES = (0.25, 0.5, 0.7, 0.875, 0.95)
HIGH_SHARES = (0.7, 0.875)
VOTERS = (30, 60, 100, 175, 0)
MERGED_SHARES = (0.25, 0.5, 0.6, 0.7)
SEEDS = (0, 1, 2)
MOST_LAYERS = 5


@dataclass(frozen=True)
class Curve:
    """One line of a plot.

    Attributes:
        label: Label of the line.
        points: (place on the x axis, plans); several plans at one place differ in the seed only.
    """

    label: str
    points: tuple[tuple[float | str, tuple[KeyPlan, ...]], ...]


@dataclass(frozen=True)
class Part:
    """One question of the study.

    Attributes:
        title: Title of table and plot.
        x_label: What the x axis shows, with its unit.
        curves: The lines that are compared.
        is_ordered: Whether the x axis is ordered, so that points are joined by lines.
    """

    title: str
    x_label: str
    curves: tuple[Curve, ...]
    is_ordered: bool = True

    @property
    def plans(self) -> tuple[KeyPlan, ...]:
        """All plans, each once."""
        return tuple(dict.fromkeys(plan for curve in self.curves for _, plans in curve.points for plan in plans))


class Decoder(NamedTuple):
    """The decoder that plans are made for.

    Attributes:
        num_keys: Number of keys that the first layer attends to.
        num_layers: Number of decoder layers.
    """

    num_keys: int
    num_layers: int

    def removing(self, share: float) -> int:
        """The number of keys that a share of them is."""
        return round(share * self.num_keys)

    def layer_counts(self, most: int = MOST_LAYERS) -> range:
        """Valid numbers of pruning layers n, up to `most`."""
        return range(1, min(most, self.num_layers - 1) + 1)


PERCENT = 'keys removed (% of $N_k$)'


def _percent(share: float) -> str:
    return f'{100 * share:g} %'


def _over_shares(
    decoder: Decoder, label: str, plan: Callable[..., KeyPlan], shares: Sequence[float], seeds: Sequence[int] = ()
) -> Curve:
    variants = [{'seed': seed} for seed in seeds] or [{}]
    points = ((100 * share, tuple(plan(r=decoder.removing(share), **more) for more in variants)) for share in shares)
    return Curve(label, tuple(points))


def removal_part(decoder: Decoder) -> Part:
    """Figure 5: how many keys can be removed."""
    plan = partial(TgGBCPlan, n=2, k=175)
    return Part('Keys removed (r); n = 2, k = 175', PERCENT, (_over_shares(decoder, 'tgGBC', plan, SHARES),))


def layers_part(decoder: Decoder) -> Part:
    """Table 4: over how many layers they are removed."""
    curves = []
    for share in HIGH_SHARES:
        r = decoder.removing(share)
        points = tuple((str(n), (TgGBCPlan(r=r, n=n, k=175),)) for n in decoder.layer_counts())
        curves.append(Curve(f'r = {_percent(share)}', points))
    return Part('Pruning layers (n); k = 175', 'pruning layers n', tuple(curves))


def voters_part(decoder: Decoder) -> Part:
    """Figure 4: how many queries vote."""
    r = decoder.removing(0.875)
    points = tuple((str(k or 'all'), (TgGBCPlan(r=r, n=2, k=k),)) for k in VOTERS)
    return Part('Queries that vote (k); r = 87.5 %, n = 2', 'queries k', (Curve('tgGBC', points),))


def score_part(decoder: Decoder) -> Part:
    """Table 5 and figure 7: how the confidence of a query is computed from its class scores."""
    r, curves = decoder.removing(0.875), []
    for n in decoder.layer_counts(2):
        points = [(score, (TgGBCPlan(r=r, n=n, k=175, score=score),)) for score in ('max', 'mean', 'min')]
        points.append(('none (Eq. 10)', (TgGBCPlan(r=r, n=n, score='none'),)))
        curves.append(Curve(f'n = {n}', tuple(points)))
    return Part('Classification score; r = 87.5 %, k = 175', 'score over classes', tuple(curves), is_ordered=False)


def merging_part(decoder: Decoder) -> Part:
    """Tables 2 and 9: ToMe with as many removed keys."""
    curves = []
    for n in decoder.layer_counts(2):
        curves.append(_over_shares(decoder, f'tgGBC, n = {n}', partial(TgGBCPlan, n=n, k=175), MERGED_SHARES))
        curves.append(_over_shares(decoder, f'ToMe, n = {n}', partial(ToMePlan, n=n), MERGED_SHARES))
    return Part('tgGBC and ToMe at equal r; k = 175', PERCENT, tuple(curves))


def random_part(decoder: Decoder) -> Part:
    """The control: accuracy if the removed keys are chosen at random."""
    curves = (
        _over_shares(decoder, 'tgGBC', partial(TgGBCPlan, n=2, k=175), SHARES),
        _over_shares(decoder, f'random, {len(SEEDS)} seeds', partial(RandomPlan, n=2), SHARES, SEEDS),
    )
    return Part('Guided and random removal; n = 2, k = 175', PERCENT, curves)


def place_part(decoder: Decoder) -> Part:
    """All keys removed after one layer, by its attention or at random: which layers know what later layers need."""
    curves = []
    for label, plan in (('tgGBC', partial(TgGBCPlan, k=175)), ('random', RandomPlan)):
        amounts = [[0] * layer + [decoder.removing(0.7)] for layer in range(len(decoder.layer_counts(4)))]
        points = tuple((str(len(amount)), (plan(r=amount),)) for amount in amounts)
        curves.append(Curve(label, points))
    return Part('All removed after one layer; r = 70 %, k = 175', 'the layer', tuple(curves))


PARTS: dict[str, Callable[[Decoder], Part]] = {
    'r': removal_part,
    'n': layers_part,
    'k': voters_part,
    'score': score_part,
    'tome': merging_part,
    'random': random_part,
    'place': place_part,
}
"""Name on the command line -> function that makes the part."""


def choose_parts(text: str) -> tuple[str, ...]:
    """Names from a list such as 'r,n,tome'.

    Raises:
        ValueError: If a name is unknown or there is none.
    """
    names = tuple(filter(None, (name.strip() for name in text.split(','))))
    unknown = [name for name in names if name not in PARTS]
    if unknown or not names:
        raise ValueError(f'unknown part {", ".join(unknown) or repr(text)}; valid are {", ".join(PARTS)}')
    return names
