"""The differentiable path against Eq. 8 to 10 written slowly, and against finite differences of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from .slow_sst import slow_halting
from .small_sst import LAYERS, SETTINGS, THREE, halting_sst, scene, table_gates
from .test_halting_backbone import TOLERANCE, assert_same_paths


def gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    factor = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=out.dtype)
    return torch.autograd.grad((out * factor).sum(), inputs, materialize_grads=True)


FAITHFUL = {name: SETTINGS[name] for name in SETTINGS if name not in ('tokens', 'halt++')}


@pytest.mark.parametrize('layers', [*LAYERS[::4], dict(halted_gradient='difference')], ids=str)
@pytest.mark.parametrize('name', FAITHFUL)
def test_values_and_gradients_are_those_of_the_equations(name: str, layers: dict) -> None:
    """Eq. 8 to 10 with k0 + (s - s0) for every decision: all gradients, of scores, features and every weight."""
    model = halting_sst(layer_cfg=layers, to_bev=False, num_attached_conv=0, **FAITHFUL[name])
    tokens = scene((30, 0, 15))
    tokens.feats.requires_grad_()
    (found,), record = model.forward_with_record(tokens, 'edf')
    expected, decisions = slow_halting(model, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for step, (_, scores, alive) in zip(record.steps, decisions.values(), strict=True):
        assert step.rows[step.keep].tolist() == alive.nonzero().squeeze(1).tolist()
        torch.testing.assert_close(step.scores, scores[step.rows], rtol=1e-10, atol=1e-10)
    names, values = zip(*[('tokens', tokens.feats), *model.named_parameters()])
    for key, one, other in zip(names, gradients(found, values), gradients(expected, values), strict=True):
        assert one.isfinite().all(), key
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8, msg=lambda text, key=key: f'{key}: {text}')
        assert one.any() or 'all halt' in name, key


@pytest.mark.parametrize(
    'name', ['the paper', 'recycle off', 'scores for a layer', 'three gates', 'U-Net behind a gate']
)
def test_gradients_match_finite_differences(name: str) -> None:
    """Of the same definition: decisions stay, and the straight lines through them are followed a little way."""
    model = halting_sst(to_bev=False, num_attached_conv=0, **SETTINGS[name])
    tokens = scene((30, 15))
    tokens.feats.requires_grad_()
    (found,), _ = model.forward_with_record(tokens, 'edf')
    factor = torch.randn(found.shape, generator=torch.Generator().manual_seed(3), dtype=found.dtype)
    values = [tokens.feats, *model.parameters()]
    slopes = torch.autograd.grad((found * factor).sum(), values)
    _, decisions = slow_halting(model, tokens)
    groups = {
        'tokens': [0],
        'gates': [i for i, (key, _) in enumerate(model.named_parameters(), 1) if key.startswith('halting')],
        'blocks': [i for i, (key, _) in enumerate(model.named_parameters(), 1) if key.startswith('block')],
    }
    for seed, group in enumerate(groups.values()):
        generator = torch.Generator().manual_seed(seed)
        ways = [torch.randn(values[i].shape, generator=generator, dtype=torch.float64) for i in group]

        def at(step: float, group: list[int] = group, ways: list[Tensor] = ways) -> float:
            with torch.no_grad():
                for i, way in zip(group, ways):
                    values[i].add_(step * way)
                loss = float((slow_halting(model, tokens, decisions)[0] * factor).sum())
                for i, way in zip(group, ways):
                    values[i].sub_(step * way)
            return loss

        measured = (at(1e-6) - at(-1e-6)) / 2e-6
        computed = sum(float((slopes[i] * way).sum()) for i, way in zip(group, ways))
        assert computed == pytest.approx(measured, rel=1e-6) and abs(computed) > 1e-3


@pytest.mark.parametrize('layers', [dict(), dict(backend='explicit', post_norm=False)], ids=str)
def test_gradient_of_every_score_matches_finite_differences(layers: dict) -> None:
    """Kept tokens, halted ones and ones that halted before, one by one."""
    model = halting_sst(
        table_gates(1, dict(bounds=(0.2, 0.6)), dict(bounds=(0.3, 0.8))), to_bev=False, layer_cfg=layers
    )
    generator = torch.Generator().manual_seed(0)
    tables = [gate.scorer.table for gate in model.halting]
    with torch.no_grad():
        for table in tables:
            table.copy_(torch.rand(table.shape, generator=generator))
    tokens = scene((16,))
    (found,), record = model.forward_with_record(tokens, 'edf')
    factor = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    slopes = torch.autograd.grad((found * factor).sum(), tables)
    _, decisions = slow_halting(model, tokens)
    assert {0, 2, 6} == set(record.halted_at().tolist())

    def at(table: Tensor, place: tuple[int, ...], step: float) -> float:
        with torch.no_grad():
            table[place] += step
            loss = float((slow_halting(model, tokens, decisions)[0] * factor).sum())
            table[place] -= step
        return loss

    for table, slope, step in zip(tables, slopes, record.steps):
        for b, _, y, x in tokens.coords.tolist():
            measured = (at(table, (b, y, x), 1e-5) - at(table, (b, y, x), -1e-5)) / 2e-5
            assert float(slope[b, y, x]) == pytest.approx(measured, rel=1e-6, abs=1e-7)
        assert slope.count_nonzero() == len(step.rows)  # Eq. 9: a token that halted before cannot come back


@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('value', [0.0, 1e-30, 1.0])
@pytest.mark.parametrize('bounds', [(0, 0), (1, 1), (0.4, 0.6)], ids=str)
def test_gradients_are_finite_everywhere(bounds: tuple[float, float], value: float, dtype: torch.dtype) -> None:
    """Scores that are all 0 or all equal, windows without a live key, windows of one token."""
    for backend in ('sdpa', 'explicit'):
        model = halting_sst(
            table_gates(2, dict(bounds=bounds), dict(bounds=bounds)), dtype, layer_cfg=dict(backend=backend)
        )
        with torch.no_grad():
            for gate in model.halting:
                gate.scorer.table.fill_(value)
        tokens = scene((40, 3), dtype=dtype)
        for path in ('edf', 'sparse'):
            (out,) = model(tokens, path)
            assert out.isfinite().all()
            assert all(part.isfinite().all() for part in gradients(out, list(model.parameters())))
        if value != 0 or bounds != (0, 0):  # weights of 0 for tokens that are kept leave Eq. 6 undefined
            assert_same_paths(model, tokens)


def test_every_parameter_is_trained() -> None:
    """Through decisions, also ones of the last gate; so several processes need not look for unused ones."""
    for settings in (dict(), dict(unet_to_bev=True), dict(gates=THREE)):
        model = halting_sst(**settings).train()
        (out,) = model(scene((90, 50)), 'edf')
        (out * torch.randn(out.shape, dtype=out.dtype)).sum().backward()
        assert all(value.grad is not None and value.grad.any() for value in model.parameters())


@pytest.mark.parametrize('blocks', [(0,), (1, 2)], ids=str)
def test_recomputed_activations_give_the_same_gradients(blocks: tuple[int, ...]) -> None:
    tokens, found = scene((50, 30)), []
    for chosen in ((), blocks):
        model = halting_sst(checkpoint_blocks=chosen)
        (out,) = model(tokens, 'edf')
        found.append([out, *gradients(out, list(model.parameters()))])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
