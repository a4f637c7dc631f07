from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import mmdet3d
import mmengine
import numpy as np
import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from experiments.altermoma import study as fusion_study
from experiments.gpq import study as query_study
from experiments.halting import study as halting_study
from experiments.tggbc import study as key_study
from mmprune3d.measure import measured as measured_module
from mmprune3d.measure import tested
from mmprune3d.measure.accuracy import summarize
from mmprune3d.measure.measured import Measured, source_of_upgrade
from mmprune3d.measure.runners import prepare, read_config
from mmprune3d.models.petr import PETR3D
from mmprune3d.pruning.gpq import GPQPlan
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.pruning.tome import ToMePlan
from mmprune3d.upgrade import compare, tggbc
from mmprune3d.upgrade.configs import check_inputs, upgraded_config
from mmprune3d.upgrade.finetune import shortened
from mmprune3d.upgrade.gpq import QueryPruning
from mmprune3d.upgrade.run import run_upgrade
from mmprune3d.upgrade.search import SearchRequest
from mmprune3d.visualization import upgrade as pictures
from mmprune3d.visualization.legend import LEGEND_HEIGHT
from tests.conftest import CONFIG

KEYS = 6 * (64 // 16) * (160 // 16)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, Any], petr_checkpoint: Path) -> Path:
    out = tmp_path_factory.mktemp('upgrade')
    shutil.copy(petr_checkpoint, out / 'petr.pth')
    plan = TgGBCPlan(r=150, n=2, k=40)
    run_upgrade(CONFIG, out / 'petr.pth', plan, out / 'report', overrides, timed=2, repeats=1, pictures=2)
    return out


def test_report_has_both_models_and_where_it_was_measured(folder: Path) -> None:
    report = json.loads((folder / 'report' / 'report.json').read_text())
    baseline, upgraded = report['baseline'], report['upgraded']
    assert baseline['keys'] == [KEYS] * 6
    assert upgraded['keys'] == [KEYS, KEYS - 74, KEYS - 150, KEYS - 150, KEYS - 150, KEYS - 150]
    for result in (baseline, upgraded):
        assert {'mAP', 'NDS', 'mATE', 'mASE', 'mAOE', 'mAVE', 'mAAE', 'gflops', 'peak_mib'} < set(result)
        assert set(result['ms']) == {'backbone', 'neck', 'decoder', 'rest', 'total'}
        assert min(result['ms'].values()) > 0
    assert upgraded['gflops'] < baseline['gflops']
    assert upgraded['gflops_by_stage']['backbone'] == baseline['gflops_by_stage']['backbone']
    assert TgGBCPlan.from_dict(report['plan']) == TgGBCPlan(r=150, n=2, k=40)
    assert 'search' not in report
    assert {'device', 'dtype', 'batch', 'threads', 'torch', 'mmdet3d'} <= set(report['env'])
    assert report['samples'] == {'evaluated': 3, 'timed': 2}


def test_table_names_every_figure(folder: Path) -> None:
    table = (folder / 'report' / 'report.md').read_text()
    for name in ('mAP', 'NDS', 'mATE (m) ↓', 'decoder (ms)', 'decoder (GFLOPs)', 'peak memory (MiB)', 'keys per layer'):
        assert f'| {name} |' in table


def test_pictures_are_drawn(folder: Path) -> None:
    pictures = sorted((folder / 'report' / 'pictures').iterdir())
    assert len(pictures) == 2
    image = cv2.imread(str(pictures[0]))
    # 2 x 3 cameras, 640 pixels wide, over a legend, and a square view from above beside them
    height = 2 * 256 + LEGEND_HEIGHT
    assert image.shape == (height, 3 * 640 + height, 3)


def test_upgraded_files_run_in_mmdet3ds_own_test_tool(folder: Path) -> None:
    tool = Path(mmdet3d.__file__).parent / '.mim' / 'tools' / 'test.py'
    report = folder / 'report'
    command = [sys.executable, tool, report / 'upgraded.py', report / 'upgraded.pth', '--work-dir', folder / 'test']
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    metrics = json.loads(next((folder / 'test').glob('*/*.json')).read_text())
    expected = json.loads((report / 'report.json').read_text())['upgraded']
    found = summarize(metrics)
    assert found['NDS'] == pytest.approx(expected['NDS'], abs=1e-4)


def test_plan_travels_with_the_checkpoint(folder: Path) -> None:
    data = torch.load(folder / 'report' / 'upgraded.pth', weights_only=True)
    assert TgGBCPlan.from_dict(data['meta']['mmprune3d']['tggbc']) == TgGBCPlan(r=150, n=2, k=40)


def test_a_config_that_prunes_already_is_refused(folder: Path) -> None:
    pruned = upgraded_config(Config.fromfile(CONFIG), TgGBCPlan(r=5))
    with pytest.raises(ValueError, match='prunes already'):
        prepare(pruned, folder / 'petr.pth', folder)


def test_token_merging_gets_its_own_hook() -> None:
    config = upgraded_config(Config.fromfile(CONFIG), ToMePlan(r=20, n=1))
    assert config.custom_hooks[-1] == {'type': 'ToMeHook', 'r': 20, 'n': 1, 'q': 0}


def test_a_search_comes_before_the_upgrade_and_is_reported(
    folder: Path, overrides: dict[str, Any], tmp_path: Path
) -> None:
    # an untrained model loses nothing, so that the end of the grid is reached at once
    request = SearchRequest(TgGBCPlan(r=1, k=40), max_drop=0.5, calibrate=2)
    run_upgrade(CONFIG, folder / 'petr.pth', request, tmp_path, overrides, timed=1, repeats=1, pictures=0)
    report = json.loads((tmp_path / 'report.json').read_text())
    assert TgGBCPlan.from_dict(report['plan']) == TgGBCPlan(r=KEYS * 15 // 16, n=1, k=40)
    assert report['search']['found'] == report['plan'] and report['search']['samples'] == 2
    assert '## Search' in (tmp_path / 'report.md').read_text()
    assert report['samples']['evaluated'] == 3


def test_a_search_without_result_writes_the_search_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Collapsing:
        keys, indices, baseline = [64] * 3, range(5), {'mAP': 0.5, 'NDS': 0.4}

        def __init__(self, runner: object, samples: int | None) -> None:
            assert samples == 5

        def __enter__(self) -> Collapsing:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def evaluate(self, plan: TgGBCPlan) -> dict[str, float]:
            return {'mAP': 0.1, 'NDS': 0.4}

    monkeypatch.setattr(tggbc, 'CachedTest', Collapsing)
    with pytest.raises(ValueError, match=r'no plan keeps mAP and NDS within 0\.01'):
        tggbc.find_plan(None, SearchRequest(TgGBCPlan(r=1), calibrate=5), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['search.json', 'search.md']
    trials = json.loads((tmp_path / 'search.json').read_text())['trials']
    assert [(trial['plan']['r'], trial['plan']['n']) for trial in trials][-2:] == [(4, 1), (4, 2)]


def test_a_config_without_a_test_set_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match='no test_dataloader'):
        prepare(Config(dict(model=dict(type='PETR3D'))), folder / 'petr.pth', folder)


@pytest.mark.parametrize('missing', ['config', 'checkpoint'])
def test_missing_files_are_named(tmp_path: Path, missing: str) -> None:
    config = CONFIG if missing == 'checkpoint' else tmp_path / 'none.py'
    with pytest.raises(FileNotFoundError, match=r'none\.p'):
        run_upgrade(config, tmp_path / 'none.pth', TgGBCPlan(r=5), tmp_path, {}, timed=1, repeats=1, pictures=1)


def test_the_command_line_says_what_is_valid(folder: Path) -> None:
    tool = CONFIG.parents[2] / 'tools' / 'upgrade.py'
    command = [sys.executable, tool, CONFIG, folder / 'petr.pth', '--tggbc', 'r=5,m=2']
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.strip().endswith('error: tgGBC: unknown setting m; valid are r, n, q, k, activation, score, t')


def test_a_plan_that_leaves_no_key_fails_before_anything_is_evaluated(
    folder: Path, overrides: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f'valid are 0 to {KEYS - 1}'):
        run_upgrade(CONFIG, folder / 'petr.pth', TgGBCPlan(r=KEYS, n=1), tmp_path, overrides, 1, 1, 1)
    assert not (tmp_path / 'report.json').exists()


SMALL = TgGBCPlan(r=100, n=1, k=40)


def with_infos(overrides: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The overrides for a test set whose infos are changed."""
    infos = mmengine.load(overrides['test_evaluator.ann_file'])
    for info in infos['data_list']:
        change(info)
    path = str(tmp_path / 'infos.pkl')
    mmengine.dump(infos, path)
    return {**overrides, 'test_dataloader.dataset.ann_file': path, 'test_evaluator.ann_file': path}


@pytest.mark.parametrize('kind', ['five', 'sorted', 'one'])
def test_pictures_name_the_cameras_as_the_data_does(
    folder: Path, overrides: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    keep = {
        'five': lambda images: [name for name in images if name != 'CAM_BACK'],
        'one': lambda images: ['CAM_BACK_LEFT'],
        'sorted': sorted,
    }[kind]
    changed = with_infos(
        overrides, tmp_path, lambda info: info.update(images={c: info['images'][c] for c in keep(info['images'])})
    )
    drawn, draw = [], pictures.draw_cameras

    def spy(images: list[np.ndarray], sample: object, names: list[str], *others: object) -> np.ndarray:
        drawn.append((images, names))
        return draw(images, sample, names, *others)

    monkeypatch.setattr(pictures, 'draw_cameras', spy)
    run_upgrade(CONFIG, folder / 'petr.pth', TgGBCPlan(r=20, n=1, k=40), tmp_path / 'out', changed, 1, 1, 1, samples=1)
    assert len(list((tmp_path / 'out' / 'pictures').iterdir())) == 1
    first = mmengine.load(changed['test_evaluator.ann_file'])['data_list'][0]['images']
    ((images, names),) = drawn
    assert names == list(first)
    root = Path(overrides['test_dataloader.dataset.data_root']) / 'samples'
    files = {name: cv2.imread(str(root / name / first[name]['img_path']))[..., ::-1] for name in names}
    for image, name in zip(images, names, strict=True):
        differences = {other: np.abs(image.astype(int) - file).mean() for other, file in files.items()}
        assert min(differences, key=differences.get) == name


def test_pictures_that_fail_cost_nothing(
    folder: Path, overrides: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail_once(path: Path, *_: object, **__: object) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise IndexError('no such colour')
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b'')

    monkeypatch.setattr(compare, 'draw_upgrade', fail_once)
    run_upgrade(CONFIG, folder / 'petr.pth', SMALL, tmp_path, overrides, timed=1, repeats=1, pictures=2)
    assert {'report.json', 'report.md', 'upgraded.py', 'upgraded.pth'} <= {path.name for path in tmp_path.iterdir()}
    assert [path.name for path in (tmp_path / 'pictures').iterdir()] == [calls[1].name]
    (log,) = (tmp_path / 'logs').glob('*/*.log')
    warnings = [line for line in log.read_text().splitlines() if 'WARNING' in line and 'could not be drawn' in line]
    assert (
        len(warnings) == 1 and 'the picture of sample 0 could not be drawn: no such colour (IndexError)' in warnings[0]
    )


def test_an_interrupted_upgrade_has_its_model_and_goes_on(
    folder: Path, overrides: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles, evaluate = [], tested.evaluate_and_warn

    def interrupted(runner: Runner, title: str) -> tuple[dict[str, float], list[str]]:
        titles.append(title)
        if titles == ['baseline', 'upgraded']:
            raise KeyboardInterrupt
        return evaluate(runner, title)

    monkeypatch.setattr(tested, 'evaluate_and_warn', interrupted)

    def start(checkpoint: Path) -> None:
        run_upgrade(CONFIG, checkpoint, SMALL, tmp_path / 'out', overrides, timed=1, repeats=1, pictures=0)

    with pytest.raises(KeyboardInterrupt):
        start(folder / 'petr.pth')
    assert Config.fromfile(tmp_path / 'out' / 'upgraded.py').custom_hooks[-1].type == 'TgGBCHook'
    data = torch.load(tmp_path / 'out' / 'upgraded.pth', weights_only=True)
    assert TgGBCPlan.from_dict(data['meta']['mmprune3d']['tggbc']) == SMALL
    assert not (tmp_path / 'out' / 'report.json').exists()
    kept = json.loads((tmp_path / 'out' / 'measured.json').read_text())['figures']['baseline']['figures']

    start(folder / 'petr.pth')
    assert titles == ['baseline', 'upgraded', 'upgraded']
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert {name: report['baseline'][name] for name in kept} == kept
    assert not (tmp_path / 'out' / 'measured.json').exists()
    start(folder / 'petr.pth')  # a finished one is measured anew
    assert titles[3:] == ['baseline', 'upgraded']


def test_an_upgrade_that_is_interrupted_while_it_draws_measures_the_baseline_once(
    folder: Path, overrides: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles, evaluate = [], tested.evaluate_and_warn

    def start() -> None:
        run_upgrade(CONFIG, folder / 'petr.pth', SMALL, tmp_path, overrides, timed=1, repeats=1, pictures=1)

    def counted(runner: Runner, title: str) -> tuple[dict[str, float], list[str]]:
        titles.append(title)
        return evaluate(runner, title)

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tested, 'evaluate_and_warn', counted)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tested, 'safely', interrupted)
        start()
    assert (tmp_path / 'report.json').is_file()
    start()
    assert titles == ['baseline', 'upgraded', 'upgraded']
    assert list((tmp_path / 'pictures').iterdir())
    assert not (tmp_path / 'measured.json').exists()


def test_figures_of_something_else_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, checkpoint = Config(dict(model=dict(type='A'))), tmp_path / 'a.pth'
    checkpoint.write_bytes(b'1')

    def measured(value: float, **others: Any) -> float:
        made = Measured(tmp_path, source_of_upgrade(config, checkpoint, 5, **others))
        return made.take('baseline', lambda: {'mAP': value})['mAP']

    assert (measured(0.1), measured(0.2)) == (0.1, 0.1)
    assert measured(0.3, gpq={'target': 5}) == 0.3
    checkpoint.write_bytes(b'2')
    assert measured(0.4) == 0.4
    config.model.type = 'B'
    assert measured(0.5) == 0.5
    for number, text in enumerate(['{"source"', '[]', '', '{"figures": {"baseline": {"mAP": 0.9}}}']):
        (tmp_path / 'measured.json').write_text(text)
        assert measured(0.6 + number) == 0.6 + number
    written = (tmp_path / 'measured.json').read_text()
    (tmp_path / 'measured.json').write_text(written.replace('3.6', '0.7'))
    assert measured(0.8) == 0.8  # a figure that somebody changed was not measured
    monkeypatch.setattr(measured_module, 'versions_of', lambda *names: dict.fromkeys(names, '9'))
    assert measured(0.9) == 0.9


def test_results_of_an_earlier_upgrade_do_not_stay_beside_a_new_model(
    folder: Path, overrides: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(folder / 'report', tmp_path / 'out')
    (out / 'pictures' / 'mine.jpg').touch()
    (out / 'search.md').touch()

    def start(plan: TgGBCPlan, samples: int | None = None) -> None:
        run_upgrade(CONFIG, folder / 'petr.pth', plan, out, overrides, 1, 1, pictures=0, samples=samples)

    with pytest.raises(ValueError, match='cannot choose 4 of 3'):
        start(SMALL, samples=4)
    assert (out / 'report.json').is_file()  # nothing was written

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tested, 'evaluate_and_warn', interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(SMALL)
    assert Config.fromfile(out / 'upgraded.py').custom_hooks[-1].r == SMALL.r
    assert not [name for name in ('report.md', 'report.json', 'search.md') if (out / name).exists()]
    assert [path.name for path in (out / 'pictures').iterdir()] == ['mine.jpg']


@pytest.mark.parametrize('name', ['upgraded.pth', 'finetune/epoch_1.pth', 'link.pth'])
def test_an_upgrade_does_not_replace_what_it_begins_with(tmp_path: Path, name: str) -> None:
    path = tmp_path / 'out' / name
    path.parent.mkdir(parents=True)
    if name == 'link.pth':
        path.symlink_to('upgraded.pth')
    with pytest.raises(ValueError, match='would be replaced: choose another --out'):
        check_inputs(tmp_path / 'out', CONFIG, path)
    check_inputs(tmp_path / 'other', CONFIG, path)
    check_inputs(tmp_path / 'out', CONFIG, tmp_path / 'out' / 'epoch_24.pth')


def test_what_is_timed_has_the_precision_of_the_test(folder: Path, overrides: dict[str, Any], tmp_path: Path) -> None:
    changed = {**overrides, 'test_cfg.fp16': True}
    seen, step = [], PETR3D.test_step

    def spy(model: PETR3D, data: object) -> object:
        seen.append(torch.is_autocast_enabled('cpu') or torch.is_autocast_enabled('cuda'))
        return step(model, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PETR3D, 'test_step', spy)
        report = run_upgrade(CONFIG, folder / 'petr.pth', SMALL, tmp_path, changed, 1, 1, pictures=1)
    assert seen and all(seen)
    assert report['env']['dtype'] == 'float32 under autocast'


@pytest.mark.parametrize('way', ['samples', 'indices'])
def test_a_part_of_the_test_set_is_judged_alone(
    folder: Path, overrides: dict[str, Any], tmp_path: Path, way: str
) -> None:
    samples = {'samples': 2} if way == 'samples' else {}
    changed = {**overrides, 'test_dataloader.dataset.indices': 2} if way == 'indices' else overrides
    run_upgrade(CONFIG, folder / 'petr.pth', SMALL, tmp_path, changed, 1, 1, 0, **samples)
    report = json.loads((tmp_path / 'report.json').read_text())
    chosen = {'chosen': 'evenly spaced'} if samples else {}
    assert report['samples'] == {'evaluated': 2, 'timed': 1, 'total': 3, **chosen}
    assert 'NDS' in report['baseline'] and 'NDS' in report['upgraded']
    assert 'Accuracy on 2 of 3 samples' in (tmp_path / 'report.md').read_text()


def test_samples_that_would_be_mixed_up_are_refused_at_once(
    folder: Path, overrides: dict[str, Any], tmp_path: Path
) -> None:
    changed = {**overrides, 'test_dataloader.dataset.indices': [0, 2]}
    with pytest.raises(ValueError, match=r'would take sample .* for another one'):
        run_upgrade(CONFIG, folder / 'petr.pth', SMALL, tmp_path, changed, 1, 1, 0)
    with pytest.raises(ValueError, match='cannot choose 4 of 3 samples'):
        run_upgrade(CONFIG, folder / 'petr.pth', SMALL, tmp_path, overrides, 1, 1, 0, samples=4)


def test_without_annotations_the_report_says_so(folder: Path, overrides: dict[str, Any], tmp_path: Path) -> None:
    changed = with_infos(overrides, tmp_path, lambda info: info.update(instances=[]))
    changed |= {'test_evaluator.format_only': True, 'test_evaluator.jsonfile_prefix': str(tmp_path / 'results')}
    run_upgrade(CONFIG, folder / 'petr.pth', SMALL, tmp_path / 'out', changed, 1, 1, pictures=1)
    text = (tmp_path / 'out' / 'report.md').read_text()
    assert '**Accuracy was not measured: the test set has no annotations (no instances in 3 samples)' in text
    assert 'format_only=True' in text and 'Accuracy on' not in text and '| total (ms) |' in text
    assert json.loads((tmp_path / 'out' / 'report.json').read_text())['samples']['evaluated'] == 0
    with pytest.raises(ValueError, match=r'auto needs accuracy, but the test set has no annotations'):
        request = SearchRequest(TgGBCPlan(r=1, k=40))
        run_upgrade(CONFIG, folder / 'petr.pth', request, tmp_path / 'auto', changed, 1, 1, 0)
    absent = with_infos(changed, tmp_path, lambda info: (info.pop('instances'), info.pop('cam_instances', None)))
    with pytest.raises(ValueError, match=r'no annotations \(no `instances`\).*load_eval_anns=False'):
        run_upgrade(CONFIG, folder / 'petr.pth', SMALL, tmp_path / 'absent', absent, 1, 1, 0)
    absent['test_dataloader.dataset.load_eval_anns'] = False
    report = run_upgrade(CONFIG, folder / 'petr.pth', SMALL, tmp_path / 'absent', absent, 1, 1, pictures=1)
    assert report['samples']['no_accuracy'].startswith('the test set has no annotations')
    assert len(list((tmp_path / 'absent' / 'pictures').iterdir())) == 1


def test_studies_do_not_train_what_they_cannot_judge(folder: Path, overrides: dict[str, Any], tmp_path: Path) -> None:
    changed = overrides | {
        'test_evaluator.format_only': True,
        'test_evaluator.jsonfile_prefix': str(tmp_path / 'results'),
    }
    config, message = read_config(CONFIG, folder / 'petr.pth', changed), 'the study needs accuracy, but NuScenesMetric'
    with pytest.raises(ValueError, match=message):
        query_study.run_training(config, 'scratch-300', 0, tmp_path)
    with pytest.raises(ValueError, match=message):
        fusion_study.run_training(config, folder / 'petr.pth', 'dense', 0, tmp_path)
    with pytest.raises(ValueError, match=message):
        halting_study.run_training(config, folder / 'petr.pth', 'halt-82', 0, tmp_path)
    with pytest.raises(ValueError, match='testing plans needs accuracy, but NuScenesMetric'):
        key_study.run_study(CONFIG, folder / 'petr.pth', tmp_path / 'keys', None, 'r', changed)
    config.test_evaluator = None
    with pytest.raises(ValueError, match='no test_dataloader and test_evaluator'):
        query_study.run_training(config, 'scratch-300', 0, tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_at_once(
    folder: Path, overrides: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='results cannot be written there'):
        run_upgrade(CONFIG, folder / 'petr.pth', SMALL, tmp_path / 'file' / 'out', overrides, 1, 1, 0)


GPQ = QueryPruning(GPQPlan(target=298, epochs=1), epochs=1)


@pytest.fixture(scope='module')
def training(overrides: dict[str, Any]) -> dict[str, Any]:
    validation = {
        name.replace('test_', 'val_', 1): value for name, value in overrides.items() if name.startswith('test_')
    }
    return (
        overrides
        | validation
        | {
            'train_dataloader.dataset.data_root': overrides['test_dataloader.dataset.data_root'],
            'train_dataloader.dataset.pipeline.4.image_size': (64, 160),
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'train_dataloader.batch_size': 1,
        }
    )


@pytest.fixture(scope='module')
def queries_and_keys(folder: Path, training: dict[str, Any]) -> Path:
    """Both methods, on three samples."""
    plan, out = TgGBCPlan(r=100, n=1, k=40), folder / 'both'
    run_upgrade(CONFIG, folder / 'petr.pth', [plan, GPQ], out, training, 1, 1, pictures=1)
    return out


def test_queries_and_keys_go_in_one_command(queries_and_keys: Path) -> None:
    report = json.loads((queries_and_keys / 'report.json').read_text())
    assert (report['baseline']['queries'], report['upgraded']['queries']) == (300, 298)
    assert report['upgraded']['keys'] == [KEYS] + [KEYS - 100] * 5
    assert report['baseline']['keys'] == [KEYS] * 6
    assert report['gpq']['target'] == 298 and report['gpq']['finetune_epochs'] == 1
    assert report['plan']['method'] == 'tggbc' and report['title'] == 'petr_tiny: gpq, tggbc'
    assert [plan['method'] for plan in report['plans']] == ['gpq', 'tggbc'] and report['plans'][0] == report['gpq']
    assert '| queries | 300 | 298 | -0.7 % |' in (queries_and_keys / 'report.md').read_text()

    config = Config.fromfile(queries_and_keys / 'upgraded.py')
    assert config.model.pts_bbox_head.num_query == 298
    assert [hook['type'] for hook in config.custom_hooks] == ['TgGBCHook']
    data = torch.load(queries_and_keys / 'upgraded.pth', weights_only=True)
    assert data['state_dict']['pts_bbox_head.reference_points.weight'].shape == (298, 3)
    assert set(data['meta']['mmprune3d']) == {'gpq', 'compact', 'tggbc'} and 'optimizer' not in data


def test_a_second_call_goes_on_where_fine_tuning_was(
    folder: Path, queries_and_keys: Path, training: dict[str, Any]
) -> None:
    small = GPQ.make(read_config(CONFIG, folder / 'petr.pth', training), folder / 'petr.pth', queries_and_keys)
    weights = torch.load(queries_and_keys / 'upgraded.pth', weights_only=True)['state_dict']
    assert all(torch.equal(small.checkpoint['state_dict'][name], value) for name, value in weights.items())
    logs = [path.read_text() for path in (queries_and_keys / 'finetune').glob('*/*.log')]
    assert len(logs) == 2
    assert sum('Epoch(train)' in text for text in logs) == 1  # all was done in the first one


def test_fine_tuning_can_be_shortened() -> None:
    config = Config.fromfile(CONFIG.parents[1] / 'gpq' / 'gpq-q150_conditional-detr_r50.py')
    short = shortened(config, 4)
    assert (short.train_cfg.max_epochs, short.param_scheduler[0].end, short.param_scheduler[0].milestones) == (
        4,
        4,
        [3],
    )
    assert config.train_cfg.max_epochs == 8
    iterations = shortened(Config.fromfile(CONFIG), 10).param_scheduler
    assert iterations[0].end == 300 and iterations[1].T_max == 10  # twice as long, warm-up too
    with pytest.raises(ValueError, match='trains by iterations'):
        shortened(Config(dict(train_cfg=dict(type='IterBasedTrainLoop', max_iters=5))), 2)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(custom_hooks=[dict(type='GPQHook', target=5)]), 'has a GPQHook already'),
        (dict(train_dataloader=None), 'nothing to fine-tune with'),
    ],
)
def test_configs_that_cannot_be_fine_tuned(folder: Path, changes: dict, message: str) -> None:
    config = Config.fromfile(CONFIG)
    config.merge_from_dict(changes) if 'custom_hooks' in changes else config.update(changes)
    with pytest.raises(ValueError, match=message):
        GPQ.config(config, folder / 'petr.pth', folder / 'none')


def test_the_command_line_wants_something_to_prune(folder: Path) -> None:
    tool = CONFIG.parents[2] / 'tools' / 'upgrade.py'
    command = [sys.executable, tool, CONFIG, folder / 'petr.pth']
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stderr.strip().endswith('error: say what to prune: tggbc, tome, gpq, altermoma, halting')


def test_checking_a_detector_for_query_pruning_leaves_it_as_it_is(
    overrides: dict[str, Any], petr_checkpoint: Path
) -> None:
    config = read_config(CONFIG, petr_checkpoint, overrides)
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        model = MODELS.build(config.model)
    before = [type(module) for module in model.modules()], list(model.state_dict())
    QueryPruning(GPQPlan(target=20, epochs=1)).check_model(model, config)
    assert ([type(module) for module in model.modules()], list(model.state_dict())) == before
