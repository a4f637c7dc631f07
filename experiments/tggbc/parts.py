"""Which settings the study of key pruning tries: the ablations of the tgGBC paper (sections 4.2, 4.3 and 4.5)."""

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
        label: What the line is.
        points: (place on the x axis, plans); several plans at one place are repetitions with other seeds.
    """

    label: str
    points: tuple[tuple[float | str, tuple[KeyPlan, ...]], ...]


@dataclass(frozen=True)
class Part:
    """One question of the study.

    Attributes:
        title: Of table and plot.
        x_label: What the x axis shows, with its unit.
        curves: What is compared.
        is_ordered: Whether neighbours on the x axis may be joined by lines.
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
    """What a plan is made for.

    Attributes:
        num_keys: Keys that the first layer attends to.
        num_layers: Decoder layers.
    """

    num_keys: int
    num_layers: int

    def removing(self, share: float) -> int:
        """The count for a share of the keys."""
        return round(share * self.num_keys)

    def layer_counts(self, most: int = MOST_LAYERS) -> range:
        """Valid n, up to `most`."""
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
    """Figure 5: how many keys can go."""
    plan = partial(TgGBCPlan, n=2, k=175)
    return Part('Keys removed (r); n = 2, k = 175', PERCENT, (_over_shares(decoder, 'tgGBC', plan, SHARES),))


def layers_part(decoder: Decoder) -> Part:
    """Table 4: over how many layers."""
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
    """Table 5 and figure 7: what a query's confidence is."""
    r, curves = decoder.removing(0.875), []
    for n in decoder.layer_counts(2):
        points = [(score, (TgGBCPlan(r=r, n=n, k=175, score=score),)) for score in ('max', 'mean', 'min')]
        points.append(('none (Eq. 10)', (TgGBCPlan(r=r, n=n, score='none'),)))
        curves.append(Curve(f'n = {n}', tuple(points)))
    return Part('Classification score; r = 87.5 %, k = 175', 'score over classes', tuple(curves), is_ordered=False)


def merging_part(decoder: Decoder) -> Part:
    """Tables 2 and 9: token merging of as many keys."""
    curves = []
    for n in decoder.layer_counts(2):
        curves.append(_over_shares(decoder, f'tgGBC, n = {n}', partial(TgGBCPlan, n=n, k=175), MERGED_SHARES))
        curves.append(_over_shares(decoder, f'ToMe, n = {n}', partial(ToMePlan, n=n), MERGED_SHARES))
    return Part('tgGBC and ToMe at equal r; k = 175', PERCENT, tuple(curves))


def random_part(decoder: Decoder) -> Part:
    """The control: what is left of the accuracy when chance decides."""
    curves = (
        _over_shares(decoder, 'tgGBC', partial(TgGBCPlan, n=2, k=175), SHARES),
        _over_shares(decoder, f'random, {len(SEEDS)} seeds', partial(RandomPlan, n=2), SHARES, SEEDS),
    )
    return Part('Guided and random removal; n = 2, k = 175', PERCENT, curves)


def place_part(decoder: Decoder) -> Part:
    """Everything removed after one layer, by its own attention or at random: which layers know what later ones need."""
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
"""Name on the command line -> part."""


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
