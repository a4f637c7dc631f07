from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from mmprune3d.pruning.channels import (
    ChannelGroup,
    Member,
    channel_masks,
    dimension_masks,
    group_terms,
    mask_tensors,
    slice_tensors,
)

GROUP = ChannelGroup(
    'first',
    3,
    (
        Member('first.weight', 0, 'out'),
        Member('norm.weight', 0, 'through'),
        Member('norm.mean', 0, 'stat'),
        Member('second.weight', 1, 'in', offset=2, repeat=2, tiles=2),
    ),
)
KEEP = {'first': torch.tensor([True, False, True])}


def tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = {'first.weight': (3, 4), 'norm.weight': (3,), 'norm.mean': (3,), 'second.weight': (5, 16), 'other': (2,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def channel_of(position, member, size):
    """Slow: counts through tiles, channels and repeats."""
    here = member.offset
    for _ in range(member.tiles):
        for channel in range(size):
            for _ in range(member.repeat):
                if here == position:
                    return channel
                here += 1
    return None


def test_slices_are_those_of_counting_through_the_positions():
    dense = tensors()
    slim = slice_tensors(dense, [GROUP], KEEP)
    reader = GROUP.members[-1]
    columns = [p for p in range(16) if channel_of(p, reader, 3) in (None, 0, 2)]
    assert len(columns) == 12
    assert torch.equal(slim['second.weight'], dense['second.weight'][:, columns])
    for name in ('first.weight', 'norm.weight', 'norm.mean'):
        assert torch.equal(slim[name], dense[name][[0, 2]])
    assert slim['other'] is dense['other']


def test_two_groups_slice_both_dimensions_of_one_tensor():
    weight = torch.arange(20.0).view(4, 5)
    groups = [ChannelGroup('a', 4, (Member('w', 0, 'out'),)), ChannelGroup('b', 2, (Member('w', 1, 'in', offset=3),))]
    keep = {'a': torch.tensor([False, True, True, False]), 'b': torch.tensor([False, True])}
    assert torch.equal(slice_tensors({'w': weight}, groups, keep)['w'], weight[1:3][:, [0, 1, 2, 4]])
    masked = mask_tensors({'w': weight}, groups, keep)['w']
    expected = weight.clone()
    expected[[0, 3]] = 0
    expected[:, 3] = 0
    assert torch.equal(masked, expected)


@pytest.mark.parametrize('keep', [{}, {'first': torch.ones(3, dtype=torch.bool)}])
def test_removing_nothing_is_the_identity(keep):
    dense = tensors()
    for change in (slice_tensors, mask_tensors):
        made = change(dense, [GROUP], keep)
        assert all(made[name] is dense[name] for name in dense)
    assert channel_masks(dense, [GROUP], keep) == {}


def test_masks_leave_running_statistics_and_agree_with_the_slices():
    dense = tensors()
    masks = channel_masks(dense, [GROUP], KEEP)
    assert sorted(masks) == ['first.weight', 'norm.weight', 'second.weight']
    slim = slice_tensors(dense, [GROUP], KEEP)
    masked = mask_tensors(dense, [GROUP], KEEP)
    for name, mask in masks.items():
        assert mask.shape == dense[name].shape
        assert int(mask.sum()) == slim[name].numel()
        assert torch.equal(masked[name], dense[name] * mask)
    assert torch.equal(masked['norm.mean'], dense['norm.mean'])


def test_scores_without_running_statistics_can_be_sliced():
    scores = {name: value for name, value in tensors().items() if name != 'norm.mean'}
    assert slice_tensors(scores, [GROUP], KEEP)['norm.weight'].shape == (2,)


def test_plain_types_and_back():
    assert ChannelGroup.from_dict(json.loads(json.dumps(GROUP.to_dict()))) == GROUP


@pytest.mark.parametrize(
    ('keep', 'message'),
    [
        ({'secnd': torch.ones(3, dtype=torch.bool)}, 'no channel group secnd; valid are first'),
        ({'first': torch.ones(4, dtype=torch.bool)}, r'first: keep must be bool \[3\]'),
        ({'first': torch.ones(3)}, r'must be bool \[3\], got torch.float32'),
        ({'first': torch.zeros(3, dtype=torch.bool)}, 'removes all 3 channels'),
    ],
)
def test_a_choice_that_does_not_fit(keep, message):
    with pytest.raises(ValueError, match=message):
        slice_tensors(tensors(), [GROUP], keep)


def test_groups_of_another_model():
    with pytest.raises(ValueError, match='ends at 14, but the dimension has 12'):
        dimension_masks(
            {'first.weight': (3,), 'norm.weight': (3,), 'norm.mean': (3,), 'second.weight': (5, 12)}, [GROUP], KEEP
        )
    with pytest.raises(ValueError, match=r"belong to another model: Member\(tensor='norm.weight'"):
        dimension_masks({'first.weight': (3,)}, [GROUP], KEEP)


@pytest.mark.parametrize('bad', [{'role': 'input'}, {'offset': -1}, {'repeat': 0}, {'dim': -1}])
def test_members_are_checked(bad):
    with pytest.raises(ValueError, match=r'valid are out|must be 0 or more'):
        Member(**{'tensor': 'w', 'dim': 0, 'role': 'out', **bad})


class Chain(nn.Module):
    """conv - batch norm - ReLU - conv, and the group of the channels in the middle."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 3, 3)

    group = ChannelGroup(
        'first',
        6,
        (
            Member('first.weight', 0, 'out'),
            Member('first.bias', 0, 'out'),
            Member('norm.weight', 0, 'through'),
            Member('norm.bias', 0, 'through'),
            Member('second.weight', 1, 'in'),
        ),
    )

    def forward(self, x, mask=None):
        hidden = self.norm(self.first(x)).relu()
        return self.second(hidden if mask is None else hidden * mask[:, None, None])


@pytest.fixture
def chain():
    torch.manual_seed(0)
    model = Chain().double()
    nn.init.uniform_(model.norm.weight, 0.5, 2)
    nn.init.normal_(model.norm.bias)
    nn.init.normal_(model.norm.running_mean)
    return model


@pytest.mark.parametrize('training', [True, False])
def test_terms_are_the_derivative_for_a_mask_on_each_channel(chain, training):
    chain.train(training)
    x = torch.randn(2, 2, 8, 8, dtype=torch.double)
    chain(x).square().sum().backward()
    terms = {name: (p * p.grad).detach() for name, p in chain.named_parameters()}
    mask = torch.ones(6, dtype=torch.double, requires_grad=True)
    chain(x, mask).square().sum().backward()
    torch.testing.assert_close(group_terms(terms, chain.group, ('in',)), mask.grad)
    torch.testing.assert_close(group_terms(terms, chain.group, ('through',)), mask.grad)
    before_norm = group_terms(terms, chain.group, ('out',))
    if training:  # batch norm undoes every scaling of what it gets
        # up to eps in its denominator, which leaves a share of eps / variance
        assert before_norm.abs().max() < 1e-3 * mask.grad.abs().max()
    else:
        assert before_norm.abs().max() > 1e-2 * mask.grad.abs().max()


def test_terms_of_runs_and_both_roles():
    dense = tensors()
    reader = GROUP.members[-1]
    expected = [
        sum(dense['second.weight'][:, p].sum() for p in range(16) if channel_of(p, reader, 3) == channel)
        for channel in range(3)
    ]
    torch.testing.assert_close(group_terms(dense, GROUP, ('in',)).float(), torch.stack(expected))
    both = dense['first.weight'].double().sum(1) + dense['norm.weight'].double()
    torch.testing.assert_close(group_terms(dense, GROUP), both)


def test_frozen_members_count_nothing_but_not_all_may_be_missing():
    only = {'norm.weight': torch.tensor([1.0, 2.0, -3.0])}
    assert group_terms(only, GROUP).tolist() == [1, 2, -3]
    with pytest.raises(ValueError, match=r'first: no terms for first.weight, norm.weight'):
        group_terms({}, GROUP)
