#!/usr/bin/env bash
# torch 2.13.0 on a CPU: what nn.MultiheadAttention gives for a sample whose keys are all masked depends on whether its
# weights are asked for, and on whether gradients are enabled: NaN or finite numbers.
#
# With need_weights=True, the default, the output is NaN. With need_weights=False it is the bias of the projection. With
# need_weights=False, in evaluation, without gradients and with one tensor as query, key and value it is NaN again (the
# fast path). Whoever leaves the weights out for speed changes results, and so does torch.no_grad().
#
# Seen, and expected below:
#     evaluation, other keys: need_weights=True NaN, need_weights=False finite
#     evaluation, own keys: need_weights=False NaN without gradients, finite with gradients
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"${PYTHON:-python3}" -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check torch==2.13.0 numpy==1.26.4
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
import torch
from torch import nn

torch.manual_seed(0)
attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
query, key = torch.randn(1, 3, 8), torch.randn(1, 5, 8)


def result(query, key, weights, gradients):
    masked = torch.ones(1, key.shape[1], dtype=torch.bool)
    with torch.set_grad_enabled(gradients):
        output, _ = attention(query, key, key, key_padding_mask=masked, need_weights=weights)
    return 'NaN' if output.isnan().all() else 'finite' if output.isfinite().all() else 'mixed'


other = [result(query, key, weights, gradients=False) for weights in (True, False)]
own = [result(key, key, False, gradients) for gradients in (False, True)]
print('evaluation, other keys: need_weights=True {}, need_weights=False {}'.format(*other))
print('evaluation, own keys: need_weights=False {} without gradients, {} with gradients'.format(*own))
expected = ['NaN', 'finite']
raise SystemExit(None if other == own == expected else 'another behaviour than the one described')
EOF
