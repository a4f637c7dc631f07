#!/usr/bin/env bash
# mmengine 0.10.7 (torch 2.13.0): a warm-up of one step leaves the learning rate at its start for the whole training.
#
# LinearLR and ConstantLR of mmengine count `end - begin - 1` steps, so that with end=1 there is no step in which the
# rate is given back, and nothing is reported. torch's schedulers of the same names, with total_iters=1, are back after
# one step; with end=2, mmengine's are, too. A short warm-up given in epochs becomes one step where an epoch of the data
# at hand has one iteration.
#
# Seen, and expected below (learning rate 1.0, factor 0.001, five steps):
#     mmengine LinearLR end=1: 0.001 0.001 0.001 0.001 0.001
#     mmengine LinearLR end=2: 0.001 1.0 1.0 1.0 1.0
#     mmengine ConstantLR end=1: 0.001 0.001 0.001 0.001 0.001
#     mmengine ConstantLR end=2: 0.001 1.0 1.0 1.0 1.0
#     torch LinearLR total_iters=1: 0.001 1.0 1.0 1.0 1.0
#     torch ConstantLR total_iters=1: 0.001 1.0 1.0 1.0 1.0
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"${PYTHON:-python3}" -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    torch==2.13.0 mmengine==0.10.7 numpy==1.26.4 'setuptools==79.0.1' opencv-python-headless==4.11.0.86
cd "$tmp"
"$tmp/venv/bin/python" - <<'PY'
import torch
from mmengine.optim.scheduler import lr_scheduler as of_mmengine
from torch.optim import lr_scheduler as of_torch

FACTORS = {'LinearLR': dict(start_factor=0.001), 'ConstantLR': dict(factor=0.001)}


def rates(package, name, **length):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = getattr(package, name)(optimizer, **FACTORS[name], **length)
    seen = []
    for _ in range(5):
        seen.append(round(optimizer.param_groups[0]['lr'], 6))
        optimizer.step()
        scheduler.step()
    return seen


stuck, back = [0.001] * 5, [0.001] + [1.0] * 4
for name in FACTORS:
    for end, expected in ((1, stuck), (2, back)):
        seen = rates(of_mmengine, name, by_epoch=False, begin=0, end=end)
        print(f'mmengine {name} end={end}:', *seen)
        assert seen == expected, expected
for name in FACTORS:
    seen = rates(of_torch, name, total_iters=1)
    print(f'torch {name} total_iters=1:', *seen)
    assert seen == back, back
PY
