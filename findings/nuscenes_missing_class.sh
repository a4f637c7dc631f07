#!/usr/bin/env bash
# nuscenes-devkit 1.2.0 (motmetrics 1.4.0, pandas 2.3.3, numpy 1.26.4): a class without ground truth counts as 0 in
# detection's mAP, and not at all in tracking's AMOTA.
#
# One car in two frames, found exactly, and twenty false trucks per frame. Detection's mean runs over ten classes, nine of
# which have no object: 0.1 at best, with or without the trucks. Tracking's mean leaves such classes out: 1.0 in spite of
# the trucks. Both means are over a fixed list of classes and matter on subsets of the data, such as v1.0-mini.
#
# Seen, and expected below:
#     detection mAP 0.10, with false trucks 0.10
#     tracking AMOTA 1.00, with false trucks 1.00
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"${PYTHON:-python3}" -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check nuscenes-devkit==1.2.0 numpy==1.26.4 motmetrics==1.4.0 pandas==2.3.3
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
import warnings

from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.tracking.data_classes import TrackingBox
from nuscenes.eval.tracking.evaluate import TrackingEval

warnings.simplefilter('ignore')
FRAMES = ('a', 'b')
detection, tracking = config_factory('detection_cvpr_2019'), config_factory('tracking_nips_2019')


def place(frame, x):
    return dict(sample_token=frame, translation=(float(x), 0.0, 0.0), size=(2.0, 4.0, 1.5), rotation=(1.0, 0.0, 0.0, 0.0))


def detections(rows):
    boxes = EvalBoxes()
    for frame in FRAMES:
        boxes.add_boxes(frame, [
            DetectionBox(**place(frame, x), detection_name=name, detection_score=0.5, attribute_name='vehicle.parked')
            for x, name in rows])
    return boxes


def tracks(rows):
    return {'scene': {time: [
        TrackingBox(**place(frame, x), tracking_id=f'{name} {x}', tracking_name=name, tracking_score=0.5)
        for x, name in rows] for time, frame in enumerate(FRAMES)}}


def result(kind, config, **data):
    """Both classes read files in their constructors; their evaluation runs on boxes that are set here."""
    evaluation = kind.__new__(kind)
    vars(evaluation).update(cfg=config, verbose=False, output_dir=None, render_classes=None, **data)
    return evaluation.evaluate()[0]


truth = [(0, 'car')]
seen = []
for found in (truth, truth + [(10 * i, 'truck') for i in range(1, 21)]):
    mean_ap = result(DetectionEval, detection, gt_boxes=detections(truth), pred_boxes=detections(found)).mean_ap
    metrics = result(TrackingEval, tracking, tracks_gt=tracks(truth), tracks_pred=tracks(found))
    seen.append((round(mean_ap, 6), round(metrics.compute_metric('amota'), 6)))
print('detection mAP {:.2f}, with false trucks {:.2f}'.format(seen[0][0], seen[1][0]))
print('tracking AMOTA {:.2f}, with false trucks {:.2f}'.format(seen[0][1], seen[1][1]))
raise SystemExit(None if seen == [(0.1, 1), (0.1, 1)] else 'another behaviour than the one described')
EOF
