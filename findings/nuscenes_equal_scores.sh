#!/usr/bin/env bash
# nuscenes-devkit 1.2.0 (numpy 1.26.4): among detections with equal scores, the true-positive errors are those of the
# one that is listed last, alone.
#
# Four cars are found with one score; one detection is a metre beside its car, three are exact. By the order of the list
# the translation error (ATE) is 0 m or 1 m, not the mean of 0.25 m. The errors are resampled with np.interp over the
# scores, where equal scores are one and the same position; its value is taken from the first match, and ties are sorted
# with the last in the list in front. Models whose scores saturate (1.0 in bfloat16) meet this.
#
# Seen, and expected below:
#     wrong one listed first: AP 1.00, ATE 0.00 m
#     wrong one listed last:  AP 1.00, ATE 1.00 m
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


rows = [car(1, 0.5), car(10, 0.5), car(20, 0.5), car(30, 0.5)]
seen = []
for where, order in (('first', rows), ('last', rows[::-1])):
    data = measure([car(10 * i) for i in range(4)], order)
    ap = calc_ap(data, config.min_recall, config.min_precision)
    seen.append((round(ap, 6), calc_tp(data, config.min_recall, 'trans_err')))
    print(f'wrong one listed {where}: AP {ap:.2f}, ATE {seen[-1][1]:.2f} m')
raise SystemExit(None if seen == [(1, 0), (1, 1)] else 'another behaviour than the one described')
EOF
