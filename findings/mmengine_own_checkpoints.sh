#!/usr/bin/env bash
# mmengine 0.10.7 (torch 2.13.0, numpy 1.26.4): a training cannot be resumed from the checkpoint that it wrote itself.
#
# The checkpoint holds the message hub, with a HistoryBuffer of mmengine in it. torch.load has weights_only=True as its
# default since 2.6, and mmengine neither allows its own class nor says otherwise: an UnpicklingError in place of the
# training's next epoch. The file is whole, and loads once the classes are allowed by
# torch.serialization.add_safe_globals.
#
# Seen, and expected below:
#     one epoch is trained: epoch_1.pth
#     resuming: UnpicklingError, about mmengine.logging.history_buffer.HistoryBuffer
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"${PYTHON:-python3}" -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check torch==2.13.0 numpy==1.26.4 mmengine==0.10.7 setuptools==79.0.1
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
import logging
import pickle
import re
from pathlib import Path

import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader

logging.disable(logging.INFO)


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, inputs, mode='tensor'):
        return {'loss': self.layer(inputs).square().mean()}


def collate(rows):
    return {'inputs': torch.stack(rows)}


def train(epochs, resume):
    Runner(
        Model(), 'work', train_dataloader=DataLoader([torch.ones(1)] * 4, batch_size=2, collate_fn=collate),
        train_cfg={'by_epoch': True, 'max_epochs': epochs}, optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.01}},
        resume=resume, experiment_name=f'to_{epochs}', log_level='ERROR',
    ).train()


train(1, resume=False)
(checkpoint,) = Path('work').glob('*.pth')
print('one epoch is trained:', checkpoint.name)
try:
    train(2, resume=True)
    seen = 'trained on'
except pickle.UnpicklingError as error:
    (name,) = set(re.findall(r'GLOBAL (mmengine[.a-zA-Z_]+) was not', str(error)))
    seen = f'UnpicklingError, about {name}'
print('resuming:', seen)
expected = 'UnpicklingError, about mmengine.logging.history_buffer.HistoryBuffer'
raise SystemExit(None if seen == expected else 'another behaviour than the one described')
EOF
