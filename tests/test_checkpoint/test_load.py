from __future__ import annotations

import logging

import mmengine.runner
import mmengine.runner.checkpoint
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseTTAModel
from mmengine.runner import Runner, load_checkpoint
from torch import nn

from mmprune3d.checkpoint.load import count_by_module, load_state_dict, summarise
from mmprune3d.checkpoint.mismatch import CheckpointMismatchError, Mismatch, explain, parse_error, remedy
from mmprune3d.engine.hooks.allow_mismatch_hook import AllowShapeMismatchHook
from tests.toy_runner import ToyModel, write_config


@pytest.fixture
def messages(caplog):
    """A function that gives the messages of the logger 'load' so far."""
    caplog.set_level(logging.WARNING, logger='load')
    return lambda: list(caplog.messages)


def load(model, weights, **options):
    load_state_dict(model, weights, logger=logging.getLogger('load'), **options)


def randomised(**options):
    model = ToyModel(**options)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape))
    return model


class TestLoads:
    def test_everything_is_loaded_and_nothing_is_said(self, messages):
        source, target = randomised(), ToyModel()
        weights = source.state_dict()
        before = list(weights)
        load(target, weights)
        for name, tensor in target.state_dict().items():
            assert torch.equal(tensor, source.state_dict()[name]), name
        assert messages() == [] and list(weights) == before

    def test_missing_and_unexpected_keys_are_one_message(self, messages):
        weights = randomised().state_dict()
        del weights['fc_cls.weight'], weights['fc_cls.bias']
        weights |= {f'old_head.layer{i}.weight': torch.ones(1) for i in range(3)}
        load(ToyModel(), weights)
        (message,) = messages()
        assert 'left as initialised: 2 (fc_cls: 2)' in message
        assert 'not used: 3 (old_head.layer0: 1, old_head.layer1: 1, old_head.layer2: 1)' in message

    def test_num_batches_tracked_may_be_missing(self, messages):
        weights = randomised().state_dict()
        del weights['backbone.1.num_batches_tracked']
        load(ToyModel(), weights, strict=True)
        assert messages() == []

    def test_strict_raises_for_missing_and_for_unexpected(self):
        weights = randomised().state_dict()
        with pytest.raises(RuntimeError, match=r'not used: 1 \(extra: 1\)'):
            load(ToyModel(), weights | {'extra': torch.ones(1)}, strict=True)
        del weights['fc_cls.bias']
        with pytest.raises(RuntimeError, match='left as initialised: 1'):
            load(ToyModel(), weights, strict=True)

    def test_wrappers_are_looked_through(self):
        class Averaging(BaseTTAModel):
            def merge_preds(self, data_samples_list):
                raise NotImplementedError

        source, target = randomised(), ToyModel()
        load(Averaging(module=target), source.state_dict(), strict=True)
        assert torch.equal(target.fc_cls.weight, source.fc_cls.weight)

    def test_module_versions_and_hooks_are_called(self):
        seen = []

        class Versioned(nn.Linear):
            _version = 7

            def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
                seen.append((prefix, local_metadata.get('version')))
                super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)

        def rename(state_dict, prefix, *others):
            state_dict[prefix + 'weight'] = state_dict.pop(prefix + 'old_weight')

        def forgive(module, incompatible):
            incompatible.missing_keys.remove('0.bias')

        model = nn.Sequential(Versioned(2, 2))
        weights = nn.Sequential(Versioned(2, 2)).state_dict()
        weights['0.old_weight'] = weights.pop('0.weight')
        del weights['0.bias']
        model[0]._register_load_state_dict_pre_hook(rename)
        model[0].register_load_state_dict_post_hook(forgive)
        load(model, weights, strict=True)
        assert seen == [('0.', 7)]
        assert torch.equal(model[0].weight, weights['0.old_weight'])


class TestRefuses:
    def test_other_shape_names_key_shapes_and_remedy(self):
        with pytest.raises(CheckpointMismatchError) as error:
            load(ToyModel(num_query=9), ToyModel(num_query=3).state_dict())
        message = str(error.value)
        assert 'query_embedding.weight: checkpoint [3, 4], model [9, 4]' in message
        assert 'the checkpoint has 3 queries' in message and 'num_query=3' in message

    def test_nothing_fits(self):
        weights = {f'model.{name}': tensor for name, tensor in ToyModel().state_dict().items()}
        with pytest.raises(CheckpointMismatchError, match=r'none of its 10 keys .*\n.*model\.backbone.*\n.*backbone'):
            load(ToyModel(), weights)

    def test_errors_that_are_not_about_shapes_are_kept(self):
        weights = ToyModel().state_dict()
        weights['fc_cls.bias'] = 'not a tensor'
        with pytest.raises(CheckpointMismatchError, match=r'fc_cls\.bias'):
            load(ToyModel(), weights)


class TestRemedies:
    @pytest.mark.parametrize(
        ('key', 'saved', 'model', 'expected'),
        [
            ('pts_bbox_head.reference_points.weight', (300, 3), (900, 3), 'set num_query=300'),
            ('query_embedding.weight', (100, 256), (300, 256), 'num_queries'),
            ('pts_bbox_head.query_embedding.0.weight', (256, 384), (128, 192), 'widths'),
            ('pts_bbox_head.query_embedding.0.weight', (256, 384), (128, 384), 'widths'),
            ('pts_bbox_head.cls_branches.0.6.weight', (10, 256), (3, 256), "prefixes=['pts_bbox_head.cls_branches']"),
            ('aux_head.cls.weight', (10, 64, 1, 1), (2, 64, 1, 1), "prefixes=['aux_head.cls']"),
            ('bbox_head.fc_cls.bias', (10,), (4,), 'num_classes'),
            ('bbox_head.fc_cls.weight', (10, 256), (4, 128), 'widths'),
            (
                'middle_encoder.conv.0.weight',
                (3, 3, 1, 4, 16),
                (16, 3, 3, 1, 4),
                'by (4, 0, 1, 2, 3)',
            ),
            (
                'middle_encoder.conv.0.weight',
                (16, 3, 3, 1, 4),
                (3, 3, 1, 4, 16),
                'by (1, 2, 3, 4, 0)',
            ),
            ('middle_encoder.conv.0.weight', (16, 3, 3, 1, 4), (4, 3, 3, 1, 16), 'another order'),
            ('neck.conv.weight', (8, 4), (8, 4, 1, 1), 'reshape'),
            ('backbone.conv1.weight', (64, 3, 7, 7), (32, 3, 7, 7), 'widths'),
        ],
    )
    def test_remedy(self, key, saved, model, expected):
        assert expected in remedy(Mismatch(key, saved, model))

    def test_permutations_are_right(self):
        weights = torch.rand(3, 3, 1, 4, 16)
        assert weights.permute(4, 0, 1, 2, 3).shape == (16, 3, 3, 1, 4)
        assert weights.permute(4, 0, 1, 2, 3).permute(1, 2, 3, 4, 0).equal(weights)

    def test_every_remedy_is_given_once_and_long_lists_are_cut(self):
        mismatches = [Mismatch(f'layer{i}.weight', (4, i + 2), (8, 2 * i + 4)) for i in range(12)]
        mismatches.append(Mismatch('fc_cls.bias', (10,), (4,)))
        message = explain(mismatches, shown=10)
        assert message.startswith('13 tensors')
        assert message.count('->') == 2 and '... and 2 more' in message
        assert 'layer9.weight' in message and 'layer10.weight' not in message

    @pytest.mark.parametrize(('saved', 'model'), [((), (1,)), ((1,), ()), ((2, 3), (3, 2)), ((0, 2), (1, 2))])
    def test_torch_errors_are_understood(self, saved, model):
        module = nn.Module()
        module.register_buffer('value', torch.zeros(model))
        errors = []
        module._load_from_state_dict({'a.value': torch.zeros(saved)}, 'a.', {}, True, [], [], errors)
        if errors:  # torch itself accepts a zero-dimensional tensor for one of one element
            assert parse_error(errors[0]) == Mismatch('a.value', saved, model)
        else:
            assert {saved, model} == {(), (1,)}

    def test_other_errors_are_not_understood(self):
        assert parse_error('While copying the parameter named "x", an exception occurred') is None


class TestSummaries:
    def test_counts_by_module(self):
        keys = [*(f'head.layers.{i}.weight' for i in range(5)), 'neck.weight', 'scale']
        assert count_by_module(keys) == 'head.layers: 5, neck: 1, scale: 1'
        assert count_by_module(keys, shown=1) == 'head.layers: 5 and 2 more groups'

    def test_one_side_only(self):
        assert 'not used' not in summarise(['a.b'], [])
        assert 'initialised' not in summarise([], ['a.b'])


class TestInMMEngine:
    """Everybody who loads through mmengine gets the strict loader."""

    def test_it_is_installed(self):
        assert mmengine.runner.checkpoint.load_state_dict is load_state_dict
        assert mmengine.runner.load_state_dict is load_state_dict

    def test_load_checkpoint_as_init_model_calls_it(self, tmp_path):
        torch.save(dict(meta={}, state_dict=ToyModel(num_query=3).state_dict()), tmp_path / 'small.pth')
        with pytest.raises(CheckpointMismatchError, match='num_query=3'):
            load_checkpoint(ToyModel(), str(tmp_path / 'small.pth'), map_location='cpu')
        wrapped = {f'module.{name}': tensor for name, tensor in randomised().state_dict().items()}
        torch.save(dict(meta={}, state_dict=wrapped), tmp_path / 'wrapped.pth')
        target = ToyModel()
        load_checkpoint(target, str(tmp_path / 'wrapped.pth'), map_location='cpu')
        assert torch.equal(target.fc_cls.weight, wrapped['module.fc_cls.weight'])

    def test_pretrained_backbones(self, tmp_path):
        torch.save(dict(state_dict=nn.Sequential(nn.Linear(2, 8)).state_dict()), tmp_path / 'backbone.pth')
        from mmengine.model import PretrainedInit

        with pytest.raises(CheckpointMismatchError, match='widths'):
            PretrainedInit(str(tmp_path / 'backbone.pth'))(nn.Sequential(nn.Linear(2, 4)))

    def test_runner_with_and_without_the_hook(self, tmp_path):
        torch.save(dict(meta={}, state_dict=randomised(num_classes=10).state_dict()), tmp_path / 'ten.pth')
        changes = dict(load_from=str(tmp_path / 'ten.pth'), custom_hooks=[])

        def runner(name, **more):
            path = write_config(tmp_path / f'{name}.py', tmp_path / 'work', experiment_name=name, **changes | more)
            return Runner.from_cfg(Config.fromfile(path))

        with pytest.raises(CheckpointMismatchError, match='num_classes'):
            runner('strict').load_or_resume()
        hook = dict(type='AllowShapeMismatchHook', prefixes=['fc_cls'])
        allowed = runner('allowed', custom_hooks=[dict(type='EMAHook'), hook])
        allowed.call_hook('before_run')
        before = allowed.model.fc_cls.weight.clone()
        allowed.load_or_resume()
        saved = torch.load(tmp_path / 'ten.pth', weights_only=True)['state_dict']
        assert torch.equal(allowed.model.fc_cls.weight, before)
        assert torch.equal(allowed.model.query_embedding.weight, saved['query_embedding.weight'])
        fitting = runner('fitting', custom_hooks=[hook], model=dict(type='ToyModel', num_classes=10))
        fitting.load_or_resume()
        assert torch.equal(fitting.model.fc_cls.weight, saved['fc_cls.weight'])

    def test_hook_refuses_names_that_match_nothing(self, tmp_path):
        runner = type('Runner', (), dict(model=ToyModel()))
        with pytest.raises(ValueError, match=r"begins with 'head'.*'fc_cls\.bias'"):
            AllowShapeMismatchHook(['head']).after_load_checkpoint(runner, dict(state_dict=ToyModel().state_dict()))

    @pytest.mark.parametrize('prefixes', ['fc_cls', []])
    def test_hook_wants_a_list(self, prefixes):
        with pytest.raises(ValueError, match='must be a list'):
            AllowShapeMismatchHook(prefixes)


class TestSparseConvolutions:
    """The layout of spconv 2 is told from that of older ones by the shapes (more in test_convert_bevfusion)."""

    @pytest.fixture
    def layers(self):
        spconv = pytest.importorskip('spconv.pytorch')
        import mmdet3d.models.layers.spconv  # noqa: F401  makes the layers read the version

        return [nn.Sequential(spconv.SubMConv3d(2, 5, 3, bias=False)) for _ in range(2)]

    def test_round_trip_through_a_file(self, layers, tmp_path):
        source, target = layers
        torch.save(dict(meta={}, state_dict=source.state_dict()), tmp_path / 'sparse.pth')
        load_checkpoint(target, str(tmp_path / 'sparse.pth'), map_location='cpu')
        assert torch.equal(source[0].weight, target[0].weight)

    def test_older_weights_are_converted(self, layers):
        source, target = layers
        load(target, {'0.weight': source[0].weight.detach().permute(1, 2, 3, 4, 0).contiguous()})
        assert torch.equal(source[0].weight, target[0].weight)

    def test_a_lost_version_does_not_matter(self, layers):
        source, target = layers
        load(target, dict(source.state_dict()))
        assert torch.equal(source[0].weight, target[0].weight)
