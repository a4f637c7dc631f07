from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmprune3d.datasets.synthetic import generate as generate_module
from mmprune3d.datasets.synthetic.config import GeneratorConfig
from mmprune3d.datasets.synthetic.generate import generate
from mmprune3d.datasets.synthetic.infos import create_infos


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob('*') if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_bytes_do_not_depend_on_the_number_of_workers(tiny, tmp_path):
    config = replace(tiny.config, out=tmp_path / 'again', workers=2, infos=False)
    generate(config, progress=False)
    expected = {name: value for name, value in digest(tiny.root).items() if not name.endswith('.pkl')}
    assert digest(config.out) == expected
    assert len(expected) == 2 + 13 + 2 * (3 * 12 + 2), 'maps, tables, samples and sweeps'


def test_scenes_do_not_depend_on_how_many_there_are(tiny):
    more = replace(tiny.config, train_scenes=5, val_scenes=3)
    ours = {job.name: job for job in more.jobs()}
    assert all(ours[job.name] == job for job in tiny.config.jobs())


def test_report(tiny, nusc):
    assert tiny.report.samples == 6 == len(nusc.sample)
    assert sum(tiny.report.annotations.values()) == len(nusc.sample_annotation)
    assert tiny.report.samples_per_second > 0


def test_failed_run_leaves_nothing(tmp_path, monkeypatch):
    out = tmp_path / 'set'
    seen = []

    def record(job, root):
        seen.append((out.exists(), (root / 'v1.0-trainval').exists(), root.parent))
        raise KeyboardInterrupt

    monkeypatch.setattr(generate_module, 'record_scene', record)
    with pytest.raises(KeyboardInterrupt):
        generate(GeneratorConfig(out, 1, 1, infos=False), progress=False)
    assert seen == [(False, False, tmp_path)], 'data are written beside the target, the tables last'
    assert list(tmp_path.iterdir()) == []


def test_failed_run_keeps_the_old_data(tmp_path, monkeypatch):
    out = tmp_path / 'set'
    out.mkdir()
    (out / 'old').write_text('old')
    with pytest.raises(FileExistsError, match=r'is no data set .* and is not replaced: choose another folder'):
        generate(GeneratorConfig(out, 1, 0, infos=False, overwrite=True), progress=False)
    (out / 'v1.0-trainval').mkdir()

    def record(job, root):
        raise RuntimeError('out of ideas')

    monkeypatch.setattr(generate_module, 'record_scene', record)
    with pytest.raises(RuntimeError, match='out of ideas'):
        generate(GeneratorConfig(out, 1, 0, infos=False, overwrite=True), progress=False)
    assert (out / 'old').read_text() == 'old' and list(tmp_path.iterdir()) == [out]


def test_old_data_go_after_the_new_ones_are_there(tmp_path, monkeypatch):
    out, staging = tmp_path / 'set', tmp_path / '.set.partial-1'
    for folder, text in ((out, 'old'), (staging, 'new')):
        folder.mkdir()
        (folder / 'which').write_text(text)
    rename, seen = Path.rename, []

    def full(path, target):
        seen.append(path.name)
        if path == staging:
            raise OSError(28, 'No space left on device')
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, 'rename', full)
        with pytest.raises(OSError, match='space'):
            generate_module._put(staging, out)
    assert seen == ['set', '.set.partial-1', '.set.old-1'] and (out / 'which').read_text() == 'old'
    monkeypatch.setattr(shutil, 'rmtree', lambda folder, **_: seen.append((out / 'which').read_text()))
    generate_module._put(staging, out)
    assert seen[-1] == 'new'


def test_leftover_of_a_kill_is_named_and_never_the_data_set(tmp_path, monkeypatch):
    leftover = tmp_path / '.set.partial-abc'
    leftover.mkdir()

    def record(job, root):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate_module, 'record_scene', record)
    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match=r'\.set\.partial-abc .* remove it'):
        generate(GeneratorConfig(tmp_path / 'set', 1, 1, infos=False), progress=False)
    assert list(tmp_path.iterdir()) == [leftover]


INTERRUPTED = """
import os, signal, sys, threading, time
from pathlib import Path
from mmprune3d.datasets.synthetic import generate as module
from mmprune3d.datasets.synthetic.config import GeneratorConfig

def record(job, root):
    (root / f'{job.name}-begun').touch()
    time.sleep(600)

def interrupt(folder):
    while not list(folder.glob('.set.partial-*/*-begun')):
        time.sleep(0.1)
    os.killpg(0, signal.SIGINT)

module.record_scene = record
if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(sys.argv[1])
    threading.Thread(target=interrupt, args=(folder,), daemon=True).start()
    try:
        module.generate(GeneratorConfig(folder / 'set', 1, 1, infos=False, workers=2), progress=False)
    except KeyboardInterrupt:
        raise SystemExit(130 + len(list(folder.iterdir())))
"""


def test_ctrl_c_ends_all_processes_and_leaves_nothing(tmp_path):
    script, folder = tmp_path / 'script.py', tmp_path / 'data'
    script.write_text(INTERRUPTED)
    folder.mkdir()
    command = [sys.executable, str(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, start_new_session=True)
    assert done.returncode == 130 and 'Traceback' not in done.stderr, done.stderr


def test_existing_folder_is_refused(tiny):
    with pytest.raises(FileExistsError, match='exists'):
        generate(tiny.config, progress=False)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'train_scenes': 701}, '0 to 700'),
        ({'val_scenes': -1}, '0 to 150'),
        ({'train_scenes': 0, 'val_scenes': 0}, 'nothing to generate'),
        ({'val_scenes': 0}, 'both splits'),
        ({'samples_per_scene': 41}, '1 to 40'),
        ({'sweeps': 10}, '0 to 9'),
        ({'workers': 0}, '1 to'),
        ({'image_size': (8, 64)}, '16 x 16'),
        ({'sensors': ('camera', 'sonar')}, 'sonar not among camera, lidar, radar'),
        ({'sensors': ('camera',), 'sweeps': 0}, 'must contain lidar'),
        ({'sensors': ('lidar',)}, 'must contain camera'),
        ({'sweeps': 2, 'sensors': ('camera', 'lidar'), 'sweep_sensors': ('radar',)}, 'radar not among camera, lidar'),
    ],
)
def test_bad_arguments_say_what_is_valid(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        replace(GeneratorConfig(tmp_path / 'x', 1, 1), **change).check()


def test_infos_need_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'v1\.0-trainval'):
        create_infos(tmp_path)


@pytest.fixture(scope='module')
def dataset(tiny):
    from mmdet3d.datasets import NuScenesDataset

    cameras = ('FRONT', 'FRONT_LEFT', 'FRONT_RIGHT', 'BACK', 'BACK_LEFT', 'BACK_RIGHT')
    prefix = {f'CAM_{name}': f'samples/CAM_{name}' for name in cameras}
    prefix |= {'pts': 'samples/LIDAR_TOP', 'sweeps': 'sweeps/LIDAR_TOP'}
    modality = {'use_camera': True, 'use_lidar': True}
    return NuScenesDataset(
        str(tiny.root),
        'nuscenes_infos_val.pkl',
        data_prefix=prefix,
        modality=modality,
        test_mode=True,
        use_valid_flag=True,
    )


def test_mmdet3d_finds_all_files(dataset):
    assert len(dataset) == 3
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        paths = [info['lidar_points']['lidar_path'], *(image['img_path'] for image in info['images'].values())]
        paths += [sweep['lidar_points']['lidar_path'] for sweep in info.get('lidar_sweeps', [])]
        assert len(info.get('lidar_sweeps', [])) == 2 * index
        assert all(Path(path).is_file() for path in paths)


def evaluate(dataset, tiny, shift: float) -> dict[str, float]:
    """Scores of the ground truth, moved by `shift` metres, through mmdet3d's metric."""
    import torch
    from mmdet3d.evaluation import NuScenesMetric

    metric = NuScenesMetric(str(tiny.root), str(tiny.root / 'nuscenes_infos_val.pkl'))
    metric.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        truth = info['eval_ann_info']
        boxes = truth['gt_bboxes_3d'].clone()
        boxes.translate([shift, 0.0, 0.0])
        prediction = {
            'bboxes_3d': boxes,
            'labels_3d': torch.tensor(truth['gt_labels_3d']),
            'scores_3d': torch.linspace(1.0, 0.5, len(boxes)),
        }
        metric.process({}, [{'pred_instances_3d': prediction, 'pred_instances': {}, 'sample_idx': info['sample_idx']}])
    return {key.rsplit('/', 1)[1]: value for key, value in metric.evaluate(len(dataset)).items()}


def present_classes(dataset) -> list[str]:
    """Classes with ground truth inside of the range (30 m for the smallest) in which the metric looks."""
    names, found = dataset.metainfo['classes'], set()
    for index in range(len(dataset)):
        truth = dataset.get_data_info(index)['eval_ann_info']
        near = np.linalg.norm(truth['gt_bboxes_3d'].gravity_center[:, :2].numpy(), axis=1) < 28.0
        found |= {names[label] for label in np.asarray(truth['gt_labels_3d'])[near]}
    return sorted(found)


def test_ground_truth_scores_full_marks_and_a_shifted_copy_does_not(dataset, tiny):
    classes = present_classes(dataset)
    assert len(classes) >= 4
    exact, shifted = evaluate(dataset, tiny, 0.0), evaluate(dataset, tiny, 0.8)
    for name in classes:
        assert exact[f'{name}_AP_dist_0.5'] == pytest.approx(1.0, abs=1e-6)
        assert shifted[f'{name}_AP_dist_0.5'] < exact[f'{name}_AP_dist_0.5'], name
    assert shifted['mAP'] < exact['mAP'] and shifted['NDS'] < exact['NDS']


def test_infos_hold_no_2d_boxes_of_another_image_size(dataset):
    assert all(not info['cam_instances'] for info in map(dataset.get_data_info, range(len(dataset))))
