#!/usr/bin/env bash
# spconv 2.3.8 (CPU, cumm 0.7.11, torch 2.13.0): the maximum of sparse max pooling starts at 0, so that cells with
# negative features only are pooled to 0.
#
# One voxel with the feature -5 in a grid, pooled by SparseMaxPool2d(2, 2): 0 instead of -5. A value above 0 is right.
# Behind a ReLU nothing changes; behind batch norm or a linear layer the pooled features are wrong.
#
# Seen, and expected below:
#     feature -5.0 is pooled to 0.0
#     feature 5.0 is pooled to 5.0
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"${PYTHON:-python3}" -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check torch==2.13.0 numpy==1.26.4 spconv==2.3.8 cumm==0.7.11 setuptools==79.0.1
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
import torch
import spconv.pytorch as spconv

torch.set_num_threads(1)
seen = []
for value in (-5.0, 5.0):
    where = torch.tensor([[0, 1, 1]], dtype=torch.int32)
    voxels = spconv.SparseConvTensor(torch.tensor([[value]]), where, [4, 4], batch_size=1)
    seen.append(spconv.SparseMaxPool2d(2, 2)(voxels).features.item())
    print(f'feature {value} is pooled to {seen[-1]}')
raise SystemExit(None if seen == [0.0, 5.0] else 'another behaviour than the one described')
EOF
