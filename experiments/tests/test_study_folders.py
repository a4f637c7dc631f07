"""Rows of a study that are there already belong to the model that the study is asked about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from experiments.altermoma import study as fusion_study
from experiments.gpq import study as query_study
from experiments.halting import study as halting_study
from mmprune3d import files

STUDIES: dict[str, tuple[str, Callable[[Config, Path], dict]]] = {
    'fusion': ('dense-seed0', lambda base, out: fusion_study.run_training(base, out / 'start.pth', 'dense', 0, out)),
    'halting': ('halt-82-0', lambda base, out: halting_study.run_training(base, out / 'start.pth', 'halt-82', 0, out)),
    'query': ('gpq-100-seed0', lambda base, out: query_study.run_training(base, 'gpq-100', 0, out)),
}


@pytest.mark.parametrize('kind', STUDIES)
def test_finished_rows_of_another_model_are_refused(tmp_path: Path, kind: str) -> None:
    row, run = STUDIES[kind]
    torch.save({'w': torch.zeros(2)}, tmp_path / 'start.pth')
    files.write_json(tmp_path / row / 'result.json', {'mAP': 0.5})
    base = Config(dict(model=dict(type='A', width=8)))
    for _ in range(2):
        assert run(base, tmp_path) == {'mAP': 0.5}
    with pytest.raises(ValueError, match=r'run with other settings \(model\.width was 8, is 16\)'):
        run(Config(dict(model=dict(type='A', width=16))), tmp_path)
    torch.save({'w': torch.ones(2)}, tmp_path / 'start.pth')
    with pytest.raises(ValueError, match=r'run with other settings \(other initial weights\)'):
        run(base, tmp_path)
