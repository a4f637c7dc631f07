"""The arguments of a hook are the settings of its plan: by name, by default, in the help text and in messages."""

from __future__ import annotations

import inspect
import pydoc
import re
from dataclasses import MISSING, fields
from typing import Any

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmprune3d.engine import hooks
from mmprune3d.engine.hooks import AllowShapeMismatchHook, GPQHook, HaltingHook, MaskHook, TgGBCHook, ToMeHook
from mmprune3d.engine.loops.altermoma_loop import PruningIterLoop, PruningLoop
from mmprune3d.pruning.gpq import GPQPlan
from mmprune3d.pruning.settings import Plan
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.pruning.tome import ToMePlan

OWN: dict[str, Any] = {'train': None}
"""Arguments that are not the plan's -> defaults."""
OTHERS = dict(
    r=7, n=1, q=2, k=9, activation='softmax', score='mean', t=4, target=3, interval=5, per_step='all', begin=2, seed=1,
    criterion='highest',
)  # fmt: skip
"""For every setting a value that is not its default."""
KINDS = [(TgGBCHook, TgGBCPlan, OWN), (ToMeHook, ToMePlan, OWN), (GPQHook, GPQPlan, {})]


@pytest.mark.parametrize(('kind', 'plan', 'own'), KINDS)
def test_signature_and_defaults_are_those_of_the_plan(kind: type[Hook], plan: type[Plan], own: dict[str, Any]) -> None:
    found = {name: one.default for name, one in inspect.signature(kind).parameters.items()}
    settings = {one.name: inspect.Parameter.empty if one.default is MISSING else one.default for one in fields(plan)}
    assert found == {**settings, **own}


@pytest.mark.parametrize(('kind', 'plan', 'own'), KINDS)
def test_every_setting_reaches_the_plan(kind: type[Hook], plan: type[Plan], own: dict[str, Any]) -> None:
    given = {one.name: OTHERS[one.name] for one in fields(plan) if one.name in OTHERS}
    if plan is GPQPlan:
        given['score'] = 'probability'
        assert kind(target=3, epochs=2.5).plan == GPQPlan(3, epochs=2.5)
    assert {one.name for one in fields(plan)} - set(given) <= {'epochs'}
    hook = kind(**given)
    assert {name: getattr(hook.plan, name) for name in given} == given and type(hook.plan) is plan
    required = next(iter(given))
    assert kind(given[required]).plan == plan(given[required])  # by position
    again = {**hook.plan.to_dict(), **own}  # as it stands in a checkpoint or in a report, method and all
    if plan is GPQPlan:
        again.pop('epochs')
    assert HOOKS.build(dict(again, type=kind.__name__)).plan == hook.plan


@pytest.mark.parametrize(('kind', 'plan', 'own'), KINDS)
def test_help_describes_every_argument(kind: type[Hook], plan: type[Plan], own: dict[str, Any]) -> None:
    arguments = inspect.getdoc(kind).split('\nArgs:\n')[1].split('\n\n')[0]
    described = dict(re.findall(r'^ {4}(\w+): (.*?)(?=^ {4}\w|\Z)', arguments, flags=re.M | re.S))
    parameters = inspect.signature(kind).parameters
    assert list(described) == list(parameters)
    for name, parameter in parameters.items():
        required = parameter.default is inspect.Parameter.empty
        assert ('Required.' if required else 'Default: ') in described[name], name
    assert all(f'{name}: ' in pydoc.plain(pydoc.render_doc(kind)) for name in parameters)


@pytest.mark.parametrize(('kind', 'plan', 'own'), KINDS)
def test_messages_list_what_is_valid(kind: type[Hook], plan: type[Plan], own: dict[str, Any]) -> None:
    name = kind.__name__
    required = fields(plan)[0].name
    valid = ', '.join([*(one.name for one in fields(plan)), *own])
    with pytest.raises(ValueError, match=f'{plan.title}: unknown setting targett; valid are {valid}$'):
        HOOKS.build({'type': name, required: 3, 'targett': 1})
    with pytest.raises(ValueError, match=f'{plan.title}: {required}, {plan.purpose}, is missing'):
        HOOKS.build(dict(type=name, q=1) if kind is not GPQHook else dict(type=name, epochs=1))
    with pytest.raises(ValueError, match=f'expected a {plan.method} plan'):
        HOOKS.build({'type': name, required: 3, 'method': 'other'})
    with pytest.raises(TypeError, match='positional arguments'):
        kind(*range(20))


@pytest.mark.parametrize(
    ('name', 'valid'),
    [
        ('HaltingHook', 'interval, patience'),
        ('MaskHook', 'masks'),
        ('IterationSeedHook', 'seed'),
        ('AllowShapeMismatchHook', 'prefixes'),
        ('ExactOnCPUHook', 'none'),
    ],
)
def test_hooks_without_a_plan_list_their_arguments(name: str, valid: str) -> None:
    with pytest.raises(ValueError, match=f'^{name}: unknown setting nosuch; valid are {valid}$'):
        HOOKS.build(dict(type=name, nosuch=1))
    kind = HOOKS.get(name)
    assert ', '.join(inspect.signature(kind).parameters) == valid.replace('none', '')
    with pytest.raises(TypeError, match='positional argument'):
        kind(*range(20))


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(ValueError, match=r'^AllowShapeMismatchHook: prefixes is missing$'):
        HOOKS.build(dict(type='AllowShapeMismatchHook'))
    assert AllowShapeMismatchHook(['a']).prefixes == AllowShapeMismatchHook(prefixes=['a']).prefixes == ('a',)


def test_every_hook_is_tested_here() -> None:
    checked = {kind.__name__ for kind, _, _ in KINDS}
    others = {'HaltingHook', 'MaskHook', 'IterationSeedHook', 'AllowShapeMismatchHook', 'ExactOnCPUHook'}
    assert {*hooks.__all__} == checked | others


@pytest.mark.parametrize(
    ('kind', 'given', 'message'),
    [
        (PruningLoop, dict(max_iters=3), 'PruningLoop: unknown setting max_iters; its length is max_epochs'),
        (PruningLoop, {}, 'PruningLoop: max_epochs, the length of the training, is missing'),
        (PruningLoop, dict(max_epochs=3, sparsty=1), 'pruning: unknown setting sparsty; valid are'),
        (PruningIterLoop, dict(max_epochs=3), 'PruningIterLoop: unknown setting max_epochs; its length is max_iters'),
    ],
)
def test_loops_name_what_they_do_not_know(kind: type, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f'^{message}'):
        kind(None, None, sparsity=0.5, **given)


def test_hooks_say_whether_they_prune_in_a_test() -> None:
    assert TgGBCHook.prunes_tests and ToMeHook.prunes_tests
    assert MaskHook(masks='masks.pth').prunes_tests and not MaskHook().prunes_tests
    assert not any(hasattr(kind, 'prunes_tests') for kind in (GPQHook, HaltingHook))
