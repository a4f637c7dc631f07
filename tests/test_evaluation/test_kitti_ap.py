"""Average precisions of KITTI that can be worked out by hand, and mmdet3d's own evaluation where that runs."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet3d.evaluation.functional.kitti_utils import eval as theirs
from mmdet3d.structures import CameraInstance3DBoxes
from shapely.geometry import Polygon

from mmprune3d.evaluation.kitti_ap import camera_iou_3d, camera_iou_bev, kitti_average_precision
from tests.real_data import needs, real_data_root

LEVELS = ('easy', 'moderate', 'hard')
NAMES = {'bbox': '2D', 'bev': 'BEV', '3d': '3D'}


@pytest.fixture(autouse=True)
def _no_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmdet3d has the garbage collected after each table, which takes longer than these tables."""
    monkeypatch.setattr(gc, 'collect', lambda: 0)


def row(place: float, score: float = 0.0, name: str = 'Car', **changes: float) -> dict:
    """An object at `place`; different places share nothing, in the image or on the ground."""
    height, shift = changes.pop('height', 60.0), changes.pop('shift', 0.0)
    return {
        'name': name,
        'bbox': [100 * place + 100 * shift, 50.0, 100 * place + 50 + 100 * shift, 50.0 + height],
        'location': [10 * place + 10 * shift, 1.5, 20.0],
        'dimensions': [4.0, 1.5, 2.0],
        'rotation_y': 0.0,
        'alpha': 0.0,
        'truncated': 0.0,
        'occluded': 0,
        'score': score,
        **changes,
    }


def frame(*rows: dict) -> dict[str, np.ndarray]:
    columns = {'bbox': 4, 'location': 3, 'dimensions': 3}
    if not rows:
        return {key: np.zeros((0, columns[key]) if key in columns else 0) for key in row(0)}
    return {key: np.array([each[key] for each in rows]) for key in rows[0]}


def evaluate(gt: list, dt: list, kind: str = '3d', name: str = 'Car', limit: str = 'strict') -> dict[str, list[float]]:
    _, values = kitti_average_precision(gt, dt, [name], [kind])
    return {
        recalls: [values[f'KITTI/{name}_{NAMES[kind]}_{recalls}_{level}_{limit}'] for level in LEVELS]
        for recalls in ('AP11', 'AP40')
    }


def expect(found: dict[str, list[float]], *curves: list[float]) -> None:
    """Precision at the recalls 0, 1/40, ..., 1, for easy, moderate and hard (or one for all); 0 where a curve ends."""
    curves = curves * 3 if len(curves) == 1 else curves
    np.testing.assert_allclose(found['AP11'], [100 * sum(curve[::4]) / 11 for curve in curves], rtol=1e-12)
    np.testing.assert_allclose(found['AP40'], [100 * sum(curve[1:]) / 40 for curve in curves], rtol=1e-12)


@pytest.mark.parametrize('kind', list(NAMES))
def test_a_curve_by_hand(kind: str) -> None:
    """Four cars, three found, one wrong: at the scores of the three, precision is 1/1, 2/3, 3/4."""
    gt = [frame(row(0), row(1)), frame(), frame(row(0), row(5))]
    dt = [frame(row(0, 0.9), row(3, 0.8)), frame(), frame(row(5, 0.7), row(0, 0.6))]
    # KITTI asks for precision at as many scores as were found, so that four cars fill four of 41 places.
    expect(evaluate(gt[:2], [dt[0], frame(row(1, 0.5))], kind), [1.0])
    expect(evaluate(gt, dt, kind), [1.0, 3 / 4, 3 / 4])


@pytest.mark.parametrize('kind', list(NAMES))
@pytest.mark.parametrize(
    ('wrong_score', 'found', 'curve'),
    [
        (0.001, 80, [1.0] * 41),  # mistakes below everything that is right cost nothing
        (2.0, 80, [0.8] * 41),  # 80 of 100, at best at the last recall
        (0.001, 40, [1.0] * 21),  # half of the cars are found
    ],
)
def test_many_frames(kind: str, wrong_score: float, found: int, curve: list[float]) -> None:
    gt = [frame(row(0)) for _ in range(80)]
    dt = [
        frame(*([row(0, 0.1 + 0.01 * i)] * (i < found)), *([row(3, wrong_score)] * (i < 20 and found == 80)))
        for i in range(80)
    ]
    expect(evaluate(gt, dt, kind), curve)


def test_no_detection_and_only_wrong_ones() -> None:
    expect(evaluate([frame(row(0))], [frame()]), [])
    expect(evaluate([frame(row(0))], [frame(row(1, 0.9))]), [])
    expect(evaluate([frame(row(0))], [frame(row(0, 0.9, name='Cyclist'))]), [])
    expect(evaluate([frame(row(0, name='Cyclist'))], [frame(row(0, 0.9))]), [])


def test_a_class_without_ground_truth_is_a_zero_in_the_mean() -> None:
    _, values = kitti_average_precision([frame(row(0))], [frame(row(0, 0.9))], ['Car', 'Cyclist'], ['3d'])
    car = values['KITTI/Car_3D_AP11_easy_strict']
    assert car > 0 and values['KITTI/Overall_3D_AP11_easy'] == pytest.approx(car / 2)


def test_detections_of_other_classes_are_no_mistakes() -> None:
    gt, dt = [frame(row(0))], [frame(row(0, 0.5), row(1, 0.9, name='Cyclist'))]
    expect(evaluate(gt, dt), [1.0])
    expect(evaluate(gt, dt, name='Cyclist'), [])


@pytest.mark.parametrize('kind', list(NAMES))
def test_duplicates_and_ties(kind: str) -> None:
    gt = [frame(row(0))]
    expect(evaluate(gt, [frame(row(0, 0.8), row(0, 0.9))], kind), [1.0])  # the second comes too late to count
    expect(evaluate(gt, [frame(row(0, 0.9), row(0, 0.9))], kind), [0.5])
    expect(evaluate([frame(row(0), row(1))], [frame(row(0, 0.9), row(0, 0.8), row(1, 0.7))], kind), [1.0, 2 / 3])


@pytest.mark.parametrize('kind', list(NAMES))
@pytest.mark.parametrize(
    ('odd', 'counts'),
    [
        ({'occluded': 0}, (1, 1, 1)),
        ({'occluded': 1}, (0, 1, 1)),
        ({'occluded': 2}, (0, 0, 1)),
        ({'occluded': 3}, (0, 0, 0)),
        ({'truncated': 0.15}, (1, 1, 1)),
        ({'truncated': 0.3}, (0, 1, 1)),
        ({'truncated': 0.5}, (0, 0, 1)),
        ({'truncated': 0.51}, (0, 0, 0)),
        ({'height': 41.0}, (1, 1, 1)),
        ({'height': 40.0}, (0, 1, 1)),
        ({'height': 25.0}, (0, 0, 0)),
        ({'name': 'Van'}, (0, 0, 0)),
    ],
)
def test_objects_that_are_hard_to_see(kind: str, odd: dict, counts: tuple[int, ...]) -> None:
    """Where an object does not count, finding it is no merit and no mistake, and missing it is no loss."""
    gt, sure = [frame(row(0), row(1, **odd))], row(0, 0.5)
    seen = row(1, 0.9, height=odd.get('height', 60.0))
    expect(evaluate(gt, [frame(sure, seen)], kind), *([1.0] * (1 + n) for n in counts))
    # With one of two found the first recall is reached all the same.
    expect(evaluate(gt, [frame(sure)], kind), [1.0])
    alone = evaluate([frame(row(1, **odd))], [frame(seen)], kind)
    expect(alone, *([1.0] * n for n in counts))


def test_low_detections_are_no_mistakes() -> None:
    low = row(3, 0.9, height=30.0)
    expect(evaluate([frame(row(0))], [frame(row(0, 0.5), low)]), [1.0], [0.5], [0.5])


def test_people_who_sit_do_not_count() -> None:
    gt = [frame(row(0, name='Pedestrian'), row(1, name='Person_sitting'))]
    dt = [frame(row(0, 0.5, name='Pedestrian'), row(1, 0.9, name='Pedestrian'))]
    expect(evaluate(gt, dt, name='Pedestrian'), [1.0])


def test_regions_that_nobody_labelled() -> None:
    """In the image a detection inside such a region is no mistake; on the ground nothing is known of it."""
    region = row(3, name='DontCare', location=[-1000.0] * 3, dimensions=[-1.0] * 3, rotation_y=-10.0, alpha=-10.0)
    gt, dt = [frame(region, row(0))], [frame(row(0, 0.5), row(3, 0.9))]
    expect(evaluate(gt, dt, 'bbox'), [1.0])
    expect(evaluate(gt, dt, 'bev'), [0.5])
    expect(evaluate(gt, dt, '3d'), [0.5])
    expect(evaluate(gt, [frame(row(0, 0.5), row(3, 0.9, shift=0.2))], 'bbox'), [0.5])  # 60 % inside


@pytest.mark.parametrize(('shift', 'strict', 'loose'), [(0.06, 1, 1), (0.08, 0, 1), (0.12, 0, 1), (0.14, 0, 0)])
def test_overlap_on_the_ground(shift: float, strict: int, loose: int) -> None:
    """Cars of 4 m, moved by 0.6 m, 0.8 m (IoU 3.2 / 4.8), 1.2 m (2.8 / 5.2) and 1.4 m (2.6 / 5.4)."""
    limits = {'strict': 0.7, 'loose': 0.5}
    iou = (4 - 10 * shift) / (4 + 10 * shift)
    assert [iou > limit for limit in limits.values()] == [bool(strict), bool(loose)]
    gt, dt = [frame(row(0))], [frame(row(0, 0.9, shift=shift))]
    for limit, right in (('strict', strict), ('loose', loose)):
        for kind in ('bev', '3d'):
            expect(evaluate(gt, dt, kind, limit=limit), [1.0] * right)


def test_height_matters_in_3d_only() -> None:
    above = row(0, 0.9, location=[0.0, 0.5, 20.0])  # one of 1.5 m higher
    expect(evaluate([frame(row(0))], [frame(above)], 'bev'), [1.0])
    expect(evaluate([frame(row(0))], [frame(above)], '3d'), [])


def random_camera_boxes(number: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform([-4, 0, 10, 1, 0.5, 0.5, -4], [4, 2, 18, 6, 3, 3, 4], (number, 7))


def test_overlaps_are_those_of_polygons() -> None:
    boxes = [random_camera_boxes(20, seed) for seed in range(2)]
    corners = [CameraInstance3DBoxes(torch.from_numpy(each).float()).corners.double().numpy() for each in boxes]
    bev, volume = np.zeros((2, 20, 20))
    for i, first in enumerate(corners[0]):
        for j, second in enumerate(corners[1]):
            # corners have no promised order; the hull of the eight, seen from above, is the footprint
            flat = [Polygon(np.unique(each[:, [0, 2]].round(5), axis=0)).convex_hull for each in (first, second)]
            shared = flat[0].intersection(flat[1]).area
            bev[i, j] = shared / (flat[0].area + flat[1].area - shared)
            low, high = max(first[:, 1].min(), second[:, 1].min()), min(first[:, 1].max(), second[:, 1].max())
            shared *= max(high - low, 0)
            volume[i, j] = shared / (boxes[0][i, 3:6].prod() + boxes[1][j, 3:6].prod() - shared)
    flat = [each[:, [0, 2, 3, 5, 6]] for each in boxes]
    np.testing.assert_allclose(camera_iou_bev(*flat), bev, atol=1e-4)
    np.testing.assert_allclose(camera_iou_3d(*boxes), volume, atol=1e-4)
    assert (bev > 0.2).sum() > 20 and (volume > 0.2).sum() > 5
    assert np.array_equal(camera_iou_3d(boxes[0], boxes[0]).diagonal(), np.ones(20, np.float32))
    with pytest.raises(ValueError, match='criterion=2'):
        camera_iou_bev(*flat, 2)


def random_frames(seed: int, number: int) -> tuple[list, list]:
    """Ground truth and detections: most objects are found, some twice, some with another class or too far away."""
    rng = np.random.default_rng(seed)
    names = ['Car'] * 4 + ['Pedestrian'] * 4 + ['Cyclist'] * 4 + ['Van', 'Person_sitting', 'DontCare']
    gt, dt = [], []
    for i in range(number):
        places = rng.permutation(12)[: 0 if i in (0, 3) else rng.integers(1, 10)]
        objects, found = [], []
        for place, name in zip(places, rng.choice(names, len(places))):
            seen = {'height': float(rng.choice([20, 35, 60, 60])), 'alpha': float(rng.uniform(-3, 3))}
            hidden = {'occluded': int(rng.choice([0, 0, 1, 2, 3])), 'truncated': float(rng.choice([0, 0, 0.2, 0.6]))}
            objects.append(row(place, name=str(name), **seen, **hidden))
            for _ in range(rng.choice([0, 1, 1, 1, 2])):
                moved = {'shift': float(rng.uniform(0, 0.1)), 'rotation_y': float(rng.normal(0, 0.1))}
                called = str(name) if rng.random() < 0.8 else 'Car'
                found.append(row(place, float(rng.integers(1, 9)) / 8, called, **seen, **moved))
        found += [row(20, float(rng.random()), 'Car')] * (rng.random() < 0.3)
        gt.append(frame(*objects))
        dt.append(frame(*found))
    return gt, dt


@pytest.mark.parametrize('seed', range(2))
def test_random_frames_as_in_mmdet3d(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle is mmdet3d's module with overlaps put into it. It cannot do with a first frame without objects."""
    gt, dt = random_frames(seed, 16)
    classes = ['Pedestrian', 'Cyclist', 'Car']
    _, found = kitti_average_precision(gt, dt, classes)
    monkeypatch.setattr(theirs, 'bev_box_overlap', camera_iou_bev)
    monkeypatch.setattr(theirs, 'd3_box_overlap', camera_iou_3d)
    with pytest.raises(IndexError):
        theirs.kitti_eval(gt, dt, classes, eval_types=['bbox', 'bev', '3d'])
    order = [1, 2, *range(4, 16), 0, 3]
    _, expected = theirs.kitti_eval(*([x[i] for i in order] for x in (gt, dt)), classes, ['bbox', 'bev', '3d'])
    assert found == expected
    assert len({round(value, 6) for value in found.values()}) > 12


def test_nothing_of_mmdet3d_is_changed() -> None:
    before = dict(vars(theirs))
    expect(evaluate([frame(row(0))], [frame(row(0, 0.9))], 'bev'), [1.0])
    assert dict(vars(theirs)) == before
    assert 'mmdet3d.evaluation.functional.kitti_utils.rotate_iou' not in sys.modules


def test_numbers_of_frames_that_stop_mmdet3d() -> None:
    number = 398
    with pytest.raises(ValueError, match='need at least one array'):
        theirs.calculate_iou_partly([frame(row(0))] * number, [frame(row(0))] * number, 0, num_parts=200)
    expect(evaluate([frame(row(0))] * number, [frame(row(0, 0.9))] * number, 'bbox'), [1.0] * 41)


@pytest.mark.parametrize(
    ('gt', 'dt', 'classes', 'kinds', 'message'),
    [
        ([frame(row(0))], [frame()], ['Tram'], ['3d'], 'valid are one or more of Car, Pedestrian, Cyclist'),
        ([frame(row(0))], [frame()], [], ['3d'], 'valid are one or more of Car, Pedestrian, Cyclist'),
        ([frame(row(0))], [frame()], ['Car'], ['aos'], 'valid are one or more of bbox, bev, 3d'),
        ([frame(row(0))], [frame()] * 2, ['Car'], ['3d'], '1 frames of ground truth but 2 of detections'),
        ([frame()] * 2, [frame()] * 2, ['Car'], ['3d'], 'none of the 2 frames'),
        ([], [], ['Car'], ['3d'], 'none of the 0 frames'),
    ],
)
def test_what_cannot_be_evaluated(gt: list, dt: list, classes: list, kinds: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kitti_average_precision(gt, dt, classes, kinds)


def labels_of(path: Path) -> dict[str, np.ndarray]:
    """A file of labels as an annotation; there, the three sides are h, w, l."""
    rows = []
    for line in path.read_text().splitlines():
        name, *numbers = line.split()
        values = [float(number) for number in numbers]
        h, w, long = values[7:10]
        changes = {'truncated': values[0], 'occluded': values[1], 'alpha': values[2], 'bbox': values[3:7]}
        changes |= {'dimensions': [long, h, w], 'location': values[10:13], 'rotation_y': values[13]}
        rows.append({**row(0, name=name), **changes})
    return frame(*rows)


def counted(gt: list, name: str, level: int) -> int:
    """How many labels of a class count at a level of difficulty."""
    height, hidden, cut = ((40, 0, 0.15), (25, 1, 0.3), (25, 2, 0.5))[level]
    return sum(
        bool(each_name == name and box[3] - box[1] > height and occluded <= hidden and truncated <= cut)
        for each in gt
        for each_name, box, occluded, truncated in zip(each['name'], each['bbox'], each['occluded'], each['truncated'])
    )


def real_labels(folder: str) -> list[dict[str, np.ndarray]]:
    return [labels_of(path) for path in sorted((real_data_root() / folder / 'label_2').glob('*.txt'))]


def found_as_labelled(gt: list) -> list[dict[str, np.ndarray]]:
    """Every labelled box as a detection, vans as cars, with scores that differ; the regions stay with the truth."""
    real = [{key: value[each['name'] != 'DontCare'] for key, value in each.items()} for each in gt]
    rising, dt = np.linspace(0.1, 0.9, sum(len(each['name']) for each in real)), []
    for each in real:
        mine, rising = np.split(rising, [len(each['name'])])
        dt.append({**each, 'name': np.where(each['name'] == 'Van', 'Car', each['name']), 'score': mine})
    return dt


@pytest.mark.parametrize('folder', ['kitti_sequence', 'kitti_object/training'])
@pytest.mark.parametrize('name', ['Car', 'Pedestrian', 'Cyclist'])
@pytest.mark.real_data
def test_real_labels_find_themselves(folder: str, name: str) -> None:
    """Precision is 1 at as many of the 41 recalls as there are objects that count, and 0 at the others."""
    if not (real_data_root() / folder).is_dir():
        pytest.skip(f'no real data {folder}')
    gt = real_labels(folder)
    dt = found_as_labelled(gt)
    curves = [[1.0] * min(counted(gt, name, level), 41) for level in range(3)]
    for kind in NAMES:
        expect(evaluate(gt, dt, kind, name), *curves)


@needs('kitti_sequence')
@pytest.mark.real_data
def test_all_boxes_of_the_sequence_are_there() -> None:
    """What the test above stands on: 711 boxes, 378 regions, classes with less and with more than 41 objects."""
    gt = real_labels('kitti_sequence')
    names = [name for each in gt for name in each['name']]
    assert len(gt) == 154
    assert {name: names.count(name) for name in sorted(set(names))} == {
        'Car': 243, 'Cyclist': 154, 'DontCare': 378, 'Pedestrian': 22, 'Van': 292,
    }  # fmt: skip
    assert [counted(gt, 'Pedestrian', level) for level in range(3)] == [8, 9, 19]


@needs('kitti_sequence')
@pytest.mark.real_data
def test_real_regions_excuse_cars_in_the_image_only() -> None:
    """The most confident detections fill the regions that nobody labelled."""
    gt = real_labels('kitti_sequence')
    regions = [{key: value[each['name'] == 'DontCare'] for key, value in each.items()} for each in gt]
    more = []
    for each, region in zip(found_as_labelled(gt), regions):
        region |= {'name': np.full(len(region['name']), 'Car'), 'score': np.full(len(region['name']), 0.95)}
        region |= {'location': region['location'] * 0 + [0, 1.5, 200.0], 'dimensions': np.ones_like(region['location'])}
        more.append({key: np.concatenate((each[key], region[key])) for key in each})
    expect(evaluate(gt, more, 'bbox'), [1.0] * 41)
    wrong = [
        sum(int((each['bbox'][:, 3] - each['bbox'][:, 1] >= low).sum()) for each in regions) for low in (40, 25, 25)
    ]
    assert min(wrong) > 100
    # All of them stand in front, so that precision is best where everything is found.
    numbers = [counted(gt, 'Car', level) for level in range(3)]
    for kind in ('bev', '3d'):
        expect(evaluate(gt, more, kind), *([n / (n + m)] * 41 for n, m in zip(numbers, wrong)))
