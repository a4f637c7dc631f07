#!/usr/bin/env bash
# nuscenes-devkit 1.2.0 (numpy 1.26.4): exact detections whose scores are 0 have a full average precision, and the worst
# value, 1, as each of the five true-positive errors.
#
# Four cars are found exactly. With scores of 1e-6 all errors are 0; with scores of 0 they are 1, because the highest
# recall is looked up as the last position whose confidence is not 0, and there is none. Nothing is reported. A score of
# 0 is a valid one; float16 and a sigmoid make it from logits below about -17.
#
# Seen, and expected below:
#     score 1e-06: AP 1.00, errors 0.0 0.0 0.0 0.0 0.0
#     score 0.0: AP 1.00, errors 1.0 1.0 1.0 1.0 1.0
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"${PYTHON:-python3}" -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check nuscenes-devkit==1.2.0 numpy==1.26.4
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.algo import accumulate, calc_ap, calc_tp
from nuscenes.eval.detection.data_classes import DetectionBox

config = config_factory('detection_cvpr_2019')


def car(x, score=-1.0, velocity=(0.0, 0.0)):
    return DetectionBox('sample', (float(x), 0.0, 0.0), (2.0, 4.0, 1.5), (1.0, 0.0, 0.0, 0.0), velocity,
                        detection_name='car', detection_score=score, attribute_name='vehicle.parked')


def measure(truth, found):
    boxes = EvalBoxes(), EvalBoxes()
    for group, rows in zip(boxes, (truth, found)):
        group.add_boxes('sample', rows)
    return accumulate(*boxes, 'car', config.dist_fcn_callable, config.dist_th_tp)

from nuscenes.eval.detection.constants import TP_METRICS

seen = []
for score in (1e-6, 0.0):
    data = measure([car(10 * i) for i in range(4)], [car(10 * i, score) for i in range(4)])
    ap = calc_ap(data, config.min_recall, config.min_precision)
    errors = [calc_tp(data, config.min_recall, name) for name in TP_METRICS]
    print(f'score {score}: AP {ap:.2f}, errors', *errors)
    seen.append((round(ap, 6), errors))
raise SystemExit(None if seen == [(1, [0.0] * 5), (1, [1.0] * 5)] else 'another behaviour than the one described')
EOF
