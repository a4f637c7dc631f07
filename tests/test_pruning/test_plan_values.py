"""Property tests: any values for the settings of plans, from a config or a command line."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmprune3d.layers.attention import AttentionRecord, Keys
from mmprune3d.layers.key_pruning import make_pruner
from mmprune3d.pruning.altermoma import AlterMOMAPlan
from mmprune3d.pruning.gpq import GPQPlan, choose_victims
from mmprune3d.pruning.halting import HaltingPlan, check_halting_rule, keep_by_rank
from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.pruning.settings import Plan
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.pruning.thresholds import keep_masks, num_removed
from mmprune3d.pruning.tome import ToMePlan
from tests.config_values import NO_COUNTS, NO_SHARES, anything, assert_plain, assert_stored, examples, works_or_says

BASES: dict[type[Plan], dict[str, Any]] = {
    TgGBCPlan: dict(r=6, n=2, k=3),
    ToMePlan: dict(r=6, n=2),
    GPQPlan: dict(target=5),
    HaltingPlan: dict(sparsity=0.8),
    AlterMOMAPlan: dict(sparsity=0.8),
}
COUNTS = [
    *((plan, name) for plan in (TgGBCPlan, ToMePlan) for name in ('n', 'q')),
    (TgGBCPlan, 'k'), (TgGBCPlan, 't'), (GPQPlan, 'target'), (GPQPlan, 'interval'), (GPQPlan, 'per_step'),
    (GPQPlan, 'begin'), (GPQPlan, 'seed'), (HaltingPlan, 'in_channels'), (AlterMOMAPlan, 'reactivation_steps'),
    (AlterMOMAPlan, 'eval_batches'), (AlterMOMAPlan, 'rounds'), (AlterMOMAPlan, 'seed'),
]  # fmt: skip
NUMBERS = [
    (HaltingPlan, 'sparsity'), (HaltingPlan, 'threshold'), (HaltingPlan, 'slack'), (AlterMOMAPlan, 'sparsity'),
]  # fmt: skip
names_of = {kind: [field.name for field in fields(kind)] for kind in BASES}


@pytest.mark.parametrize('kind', BASES, ids=lambda kind: kind.method)
@examples(250)
@given(data=st.data())
def test_one_setting_of_any_value(kind, data):
    """It works, and is then stored as plain types; or the error names the setting."""
    name, value = data.draw(st.sampled_from(names_of[kind])), data.draw(anything)
    plan = works_or_says(lambda: kind.from_dict({**BASES[kind], name: value}), name)
    if plan is not None:
        assert_stored(plan)


@pytest.mark.parametrize('kind', BASES, ids=lambda kind: kind.method)
@examples(40)
@given(settings=anything, key=st.one_of(st.text(max_size=5), st.integers(), st.none()))
def test_settings_that_are_no_dict_and_unknown_keys(kind, settings, key):
    assert works_or_says(lambda: kind.from_dict(settings), kind.title) is None
    if key not in (*names_of[kind], 'method'):
        with pytest.raises(ValueError, match=r'unknown setting .*valid are '):
            kind.from_dict({**BASES[kind], key: 1})


@pytest.mark.parametrize(('kind', 'name'), COUNTS, ids=lambda part: getattr(part, 'method', part))
@pytest.mark.parametrize('value', NO_COUNTS, ids=lambda value: type(value).__name__)
def test_what_is_no_count_is_refused(kind, name, value):
    with pytest.raises(ValueError, match=f'{kind.title}: {name}=.* must be a whole number'):
        kind(**{**BASES[kind], name: value})


@pytest.mark.parametrize(('kind', 'name'), NUMBERS, ids=lambda part: getattr(part, 'method', part))
@pytest.mark.parametrize('value', NO_SHARES, ids=lambda value: type(value).__name__)
def test_what_is_no_share_is_refused(kind, name, value):
    with pytest.raises(ValueError, match=f'{kind.title}: {name}=.* from 0 to below 1'):
        kind(**{**BASES[kind], name: value})


@pytest.mark.parametrize('kind', [TgGBCPlan, ToMePlan], ids=lambda kind: kind.method)
@pytest.mark.parametrize('value', [*NO_SHARES, [5, False], [5, 0.0], [0.5, 0], [3, -1], (0.5, 0.5)], ids=type)
def test_what_is_no_amount_is_refused(kind, value):
    with pytest.raises(ValueError, match=f'{kind.title}: r='):
        kind(r=value)


def test_numbers_of_numpy_and_torch_are_the_numbers_that_they_are():
    plan = TgGBCPlan(r=np.array([3, 2]), n=np.int64(2), k=torch.tensor(5), score=np.str_('mean'), t=np.uint8(1))
    assert plan == TgGBCPlan(r=(3, 2), n=2, k=5, score='mean', t=1)
    assert_stored(plan)
    assert_stored(HaltingPlan(sparsity=np.float32(0.5)))
    assert HaltingPlan(sparsity=torch.tensor(0.5)) == HaltingPlan(sparsity=0.5)
    assert AlterMOMAPlan(sparsity=0.5, same_eval_batches=np.bool_(False)).same_eval_batches is False
    assert GPQPlan(target=np.int32(4), epochs=np.float64(1.5)).to_dict()['epochs'] == 1.5


amounts = st.one_of(
    st.integers(0, 60),
    st.floats(0, 1, exclude_max=True),
    st.lists(st.integers(0, 25), max_size=5),
    st.lists(st.floats(0, 0.6), max_size=4),
)
key_settings = dict(
    r=amounts, n=st.none() | st.integers(0, 7), q=st.integers(0, 12) | st.just(0), layers=st.integers(1, 6)
)


def checked(plan: KeyPlan | None, layers: int, keys: int) -> tuple[int, ...] | None:
    """The removals of a plan, whose sum, size and number are what it says."""
    if plan is None:
        return None
    assert_stored(plan)
    counts = works_or_says(lambda: plan.removals(layers, keys))
    if counts is not None:
        whole = plan.r if isinstance(plan.r, tuple) else (plan.r,)
        most = sum(amount * keys if plan.is_share else amount for amount in whole)
        assert len(counts) == layers and all(type(count) is int and count >= 0 for count in counts)
        assert sum(counts) <= most + 1e-6 and sum(counts) < max(keys, 1)
        assert sum(map(bool, counts)) <= min(plan.n, layers - 1)
        if not plan.removes:
            assert not any(counts)
        if keys and not plan.is_share and not getattr(plan, 't', 0) and plan.n:
            assert sum(counts) == sum(whole)
    return counts


@examples(150)
@given(
    keys=st.integers(0, 40),
    t=st.integers(0, 30) | st.just(0),
    share=st.floats(0, 1),
    tome=st.booleans(),
    **key_settings,
)
def test_removals_are_what_a_plan_says(keys, t, share, tome, r, n, q, layers):
    own = {} if tome else dict(t=t)
    plan = works_or_says(lambda: (ToMePlan if tome else TgGBCPlan)(r=r, n=n, q=q, **own), 'r=', 'r lists')
    counts = checked(plan, layers, keys)
    if counts is not None:
        less = checked(plan.scaled(share), layers, keys)
        assert sum(less) <= sum(counts) or t  # fewer keys gone, more layers above the threshold
        assert sum(checked(plan.scaled(0.0), layers, keys)) == 0 and checked(plan.scaled(1.0), layers, keys) == counts


@examples(60)
@given(keys=st.integers(1, 40), queries=st.integers(1, 12), tome=st.booleans(), k=st.integers(0, 20), **key_settings)
def test_a_pruner_removes_what_its_plan_says(keys, queries, tome, k, r, n, q, layers):
    own = {} if tome else dict(k=k)
    plan = works_or_says(lambda: (ToMePlan if tome else TgGBCPlan)(r=r, n=n, q=q, **own), 'r=', 'r lists')
    sizes = None if plan is None else works_or_says(lambda: run(plan, layers, keys, queries))
    if sizes is not None:
        assert sizes[0] == list(plan.keys_per_layer(keys, layers))[: len(sizes[0])]
        gone = [sum(plan.query_removals(layers)[:layer]) for layer in range(layers)]
        assert sizes[1] == [queries - count for count in gone]


@torch.no_grad()
def run(plan: KeyPlan, layers: int, keys: int, queries: int) -> tuple[list[int], list[int]]:
    """Keys and queries of each layer of a decoder without weights."""
    generator = torch.Generator().manual_seed(keys)
    pruner = make_pruner(plan, layers, record=True)
    tokens, query = (torch.randn(2, number, 4, generator=generator) for number in (keys, queries))
    left, sizes = Keys(tokens, tokens), ([keys], [queries])
    for layer in range(layers - 1):
        record = AttentionRecord(query[:, None], left.key[:, None])
        left, reduce = pruner(layer, query, left, record, lambda _, logits: logits)
        query = query if reduce is None else reduce(query)
        assert left.key.isfinite().all() and pruner.kept[-1].shape[1] == left.key.shape[1]
        sizes[0].append(left.key.shape[1])
        sizes[1].append(query.shape[1])
    return sizes


@examples(120)
@given(
    target=st.integers(1, 30),
    timing=st.fixed_dictionaries(
        {}, optional=dict(interval=st.integers(1, 40), epochs=st.floats(1e-9, 1e6) | st.integers(1, 10**6))
    ),
    per_step=st.just('all') | st.integers(1, 40),
    begin=st.integers(0, 50),
    criterion=st.sampled_from(GPQPlan.criteria),
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 40),
    iterations=st.integers(1, 100),
)
def test_queries_go_as_a_plan_says(target, timing, per_step, begin, criterion, seed, queries, iterations):
    plan = works_or_says(
        lambda: GPQPlan(target, per_step=per_step, begin=begin, criterion=criterion, seed=seed, **timing), 'epochs'
    )
    if plan is None:
        return
    assert_stored(plan)
    schedule = works_or_says(lambda: plan.schedule(queries, iterations), 'target', 'begin')
    if schedule is None:
        return
    moments = sorted({0, begin, schedule.end - 1, schedule.end, *range(min(schedule.end, 60))})
    gone = [schedule.removed_after(moment) for moment in moments if moment >= 0]
    assert gone == sorted(gone) and gone[0] == 0 and gone[-1] == schedule.total == queries - target
    assert schedule.removed_after(schedule.end - 1) < schedule.total and schedule.removed_after(begin) == 0
    if plan.epochs is not None:
        assert schedule.end <= round(plan.epochs * iterations)
    scores = torch.linspace(0, 1, queries)
    victims = choose_victims(scores, schedule.total, criterion, seed)
    assert len(set(victims.tolist())) == schedule.total and victims.max() < queries


@examples(120)
@given(
    sparsity=st.floats(0, 0.9) | st.floats(0.999, 0.999999),
    slack=st.floats(0, 1, exclude_max=True) | st.just(0.0),
    threshold=st.floats(0, 1, exclude_max=True),
    blocks=st.integers(0, 6),
    width=st.integers(1, 64),
    in_channels=st.integers(1, 64),
    tokens=st.integers(1, 50),
)
def test_gates_halt_what_a_plan_says(sparsity, slack, threshold, blocks, width, in_channels, tokens):
    plan = HaltingPlan(sparsity, threshold, slack, in_channels)
    assert_stored(plan)
    gates = works_or_says(lambda: plan.gates(width, blocks), 'in_channels', 'backbone')
    if gates is None:
        return
    for gate in gates:
        assert check_halting_rule(gate['threshold'], gate['bounds']) == (threshold, gate['bounds'])
        assert gate['bounds'][1] < 1 or slack  # without slack a sample is never emptied
        keep = keep_by_rank(
            torch.linspace(0, 1, tokens), torch.zeros(tokens, dtype=torch.int64), torch.tensor([tokens]), threshold,
            gate['bounds'],
        )  # fmt: skip
        lower, upper = (bound * tokens for bound in gate['bounds'])
        assert lower - 1 <= tokens - int(keep.sum()) <= upper + 1e-3
    if not slack:
        first, second = (gate['bounds'][0] for gate in gates)
        assert (first + second * (blocks - 1)) / blocks == pytest.approx(sparsity, abs=1e-3)


@examples(120)
@given(
    sparsity=st.floats(0, 1, exclude_max=True),
    scope=st.sampled_from(['global', 'per_group', 'per_layer']),
    min_keep=st.none() | st.integers(0, 12) | st.floats(0, 1, exclude_max=True),
    protected=st.lists(st.sampled_from(['a', 'a.b', 'c', 'nothing']), max_size=2),
    mode=st.sampled_from([None, 'unstructured', 'channels']),
)
def test_weights_go_as_a_plan_says(sparsity, scope, min_keep, protected, mode):
    plan = AlterMOMAPlan(sparsity, mode=mode, scope=scope, min_keep=min_keep, protected=protected)
    assert_stored(plan)
    generator = torch.Generator().manual_seed(0)
    sizes = {'a.b': (3, 4), 'a.x': (5,), 'c': (2, 3)}
    scores = {name: torch.rand(size, generator=generator) for name, size in sizes.items()}
    groups = {'a.b': 'camera', 'a.x': 'camera', 'c': 'lidar'}
    options = dict(groups=groups, scope=plan.scope, protected=plan.protected, min_keep=plan.min_keep)
    masks = works_or_says(lambda: keep_masks(scores, plan.sparsity, **options), 'protected', 'sparsity')
    if masks is None:
        return
    gone = {name: int((~mask).sum()) for name, mask in masks.items()}
    if scope == 'global':
        assert sum(gone.values()) == num_removed(23, sparsity)
    for name, mask in masks.items():
        least = plan.min_keep * mask.numel() if isinstance(plan.min_keep, float) else min(plan.min_keep, mask.numel())
        assert mask.sum() >= least - 1e-6
        assert not gone[name] or not any(name == part or name.startswith(f'{part}.') for part in protected)


written = st.one_of(
    st.text('rnkqt=,.+-0123456789 eEanif_', max_size=24),
    st.lists(
        st.tuples(
            st.sampled_from(['r', 'n', 'k', 'q', 't', 'score', 'target', 'epochs', 'sparsity', 'protected', 'rounds']),
            st.one_of(
                st.integers().map(str), st.floats().map(str), st.text(max_size=5),
                st.sampled_from(['1+2', '0.1+0.2', '1+', '+', '9' * 5000, '1e999', 'nan', 'a+b', 'true', '٣']),
            ),
        ).map('='.join),
        max_size=4,
    ).map(','.join),
)  # fmt: skip


@pytest.mark.parametrize('kind', BASES, ids=lambda kind: kind.method)
@examples(150)
@given(text=written)
def test_any_text_is_a_plan_or_an_error(kind, text):
    plan = works_or_says(lambda: kind.parse(text), kind.title)
    if plan is not None:
        assert_stored(plan)


@pytest.mark.parametrize('kind', BASES, ids=lambda kind: kind.method)
@examples(60)
@given(data=st.data())
def test_a_plan_that_is_typed_is_the_plan_of_a_config(kind, data):
    """From settings to text and back."""
    name = data.draw(st.sampled_from(names_of[kind]))
    value = data.draw(
        st.one_of(st.integers(0, 9), st.floats(0, 0.9), st.lists(st.integers(0, 9), min_size=2, max_size=4))
    )
    plan = works_or_says(lambda: kind.from_dict({**BASES[kind], name: value}), name)
    if plan is None:
        return
    items = {key: entry for key, entry in plan.to_dict().items() if key != 'method' and entry not in (None, [])}
    texts = {key: '+'.join(map(repr, entry)) if isinstance(entry, list) else str(entry) for key, entry in items.items()}
    if not any('e-' in text or 'e+' in text for text in texts.values()):
        assert_plain(tuple(items.values()))
        assert kind.parse(','.join(f'{key}={text}' for key, text in texts.items())) == plan
