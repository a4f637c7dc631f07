#!/usr/bin/env bash
# torch 2.13.0: FlopCounterMode counts 0 operations for nn.MultiheadAttention in evaluation, and for a whole
# nn.TransformerEncoderLayer, because their fast path is one operator that the counter does not know.
#
# The same module on the same input: in training all projections and products are counted, in evaluation without
# gradients none, and no warning is given. (With gradients enabled, or another tensor as key, evaluation leaves the fast
# path and is counted.)
#
# Seen, and expected below:
#     MultiheadAttention: training 327680, evaluation 0
#     TransformerEncoderLayer: training 589824, evaluation 0
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"${PYTHON:-python3}" -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check torch==2.13.0 numpy==1.26.4
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def counted(call):
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        call()
    return counter.get_total_flops()


x = torch.zeros(2, 16, 32)
attention = nn.MultiheadAttention(32, 4, batch_first=True)
layer = nn.TransformerEncoderLayer(32, 4, dim_feedforward=64, batch_first=True)
seen = {}
for module, call in ((attention, lambda: attention(x, x, x)), (layer, lambda: layer(x))):
    seen[type(module).__name__] = [counted(lambda: module.train(mode) and call()) for mode in (True, False)]
for name, (training, evaluation) in seen.items():
    print(f'{name}: training {training}, evaluation {evaluation}')
# four projections of 2 x 16 x 32 x 32 and two products of 2 x 16 x 16 x 32, two operations each
assert 2 * (4 * 2 * 16 * 32 * 32 + 2 * 2 * 16 * 16 * 32) == 327680
expected = {'MultiheadAttention': [327680, 0], 'TransformerEncoderLayer': [589824, 0]}
raise SystemExit(None if seen == expected else 'another behaviour than the one described')
EOF
