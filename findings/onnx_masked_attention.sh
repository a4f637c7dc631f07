#!/usr/bin/env bash
# torch 2.13.0 exporter (onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.31.1): attention of a query whose keys are all
# masked is 0 in PyTorch, the mean of all masked values in a model exported at opset 18, and 0 again at opset 23.
#
# scaled_dot_product_attention with a boolean mask of False only. At opset 18 the exporter writes the mask as the lowest
# finite float32 rather than minus infinity, so that the softmax is even over all keys; the IsNaN and Where that it
# writes behind it, to make such rows 0, never fire. Disabled optimisations of the runtime give the same. At opset 23 it
# is one Attention operator. Values are 1, 2 and 6.
#
# Seen, and expected below:
#     PyTorch: 0.0
#     opset 18: 3.0
#     opset 23: 0.0
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"${PYTHON:-python3}" -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check torch==2.13.0 numpy==1.26.4 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.31.1
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
import logging
import warnings

import onnxruntime
import torch
from torch.nn.functional import scaled_dot_product_attention

logging.disable(logging.WARNING)
warnings.simplefilter('ignore')


class Attention(torch.nn.Module):
    def forward(self, query, key, value, mask):
        return scaled_dot_product_attention(query, key, value, attn_mask=mask)


query, key = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 3, 1)
value = torch.tensor([1.0, 2.0, 6.0]).view(1, 1, 3, 1)
inputs = (query, key, value, torch.zeros(1, 1, 1, 3, dtype=torch.bool))
seen = {'PyTorch': Attention()(*inputs).item()}
for opset in (18, 23):
    file = f'attention_{opset}.onnx'
    torch.onnx.export(Attention().eval(), inputs, dynamo=True, opset_version=opset, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    names = [each.name for each in session.get_inputs()]
    seen[f'opset {opset}'] = session.run(None, {name: each.numpy() for name, each in zip(names, inputs)})[0].item()
for name, result in seen.items():
    print(f'{name}: {result}')
raise SystemExit(None if list(seen.values()) == [0.0, 3.0, 0.0] else 'another behaviour than the one described')
EOF
