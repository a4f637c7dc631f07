"""Tests of a model under many plans: replayed ones give what the full test gives."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.runner import Runner

from mmprune3d import adapters
from mmprune3d.measure.accuracy import evaluate, summarize
from mmprune3d.measure.replayed_tests import CachedTest, TensorStore
from mmprune3d.measure.runners import prepare, read_config
from mmprune3d.measure.samples import infos_of
from mmprune3d.pruning.tggbc import TgGBCPlan
from tests.conftest import CONFIG

PLAN = TgGBCPlan(r=200, n=1, k=5)


@pytest.fixture(scope='module')
def runner(tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, Any], petr_checkpoint: Path) -> Runner:
    config = read_config(CONFIG, petr_checkpoint, overrides)
    return Runner.from_cfg(prepare(config, petr_checkpoint, tmp_path_factory.mktemp('study')))


@pytest.fixture
def cached(runner: Runner) -> Iterator[CachedTest]:
    with CachedTest(runner, memory_limit=0) as test:  # features go to files
        yield test


def predictions(runner: Runner) -> list[torch.Tensor]:
    """Boxes and scores of the test that `runner.test` runs now."""
    found = []

    class Watch:
        def __call__(self, data_samples: list, data_batch: object) -> None:
            found.extend((s.pred_instances_3d.bboxes_3d.tensor, s.pred_instances_3d.scores_3d) for s in data_samples)
            process(data_samples=data_samples, data_batch=data_batch)

    process = runner.test_loop.evaluator.process
    runner.test_loop.evaluator.process = Watch()
    try:
        evaluate(runner, 'watched')
    finally:
        del runner.test_loop.evaluator.process
    return [tensor for pair in found for tensor in pair]


def test_replayed_predictions_and_figures_are_those_of_the_full_test(runner: Runner, cached: CachedTest) -> None:
    loader = runner.test_dataloader
    for plan in (None, PLAN):
        with cached._replaying():
            if plan is not None:
                adapters.attach(runner.model, plan)
            replayed = predictions(runner)
        assert runner.test_dataloader is loader
        full = predictions(runner)
        expected = summarize(runner.test())
        adapters.detach(runner.model)
        assert len(full) == len(replayed) == 2 * 3
        assert all(map(torch.equal, full, replayed))
        assert cached.evaluate(plan) == expected
        if plan is None:
            assert cached.baseline == expected
    assert cached.keys == [240] * 6


def test_a_part_of_the_test_set_is_judged_by_its_own_ground_truth(runner: Runner) -> None:
    import nuscenes
    from nuscenes.eval.detection import evaluate as devkit
    from nuscenes.eval.detection.data_classes import DetectionBox

    untouched = devkit.load_gt
    with CachedTest(runner, samples=2) as test:
        assert test.indices == [0, 2] and not test.is_all
        infos = runner.test_dataloader.dataset
        tokens = [info['token'] for info in infos_of(test.replay.dataset)]
        assert tokens == [infos.get_data_info(index)['token'] for index in (0, 2)]
        # without a detection of theirs, other samples would count as missed
        truth = devkit.load_gt(nuscenes.NuScenes('v1.0-trainval', infos.data_root, verbose=False), 'val', DetectionBox)
        assert truth.sample_tokens == tokens
        assert set(test.evaluate(PLAN)) == set(test.baseline) >= {'mAP', 'NDS'}
        assert not adapters.is_attached(runner.model)
    assert devkit.load_gt is untouched


def test_features_of_killed_processes_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen(['true'])
    dead.wait()
    mark = f'features-{platform.node()}-'
    for name in (f'{mark}{dead.pid}-x', f'{mark}{os.getpid()}-x', f'{mark}y-x', 'features-another-1-x'):
        (tmp_path / name).mkdir()
        (tmp_path / name / '0.pth').touch()
    store = TensorStore(0, tmp_path)
    store.append({'x': torch.ones(3)})
    left = {path.name for path in tmp_path.iterdir()}
    assert f'{mark}{dead.pid}-x' not in left and len(left) == 4
    assert torch.equal(store[0]['x'], torch.ones(3))
    store.close()
    assert {path.name for path in tmp_path.iterdir()} == {
        f'{mark}{os.getpid()}-x',
        f'{mark}y-x',
        'features-another-1-x',
    }


def test_features_that_do_not_fit_go_to_files(tmp_path: Path) -> None:
    store = TensorStore(memory_limit=100, folder=tmp_path)
    trees = [[torch.arange(20.0) + i, {'a': (torch.ones(1),)}] for i in range(3)]
    for tree in trees:
        store.append(tree)
    assert len(list(tmp_path.glob('*/*.pth'))) == 2
    for tree, found in zip(trees, store, strict=True):
        assert torch.equal(tree[0], found[0]) and torch.equal(tree[1]['a'][0], found[1]['a'][0])
    store.close()
    assert not list(tmp_path.iterdir())
