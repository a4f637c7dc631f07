"""The study's trainings fit together; what is missing is named before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from experiments.gpq.study import LR_FACTOR, RUNS, STUDY, run_training, training_config, write_start
from experiments.gpq.table import AT_RUN_TIME, results
from mmprune3d.pruning.gpq import GPQPlan

CONFIG = Path(__file__).parents[2] / 'configs' / 'gpq' / 'petr_tiny_study.py'
PER_EPOCH = 576


@pytest.mark.parametrize('name', RUNS)
def test_every_training_fits(name, tmp_path):
    run, base = RUNS[name], Config.fromfile(CONFIG)
    config = training_config(base, run, 3, STUDY.folder(tmp_path, name, 3))
    assert config.model.pts_bbox_head.num_query == run.queries and config.train_cfg.max_epochs == run.epochs
    assert config.load_from == str(STUDY.folder(tmp_path, name, 3) / 'start.pth') and not config.resume
    factor = 1.0 if run.start is None else LR_FACTOR
    assert config.optim_wrapper.optimizer.lr == pytest.approx(factor * base.optim_wrapper.optimizer.lr)
    assert run.start is None or RUNS[run.start].final == run.queries
    if run.gpq is not None:
        schedule = GPQPlan.from_dict(run.gpq).schedule(run.queries, PER_EPOCH)
        assert schedule.end <= run.epochs * PER_EPOCH
        assert run.queries - schedule.total == run.final


def test_plans_at_run_time_leave_as_many_as_they_say():
    for training, plan in AT_RUN_TIME.values():
        assert training.queries - sum(plan.query_removals(3)) == training.final


def test_starts(tmp_path):
    folder = STUDY.folder(tmp_path, 'scratch-100', 0)
    points = 'pts_bbox_head.reference_points.weight'
    with pytest.raises(FileNotFoundError, match=r'experiments\.petr align comes first'):
        write_start(RUNS['scratch-100'], 0, tmp_path, folder)
    torch.save({'state_dict': {points: torch.zeros(300, 3), 'other': torch.ones(1)}}, tmp_path / 'start.pth')
    write_start(RUNS['scratch-100'], 0, tmp_path, folder)
    written = torch.load(folder / 'start.pth', weights_only=True)
    assert list(written['state_dict']) == ['other']  # a training draws its own reference points
    with pytest.raises(FileNotFoundError, match='scratch-300 comes first'):
        write_start(RUNS['gpq-100'], 0, tmp_path, folder)


def test_unknown_names_and_an_empty_study(tmp_path):
    with pytest.raises(ValueError, match="no training 'gpq'; valid are scratch-300"):
        run_training(Config.fromfile(CONFIG), 'gpq', 0, tmp_path)
    with pytest.raises(ValueError, match='has no results; train first'):
        results(tmp_path)
