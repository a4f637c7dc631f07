#!/usr/bin/env bash
# nuscenes-devkit 1.2.0 (numpy 1.26.4): between its measured points precision is a straight line, which starts at recall
# 0 where the first detection is wrong; false positives behind every true positive lower the average precision as well.
#
# One car is found. With a more confident false positive, precision is 1/2 at the only recall, and a step or an envelope
# gives an AP of (0.5 - 0.1) / 0.9 = 0.444; the devkit gives 0.200. With a less confident one an envelope gives 1.000, and
# the devkit 0.994: of two points with one recall np.interp takes the last.
#
# Seen, and expected below:
#     true positive alone: AP 1.000
#     false positive in front: AP 0.200
#     false positive behind: AP 0.994
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


seen = []
for what, others in (('true positive alone', []), ('false positive in front', [car(50, 0.95)]),
                     ('false positive behind', [car(50, 0.8)])):
    data = measure([car(0)], [car(0, 0.9), *others])
    seen.append(round(calc_ap(data, config.min_recall, config.min_precision), 3))
    print(f'{what}: AP {seen[-1]:.3f}')
raise SystemExit(None if seen == [1.0, 0.2, 0.994] else 'another behaviour than the one described')
EOF
