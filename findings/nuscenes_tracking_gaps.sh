#!/usr/bin/env bash
# nuscenes-devkit 1.2.0 (numpy 1.26.4): when the tracking evaluation fills a gap of a track, it swaps the weights of the
# box before and the box after, so that objects go backwards in gaps of two frames and more.
#
# A car moves evenly, 0 m to 6 m in 1.5 s, and is unseen at 0.5 s and 1.0 s, where it is at 2 m and 4 m. nuScenes removes
# annotations without a LiDAR point, so that such gaps are filled in ground truth, too. A single missing frame in the
# middle is filled rightly. (The weight of the right box is the time that is left to it: loaders.py, interpolate_tracks.)
#
# Seen, and expected below:
#     0.0 s: 0.0 m
#     0.5 s: 4.0 m
#     1.0 s: 2.0 m
#     1.5 s: 6.0 m
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"${PYTHON:-python3}" -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check nuscenes-devkit==1.2.0 numpy==1.26.4
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
from collections import defaultdict

from nuscenes.eval.common.config import config_factory
from nuscenes.eval.tracking.data_classes import TrackingBox
from nuscenes.eval.tracking.loaders import interpolate_tracks

config_factory('tracking_nips_2019')


def car(x):
    return TrackingBox('sample', (x, 0.0, 0.0), (2.0, 4.0, 1.5), (1.0, 0.0, 0.0, 0.0), (4.0, 0.0),
                       tracking_id='one', tracking_name='car', tracking_score=0.5)


track = defaultdict(list, {0: [car(0.0)], 500_000: [], 1_000_000: [], 1_500_000: [car(6.0)]})
seen = []
for time, boxes in interpolate_tracks(track).items():
    seen.append(round(boxes[0].translation[0], 3))
    print(f'{time / 1e6} s: {seen[-1]} m')
raise SystemExit(None if seen == [0, 4, 2, 6] else 'another behaviour than the one described')
EOF
