from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mmprune3d.measure.quiet import without_lines

MEASURED = """
import os, sys
from mmprune3d.measure.memory import peak_memory
import torch

def call():
    print('from Python')
    os.write(2, b'from C\\n')
    sys.stderr.write('and an error stream\\n')
    return torch.ones(2**18) + 1  # two tensors of a MiB

print(round(peak_memory(call)))
"""


def test_the_profiler_says_nothing_and_others_are_heard() -> None:
    made = subprocess.run([sys.executable, '-c', MEASURED], capture_output=True, text=True, check=True)
    assert made.stdout.splitlines() == ['from Python', '2']
    heard = [line for line in made.stderr.splitlines() if 'warn' not in line.lower()]
    assert 'USDT' not in made.stderr and {'from C', 'and an error stream'} <= set(heard)


def test_lines_of_others_follow_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    os.write(1, b'before\n')
    print('held back by Python, before')
    with without_lines('NOISE'):
        os.write(1, b'NOISE 1\nkept\nNOISE 2\n')
        os.write(2, b'NOISE 3\nno line end')
    os.write(1, b'after\n')
    out, err = capfd.readouterr()
    assert out.splitlines() == ['before', 'held back by Python, before', 'kept', 'after']
    assert err == 'no line end'


def test_descriptors_come_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), without_lines('NOISE'):
        os.write(1, b'NOISE\nkept\n')
        1 / 0  # noqa: B018
    os.write(1, b'after\n')
    assert capfd.readouterr().out == 'kept\nafter\n'


def test_a_closed_descriptor_stays_closed() -> None:
    code = """
import os
from mmprune3d.measure.quiet import without_lines
os.close(2)
with without_lines('NOISE'):
    os.write(1, b'NOISE\\nkept\\n')
try:
    os.write(2, b'x')
except OSError:
    os.write(1, b'still closed\\n')
"""
    made = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert made.stdout == 'kept\nstill closed\n'
