from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from mmprune3d.coupling.groups import FoundGroups, check_channel_groups, find_channel_groups
from mmprune3d.layers.slim import slim_model_
from mmprune3d.pruning.channels import mask_tensors, slice_tensors

from .channel_nets import Mixed, SparseToDense, as_trained_, bevfusion_forward, bevfusion_groups, build_bevfusion


def rows(group):
    return {(m.tensor, m.dim, m.role, m.offset, m.repeat, m.tiles) for m in group.members}


def run(inputs):
    return lambda model: model(inputs)


@pytest.fixture
def mixed():
    torch.manual_seed(0)
    model = Mixed()
    return as_trained_(model, run(model.inputs()))


def test_every_slice_of_a_small_net(mixed):
    found = find_channel_groups(mixed, run(mixed.inputs()))
    assert {group.name: (group.size, rows(group)) for group in found.groups} == {
        'stem': (
            8,
            {
                ('stem.weight', 0, 'out', 0, 1, 1),
                ('branch.weight', 0, 'out', 0, 1, 1),
                ('branch.bias', 0, 'out', 0, 1, 1),
                ('bn.weight', 0, 'through', 0, 1, 1),
                ('bn.bias', 0, 'through', 0, 1, 1),
                ('bn.running_mean', 0, 'stat', 0, 1, 1),
                ('bn.running_var', 0, 'stat', 0, 1, 1),
                ('branch.weight', 1, 'in', 0, 1, 1),
                ('up.weight', 0, 'in', 0, 1, 1),
            },
        ),
        'lone': (
            5,
            {
                ('lone.weight', 0, 'out', 0, 1, 1),
                ('lone.bias', 0, 'out', 0, 1, 1),
                ('up.weight', 0, 'in', 8, 1, 1),
            },
        ),
        'up': (
            6,
            {
                ('up.weight', 1, 'out', 0, 1, 1),
                ('up.bias', 0, 'out', 0, 1, 1),
                ('depthwise.weight', 0, 'through', 0, 1, 1),
                ('depthwise.bias', 0, 'through', 0, 1, 1),
                ('down.weight', 1, 'in', 0, 1, 1),
            },
        ),
        'down': (
            4,
            {
                ('down.weight', 0, 'out', 0, 1, 1),
                ('down.bias', 0, 'out', 0, 1, 1),
                ('hidden.weight', 1, 'in', 0, 4, 1),
            },
        ),
        'hidden': (
            12,
            {
                ('hidden.weight', 0, 'out', 0, 1, 1),
                ('hidden.bias', 0, 'out', 0, 1, 1),
                ('tail.weight', 1, 'in', 0, 1, 1),
            },
        ),
    }
    assert found.left_out == {'tail': 'reaches the output'}


def test_the_model_is_left_as_it_was(mixed):
    mixed.train()
    mixed.bn.eval()
    before = copy.deepcopy(mixed.state_dict())
    find_channel_groups(mixed, run(mixed.inputs()))
    assert mixed.training and mixed.stem.training and not mixed.bn.training
    assert all(torch.equal(value, before[name]) for name, value in mixed.state_dict().items())
    assert 'forward' not in vars(mixed.stem)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in mixed.modules())


@pytest.mark.parametrize(('heights_last', 'repeat', 'tiles'), [(True, 2, 1), (False, 1, 2)])
def test_sparse_convolutions_and_flattened_heights(heights_last, repeat, tiles):
    torch.manual_seed(0)
    model = SparseToDense(heights_last)
    as_trained_(model, run(model.inputs()))
    found = find_channel_groups(model, run(model.inputs()))
    groups = {group.name: rows(group) for group in found.groups}
    assert sorted(groups) == ['conv1', 'down', 'flat']
    assert {('conv1.weight', 0, 'out', 0, 1, 1), ('conv2.weight', 0, 'out', 0, 1, 1)} < groups['conv1']
    assert {('conv2.weight', 4, 'in', 0, 1, 1), ('down.weight', 4, 'in', 0, 1, 1)} < groups['conv1']
    assert groups['down'] == {('down.weight', 0, 'out', 0, 1, 1), ('flat.weight', 1, 'in', 0, repeat, tiles)}
    assert check_channel_groups(model, found.groups, run(model.inputs())) < 1e-5


class Tricky(nn.Module):
    """One convolution in front of `middle`, whatever that is, and one behind it."""

    def __init__(self, middle, width=8):
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 8, 1), middle, nn.Conv2d(width, 2, 1)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


class Lambda(nn.Module):
    def __init__(self, function, **parameters):
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x):
        return self.function(self, x)


TRICKY = {
    'softmax': (nn.Softmax(dim=1), 8, 'mixed with others before last'),
    'outer product': (
        Lambda(lambda _, x: (x[:, :4].softmax(1)[:, :, None] * x[:, None, 4:]).sum(1)),
        4,
        'mixed with others before last',
    ),
    'group norm': (nn.GroupNorm(2, 8), 8, 'read by middle'),
    'layer norm': (Lambda(lambda _, x: nn.functional.layer_norm(x, x.shape[1:])), 8, 'mixed with others'),
    'grouped convolution': (nn.Conv2d(8, 8, 1, groups=2), 8, 'read by middle'),
    'trained scale': (Lambda(lambda self, x: x * self.scale, scale=torch.rand(8, 1, 1)), 8, 'read by middle'),
    'shuffle': (nn.ChannelShuffle(2), 8, 'arrive at last in an unknown order'),
    'only some are read': (Lambda(lambda _, x: x[:, :5]), 5, 'arrive at last in an unknown order'),
    'nobody reads': (Lambda(lambda _, x: x.detach().clone().fill_(1)), 8, 'no layer reads it'),
}


@pytest.mark.parametrize('name', TRICKY)
def test_what_cannot_be_sliced_stays(name):
    middle, width, reason = TRICKY[name]
    model = Tricky(middle, width)
    with pytest.raises(ValueError, match=f'no channels can be removed from Tricky: .*{reason}'):
        find_channel_groups(model, run(torch.randn(1, 3, 4, 4)))


class AddedTo(Tricky):
    """`middle` gives something that `first` is added to."""

    def forward(self, x):
        return self.last(self.first(x) + self.middle(x))


@pytest.mark.parametrize(
    'middle', [Lambda(lambda self, x: self.table, table=torch.rand(1, 8, 4, 4)), nn.Conv2d(3, 24, 1)]
)
def test_what_is_added_to_something_that_keeps_its_width_stays(middle):
    class Sliced(AddedTo):
        def forward(self, x):
            return self.last(self.first(x) + self.middle(x)[:, :8])

    with pytest.raises(ValueError, match=r'together with channels that cannot be sliced|of another width'):
        find_channel_groups(Sliced(middle), run(torch.randn(1, 3, 4, 4)))


def test_concatenated_twice_makes_two_runs():
    model = Tricky(Lambda(lambda _, x: torch.cat([x, x[:, :1] * 0 + 1, x], 1).relu()), 17)
    with pytest.raises(ValueError, match='in an unknown order'):  # one channel is read once more, between both runs
        find_channel_groups(model, run(torch.randn(1, 3, 4, 4)))
    model = Tricky(Lambda(lambda _, x: torch.cat([x, x.new_ones(1, 1, 4, 4), x], 1).relu()), 17)
    (group,) = find_channel_groups(model, run(torch.randn(1, 3, 4, 4))).groups
    assert {row for row in rows(group) if row[2] == 'in'} == {('last.weight', 1, 'in', at, 1, 1) for at in (0, 9)}


def test_one_layer_under_two_names_is_sliced_under_both():
    layer = nn.Conv2d(8, 8, 1)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), layer, nn.ReLU(), layer, nn.Conv2d(8, 2, 1))
    found = find_channel_groups(model, run(torch.randn(1, 3, 4, 4)))
    (group,) = found.groups
    assert {(name, dim) for name, dim, *_ in rows(group)} == {
        ('0.weight', 0), ('0.bias', 0), ('1.weight', 0), ('1.weight', 1), ('1.bias', 0),
        ('3.weight', 0), ('3.weight', 1), ('3.bias', 0), ('4.weight', 1),
    }  # fmt: skip
    assert check_channel_groups(model, found.groups, run(torch.randn(1, 3, 4, 4))) < 1e-5


def test_protected_modules_stay(mixed):
    found = find_channel_groups(mixed, run(mixed.inputs()), protect=['branch', 'hidden'])
    assert [group.name for group in found.groups] == ['lone', 'up', 'down']
    assert found.left_out['branch'] == 'protected'
    assert found.left_out['stem'] == 'protected (of stem and others)'
    with pytest.raises(ValueError, match='cannot protect brunch: no such module; the first level has stem, bn'):
        find_channel_groups(mixed, run(mixed.inputs()), protect=['brunch'])


def test_forward_must_return_tensors_that_can_be_followed(mixed):
    with pytest.raises(ValueError, match='forward must return tensors'):
        find_channel_groups(mixed, lambda model: str(model(mixed.inputs())))
    model = Tricky(Lambda(lambda _, x: x / x.sum()))
    with pytest.raises(ValueError, match='last is NaN where all features are 0'):
        find_channel_groups(model, run(torch.randn(1, 3, 4, 4)))


def test_plain_types_and_back(mixed):
    found = find_channel_groups(mixed, run(mixed.inputs()))
    assert FoundGroups.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_the_check_notices_a_missing_slice(mixed):
    forward = run(mixed.inputs())
    groups = find_channel_groups(mixed, forward).groups
    assert check_channel_groups(mixed, groups, forward) < 1e-5
    # the last channels of the flattened map would be read as if they were the first ones
    down = next(group for group in groups if group.name == 'down')
    members = [replace(m, repeat=1, tiles=4) if m.tensor == 'hidden.weight' else m for m in down.members]
    with pytest.raises(ValueError, match='removing channels changes the output by'):
        check_channel_groups(mixed, [replace(down, members=tuple(members))], forward)


@pytest.fixture(scope='module')
def bevfusion():
    return build_bevfusion(), bevfusion_groups()


def test_groups_of_bevfusion(bevfusion):
    model, found = bevfusion
    groups = {group.name: group for group in found.groups}
    for part in ('img_backbone', 'img_neck', 'view_transform', 'pts_middle_encoder', 'fusion_layer', 'pts_backbone',
                 'pts_neck', 'bbox_head'):  # fmt: skip
        assert any(name.startswith(part) for name in groups), part
    # the residual stream of a stage: its downsampling, the last convolution of each block, all that read them
    stream = {member.tensor for member in groups['img_backbone.layer2.0.conv3'].members if member.role == 'out'}
    convs = [f'img_backbone.layer2.{block}.conv3.weight' for block in range(4)]
    assert stream == {*convs, 'img_backbone.layer2.0.downsample.0.weight'}
    assert found.left_out['view_transform.depthnet.6'].startswith('channels are mixed')
    assert found.left_out['bbox_head.heatmap_head.1'] == 'reaches the output'
    # behind the sparse encoder a channel is one map per height
    readers = [m for m in groups['pts_middle_encoder.conv_out.0'].members if m.tensor == 'fusion_layer.0.weight']
    assert [member.repeat for member in readers] == [2]
    dense = model.state_dict()
    for group in found.groups:
        assert all(member.tensor in dense for member in group.members)


def test_removing_channels_from_bevfusion_equals_masking_them(bevfusion):
    model, found = bevfusion
    assert check_channel_groups(model, found.groups, bevfusion_forward) < 2e-5


@pytest.mark.parametrize(
    'kind', ['img_backbone.layer3.0.conv3', 'pts_middle_encoder.conv_input.0', 'pts_neck.deblocks.1.0']
)
def test_removing_one_channel_of_one_group(bevfusion, kind):
    model, found = bevfusion
    (group,) = [group for group in found.groups if group.name == kind]
    keep = {kind: torch.arange(group.size) != group.size // 2}
    weights = model.state_dict()
    slim, masked = copy.deepcopy(model), copy.deepcopy(model)
    for changed, values in (
        (slim, slice_tensors(weights, [group], keep)),
        (masked, mask_tensors(weights, [group], keep)),
    ):
        slim_model_(changed, {name: value.shape for name, value in values.items()})
        for name, value in changed.state_dict().items():
            value.copy_(values[name])
    with torch.no_grad():
        ours, theirs, dense = (bevfusion_forward(each) for each in (slim, masked, model))
    rounding, effect = (ours - theirs).abs().max(), (dense - theirs).abs().max()
    assert rounding < 1e-5 * dense.abs().max()
    assert effect > 1e-3 * dense.abs().max()


def torch_pruning_groups(model, inputs, layers):
    """Which output and input dimensions Torch-Pruning ties to each layer's output channels."""
    tp = pytest.importorskip('torch_pruning')
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=inputs)
    found = set()
    for name in layers:
        module = model.get_submodule(name)
        prune = graph.get_pruner_of_module(module).prune_out_channels
        group = graph.get_pruning_group(module, prune, idxs=[0])
        tied = set()
        for dependency, _ in group:
            target = dependency.target.module
            if not isinstance(target, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d)):
                continue
            is_out = graph.is_out_channel_pruning_fn(dependency.handler)
            if isinstance(target, nn.BatchNorm2d):
                tied.add((graph._module2name[target], 'norm'))
            else:
                tied.add((graph._module2name[target], 'out' if is_out else 'in'))
        found.add(frozenset(tied))
    return found


class Pyramid(nn.Module):
    """A ResNet of mmdet with mmdet3d's SECONDFPN: residual streams, deconvolutions, concatenation."""

    def __init__(self):
        super().__init__()
        from mmdet.models.backbones import ResNet
        from mmdet3d.models.necks import SECONDFPN

        self.backbone = ResNet(50, base_channels=4, out_indices=(1, 2, 3), norm_eval=False)
        self.neck = SECONDFPN([32, 64, 128], [12, 12, 12], [1, 2, 4], norm_cfg={'type': 'BN'})
        self.head = nn.Conv2d(36, 3, 1)

    def forward(self, x):
        return self.head(self.neck(self.backbone(x))[0])


def test_agrees_with_torch_pruning_where_that_is_right():
    torch.manual_seed(0)
    model, inputs = Pyramid().eval(), torch.randn(1, 3, 64, 64)
    found = find_channel_groups(model, run(inputs))
    kinds = {'out': 'out', 'in': 'in', 'through': 'norm', 'stat': 'norm'}
    ours = set()
    for group in found.groups:
        ours.add(frozenset((m.tensor.rpartition('.')[0], kinds[m.role]) for m in group.members))
    assert len(ours) == 40
    assert torch_pruning_groups(model, inputs, [group.name for group in found.groups]) == ours
