#!/usr/bin/env bash
# torch 2.13.0 on a CPU: which of several equal values topk returns changes with the ratio of k to the number of values.
#
# Of n zeros, topk returns the k lowest indices while k * 64 <= n (two algorithms, chosen by that ratio), though from
# k = 4 on in another order, and others for smaller n. A cut by topk that is repeated with another k, or another image
# size, keeps other elements. (topk promises no order of ties; that the choice depends on the ratio is not said. A
# stable sort gives the lowest indices always.)
#
# Seen, and expected below:
#     3 of 192: [0, 1, 2]
#     3 of 191: not the lowest
#     10 of 640: the lowest, in another order
#     10 of 639: not the lowest
#     sort(stable=True): always the lowest, in order
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"${PYTHON:-python3}" -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check torch==2.13.0 numpy==1.26.4
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
import torch


def judge(indices):
    lowest = list(range(len(indices)))
    if indices == lowest:
        return str(lowest)
    return 'the lowest, in another order' if sorted(indices) == lowest else 'not the lowest'


seen = []
for k, n in ((3, 192), (3, 191), (10, 640), (10, 639)):
    indices = torch.zeros(n).topk(k).indices.tolist()
    seen.append(judge(indices))
    print(f'{k} of {n}: {seen[-1]} (indices {indices})')
stable = all(torch.zeros(n).sort(descending=True, stable=True).indices.tolist() == list(range(n)) for n in (17, 191, 639))
print('sort(stable=True):', 'always the lowest, in order' if stable else 'another order')
expected = ['[0, 1, 2]', 'not the lowest', 'the lowest, in another order', 'not the lowest']
raise SystemExit(None if seen == expected and stable else 'another behaviour than the one described')
EOF
