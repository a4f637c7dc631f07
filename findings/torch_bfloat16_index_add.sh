#!/usr/bin/env bash
# torch 2.13.0 on a CPU: in bfloat16 index_add of a vector and index_add of the same numbers as a column differ by a
# factor of four; the vector is rounded at every addition.
#
# A thousand ones are added at index 0. As a vector they give 256, at which adding 1 changes nothing any more, and so
# does index_put with accumulate; as a column [1000, 1], by scatter_add and by sum they give 1000. Counts, and sums of
# loss terms per sample, become wrong under autocast, silently.
#
# Seen, and expected below:
#     index_add of a vector 256, of a column 1000, index_put 256, scatter_add 1000, sum 1000
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"${PYTHON:-python3}" -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check torch==2.13.0 numpy==1.26.4
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
import torch

ones, index = torch.ones(1000, dtype=torch.bfloat16), torch.zeros(1000, dtype=torch.long)
vector, column = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, 1, dtype=torch.bfloat16)
seen = {
    'index_add of a vector': vector.index_add(0, index, ones),
    'of a column': column.index_add(0, index, ones[:, None]),
    'index_put': vector.index_put((index,), ones, accumulate=True),
    'scatter_add': vector.scatter_add(0, index, ones),
    'sum': ones.sum(),
}
seen = {name: int(value) for name, value in seen.items()}
print(', '.join(f'{name} {value}' for name, value in seen.items()))
raise SystemExit(None if list(seen.values()) == [256, 1000, 256, 1000, 1000] else 'another behaviour than described')
EOF
