#!/usr/bin/env bash
# lyft_dataset_sdk 0.0.8 (pyquaternion 0.9.9, shapely 2.0.7, numpy 1.26.4): the overlap of two boxes is computed with both
# turned to the wrong side (by -yaw), so that detections of objects that stand at an angle are judged wrongly.
#
# Two boxes of 4 m x 2 m point the same way, one is a metre ahead of the other: they share 3 of 5 m, an IoU of 0.6 at any
# yaw. The evaluation gives 0.6 at 0 and 90 degrees and 0.33 at 45 degrees, and with the threshold of 0.5 an average
# precision of 0 instead of 1. (Box3D.calculate_ground_bbox_coords takes the sine from row 0, column 1 of the rotation
# matrix, where it has a minus sign. Overlaps of boxes with one centre do not change.)
#
# Seen, and expected below:
#     yaw 0: IoU 0.600, AP at 0.5: 1
#     yaw 45: IoU 0.333, AP at 0.5: 0
#     yaw 90: IoU 0.600, AP at 0.5: 1
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"${PYTHON:-python3}" -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check numpy==1.26.4 pyquaternion==0.9.9 shapely==2.0.7
"$tmp/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check --no-deps lyft_dataset_sdk==0.0.8
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
import math

from lyft_dataset_sdk.eval.detection.mAP_evaluation import Box3D, get_average_precisions


def car(yaw, ahead, **more):
    """A car that is moved along its own direction; the rotation is about the vertical axis, as w, x, y, z."""
    return dict(sample_token='sample', name='car', size=[2.0, 4.0, 1.5],
                translation=[ahead * math.cos(yaw), ahead * math.sin(yaw), 0.0],
                rotation=[math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)], **more)


seen = []
for degrees in (0, 45, 90):
    truth, found = car(math.radians(degrees), 0.0), car(math.radians(degrees), 1.0, score=0.9)
    iou = Box3D(**found).get_iou(Box3D(**truth))
    (ap,) = get_average_precisions([truth], [found], ['car'], 0.5)
    print(f'yaw {degrees}: IoU {iou:.3f}, AP at 0.5: {ap:g}')
    seen.append((round(iou, 3), ap))
raise SystemExit(None if seen == [(0.6, 1), (0.333, 0), (0.6, 1)] else 'another behaviour than the one described')
EOF
