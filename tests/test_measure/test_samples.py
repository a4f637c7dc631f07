from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mmengine
import pytest
from mmengine.dataset import BaseDataset, DefaultSampler, InfiniteSampler, RepeatDataset
from mmengine.dataset import ConcatDataset as MMConcat
from nuscenes.eval.common.data_classes import EvalBoxes
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from mmprune3d.measure.annotations import check_classes, no_accuracy
from mmprune3d.measure.nuscenes_subset import _chosen
from mmprune3d.measure.samples import Chosen, check_samples, choose, data_info, identity, temporal_reason


class Frames(BaseDataset):
    """`count` samples, `per_scene` of a scene one after the other."""

    METAINFO = dict(classes=('car',))

    def __init__(
        self, count: int, per_scene: int = 0, first: int = 0, labelled: int | None = None, **settings: Any
    ) -> None:
        self.made = [
            {'token': f't{first + k}', **({'scene_token': f's{k // per_scene}'} if per_scene else {})}
            for k in range(count)
        ]
        if labelled is not None:
            self.made[labelled]['instances'] = [dict(bbox_label_3d=0)]
        super().__init__(**settings)

    def load_data_list(self) -> list[dict]:
        return self.made


def tokens(dataset: Dataset) -> list[str]:
    return [data_info(dataset, index)['token'] for index in range(len(dataset))]


def test_infos_are_found_inside_of_wrappers() -> None:
    five, two = Frames(5), Frames(2, first=10)
    assert tokens(Subset(five, [4, 0])) == ['t4', 't0']
    assert tokens(Chosen(Subset(five, [4, 0, 2]), [2, 1])) == ['t2', 't0']
    assert tokens(ConcatDataset([Subset(five, [3]), two])) == ['t3', 't10', 't11']
    assert tokens(MMConcat([two, two])) == ['t10', 't11'] * 2 and tokens(RepeatDataset(two, 2)) == ['t10', 't11'] * 2
    assert data_info([1, 2], 0) == {}


def test_samples_are_spread_evenly() -> None:
    assert choose(Frames(9), nn.Identity(), 3).indices == [0, 4, 8]
    assert choose(Frames(4), nn.Identity(), None).indices == choose(Frames(4), nn.Identity(), 4).indices == [0, 1, 2, 3]
    with pytest.raises(ValueError, match='cannot choose 5 of 4 samples; valid are 1 to 4'):
        choose(Frames(4), nn.Identity(), 5)


@pytest.mark.parametrize(('name', 'value'), [('memory_len', 512), ('queue_length', 4), ('video_test_mode', True)])
def test_models_with_a_memory_are_tested_on_whole_scenes(name: str, value: object) -> None:
    model = nn.Sequential(nn.Identity())
    setattr(model[0], name, value)
    choice = choose(Frames(20, per_scene=5), model, 9)
    assert choice.indices == [0, 1, 2, 3, 4, 15, 16, 17, 18, 19]
    assert choice.note == f'2 of 4 scenes, whole ones because of Identity.{name} = {value}'
    assert len(choose(Frames(20, per_scene=5), model, 1).indices) == 5
    with pytest.raises(ValueError, match=r'looked for scene_token, .*: test all samples'):
        choose(Frames(20), model, 9)


def test_what_is_declared_settles_it() -> None:
    model, dataset = nn.Identity(), Frames(4)
    assert temporal_reason(model, dataset) == ''
    dataset.queue_length = 3
    assert temporal_reason(model, Subset(dataset, [0])) == 'Frames.queue_length = 3'
    model.is_temporal = False
    assert temporal_reason(model, dataset) == ''
    model.is_temporal = True
    assert temporal_reason(model, dataset) == 'Identity.is_temporal'


def runner_of(dataset: Dataset, *metrics: object) -> Any:
    return SimpleNamespace(
        test_dataloader=DataLoader(dataset), test_evaluator=SimpleNamespace(metrics=list(metrics), dataset_meta={})
    )


@pytest.fixture
def metric(tmp_path) -> object:
    """An evaluator that looks samples up by number in a file of six, as mmdet3d's do."""
    path = tmp_path / 'infos.pkl'
    mmengine.dump(dict(data_list=[dict(token=f't{k}') for k in range(6)]), str(path))
    return SimpleNamespace(ann_file=str(path))


def test_parts_whose_numbers_are_those_of_the_file_can_be_judged(metric: object) -> None:
    for dataset in (Frames(6), Frames(6, indices=4), Subset(Frames(6), [1, 5]), RepeatDataset(Frames(6), 2)):
        check_samples(runner_of(dataset, metric))


@pytest.mark.parametrize(
    'dataset',
    [Frames(6, indices=[1, 3]), Frames(6, indices=-2), MMConcat([Frames(6), Frames(6, first=6)]), Frames(7)],
    ids=['indices', 'last', 'concatenated', 'longer'],
)
def test_samples_that_would_be_taken_for_others_are_refused(metric: object, dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=r'would take sample t.* for another one.*--samples N'):
        check_samples(runner_of(dataset, metric))


@pytest.mark.parametrize(
    ('loader', 'message'),
    [
        (dict(sampler=InfiniteSampler(Frames(6), shuffle=False)), r'InfiniteSampler\) gives more than 6 samples'),
        (dict(batch_size=4, drop_last=True), r'drop_last=True\) gives 4 samples, 4 of them different, of .* 6'),
        (dict(sampler=[0, 1, 2, 3, 4, 4]), r'gives 6 samples, 5 of them different'),
        (dict(sampler=[0, 1, 2]), r'gives 3 samples'),
        (dict(batch_sampler=[[0, 1], [2, 3], [4]]), r'gives 5 samples'),
    ],
)
def test_loaders_that_repeat_or_leave_out_samples_are_refused(loader: dict[str, Any], message: str) -> None:
    runner = runner_of(Frames(6))
    runner.test_dataloader = DataLoader(Frames(6), **loader)
    with pytest.raises(ValueError, match=message):
        check_samples(runner)


@pytest.mark.parametrize(
    'loader',
    [dict(batch_size=4), dict(shuffle=True), dict(sampler=DefaultSampler(Frames(6), shuffle=True)),
     dict(batch_sampler=[[5, 1], [2, 3], [4, 0]])],
)  # fmt: skip
def test_the_order_of_samples_does_not_matter(metric: object, loader: dict[str, Any]) -> None:
    runner = runner_of(Frames(6), metric)
    runner.test_dataloader = DataLoader(Frames(6), **loader)
    check_samples(runner)


def detector(**heads: Any) -> nn.Module:
    model = nn.Module()
    for name, count in heads.items():
        setattr(model, name, nn.Identity())
        getattr(model, name).num_classes = count
    return model


def test_heads_for_other_classes_than_the_test_set_are_refused() -> None:
    two = Frames(3, metainfo=dict(classes=('car', 'pedestrian')))
    for fitting in (dict(bbox_head=2), dict(bbox_head=[1, 1]), dict(rpn_head=1, roi_head=2), dict(backbone=1000)):
        check_classes(detector(**fitting), two)
    check_classes(detector(bbox_head=10), Subset(two, [0]))  # does not say its classes
    for other in (10, 1, [1, 2]):
        with pytest.raises(ValueError, match=r'model.bbox_head has \d+ classes, but the test set has 2 \(car, pedestr'):
            check_classes(detector(bbox_head=other), two)


def test_evaluators_that_need_everything_refuse_parts(metric: object) -> None:
    whole = type('LyftMetric', (), {})()
    whole.ann_file = metric.ann_file
    check_samples(runner_of(Frames(6), whole))
    with pytest.raises(ValueError, match='LyftMetric judges whole test sets only'):
        check_samples(runner_of(Frames(6, indices=4), whole))
    with pytest.raises(ValueError, match='no samples'):
        check_samples(runner_of(Subset(Frames(6), []), metric))


def test_samples_are_told_by_token_or_files() -> None:
    assert identity(dict(token='a', lidar_points=dict(lidar_path='x/b.bin'))) == 'a'
    assert identity(dict(lidar_points=dict(lidar_path='x/b.bin'))) == 'b.bin'
    assert identity(dict(images=dict(l=dict(img_path='x/1.png'), r=dict(img_path='2.png')))) == '1.png 2.png'
    assert identity({}) is None


class Det3DDataset(Frames):
    """Named as mmdet3d's, whose infos have annotations under `instances`."""


def kinds(*names: str, **attributes: object) -> Any:
    return SimpleNamespace(metrics=[type(name, (), attributes)() for name in names])


def test_a_test_set_without_annotations_is_seen() -> None:
    dataset, other = Det3DDataset(3), Frames(3)
    assert no_accuracy(dataset, kinds('KittiMetric')) == 'the test set has no annotations (no instances in 3 samples)'
    assert no_accuracy(other, kinds('KittiMetric')) == ''  # of another kind, which may keep them elsewhere
    dataset = Det3DDataset(3, labelled=1)
    assert no_accuracy(dataset, kinds('KittiMetric')) == ''
    assert no_accuracy(dataset, kinds('KittiMetric', format_only=True)) == (
        'KittiMetric only writes results to a file (format_only=True)'
    )
    assert no_accuracy(dataset, kinds()) == 'the config has no evaluator'


def test_samples_of_another_split_of_nuscenes_are_seen(tmp_path) -> None:
    tables = tmp_path / 'v1.0-trainval'
    tables.mkdir()
    scenes = [dict(token='seen', name='scene-0001'), dict(token='judged', name='scene-0003')]  # train and val
    samples = [dict(token=f't{k}', scene_token='judged' if k < 3 else 'seen') for k in range(5)]
    for name, table in dict(sample_annotation=[{}], scene=scenes, sample=samples).items():
        mmengine.dump(table, str(tables / f'{name}.json'))
    metric = kinds('NuScenesMetric', data_root=str(tmp_path), dataset_meta=dict(version='v1.0-trainval'))
    assert no_accuracy(Frames(3), metric) == no_accuracy(Frames(2, first=1), metric) == ''
    assert no_accuracy(Frames(5), metric).startswith(
        '2 of 5 samples of the test set are not in the split val of v1.0-trainval, the only one that NuScenesMetric '
        'evaluates (such as t3)'
    )


def test_ground_truth_that_is_not_there_is_no_sample_without_objects() -> None:
    truth = EvalBoxes()
    truth.add_boxes('t0', [])
    with pytest.raises(ValueError, match=r'1 of 2 samples .* \(such as t1\)'):
        _chosen(lambda: truth, ['t0', 't1'])
    assert _chosen(lambda: truth, ['t0']).sample_tokens == ['t0']


def test_annotations_of_nuscenes_are_those_of_the_tables(tmp_path) -> None:
    def reason(version: str) -> str:
        return no_accuracy(
            Det3DDataset(2), kinds('NuScenesMetric', data_root=str(tmp_path), dataset_meta=dict(version=version))
        )

    assert 'not of v1.0-test' in reason('v1.0-test')
    assert 'sample_annotation.json does not exist' in reason('v1.0-mini')
    assert 'is there' not in reason('v1.0-trainval')
    (tmp_path / 'v1.0-mini').mkdir()
    table = tmp_path / 'v1.0-mini' / 'sample_annotation.json'
    table.write_text('[\n]\n')
    assert reason('v1.0-mini').endswith('has no annotations')
    table.write_text('[{"token": "a"}]')
    assert reason('v1.0-mini') == ''
    # mmdet3d takes the version from the config, not from the infos
    assert reason('v1.0-trainval').endswith("set test_dataloader.dataset.metainfo.version='v1.0-mini'")
