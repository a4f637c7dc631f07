#!/usr/bin/env bash
# nuscenes-devkit 1.2.0 (numpy 1.26.4): a predicted velocity of NaN is no error, and where the most confident detections
# have none, their velocity error counts as 0.
#
# The docstring of nuscenes.eval.common.utils.velocity_l2 says that NaN gives an infinite error. It gives NaN, which the
# running mean leaves out; up to the first known velocity that mean is 0 / 0, taken as 0. Four cars drive at 5 m/s and are
# predicted to stand. The more of the confident predictions are replaced by NaN, the smaller the error (AVE) is.
#
# Seen, and expected below:
#     0 of 4 velocities NaN: AVE 5.00 m/s
#     1 of 4 velocities NaN: AVE 3.50 m/s
#     2 of 4 velocities NaN: AVE 2.11 m/s
#     3 of 4 velocities NaN: AVE 0.72 m/s
#     4 of 4 velocities NaN: AVE 1.00 m/s
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


truth = [car(10 * i, velocity=(5.0, 0.0)) for i in range(4)]
seen = []
for unknown in range(5):
    speeds = [float('nan')] * unknown + [0.0] * (4 - unknown)
    data = measure(truth, [car(10 * i, 0.9 - 0.1 * i, (speed, speed)) for i, speed in enumerate(speeds)])
    seen.append(round(calc_tp(data, config.min_recall, 'vel_err'), 2))
    print(f'{unknown} of 4 velocities NaN: AVE {seen[-1]:.2f} m/s')
raise SystemExit(None if seen == [5, 3.5, 2.11, 0.72, 1] else 'another behaviour than the one described')
EOF
