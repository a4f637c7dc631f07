"""How tools end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mmengine.registry import HOOKS, MODELS, DefaultScope, Registry

from mmprune3d import command
from mmprune3d.checkpoint.load import load_state_dict
from mmprune3d.pruning.tggbc import TgGBCPlan


def ending(main, capsys, **settings) -> tuple[int, str]:
    """Exit status, and what Python puts on stderr."""
    with pytest.raises(SystemExit) as caught:
        command.run_main(main, **settings)
    code, said = caught.value.code, capsys.readouterr().err
    return (1, f'{said}{code}\n') if isinstance(code, str) else (code, said)


def test_success_does_not_end_the_process(capsys):
    command.run_main(lambda: print('fine'))
    assert capsys.readouterr().out == 'fine\n'


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


def test_messages_of_ours_are_one_line(capsys):
    status, said = ending(lambda: TgGBCPlan.parse('x=1'), capsys)
    assert status == 1 and said.startswith('error: ') and said.count('\n') == 1 and 'TRACEBACK' not in said


@pytest.mark.parametrize(
    ('error', 'said'),
    [
        (PermissionError(13, 'Permission denied', '/out/report.md'), '/out/report.md: Permission denied'),
        (OSError(28, 'No space left on device'), 'No space left on device'),
        (ImportError('onnx is missing. Type: pip install onnx'), 'onnx is missing. Type: pip install onnx'),
    ],
)
def test_files_and_missing_packages(capsys, error, said):
    assert ending(raising(error), capsys) == (1, f'error: {said}\n')


def test_errors_of_others_say_their_class_and_how_to_see_more(capsys):
    status, said = ending(lambda: __import__('json').loads('{'), capsys)
    assert status == 1 and said.startswith('error: JSONDecodeError: Expecting') and f'{command.TRACEBACK}=1' in said


def test_weights_that_do_not_fit(capsys):
    import torch

    status, said = ending(lambda: load_state_dict(torch.nn.Linear(2, 2), {'weight': torch.ones(3, 2)}), capsys)
    assert status == 1 and said.startswith('error: ')


def test_runtime_errors_of_ours_that_mmengine_raises_anew(capsys):
    registry = Registry('built')

    @registry.register_module()
    class Refuses:
        def __init__(self) -> None:
            import torch

            load_state_dict(torch.nn.Linear(2, 2), {'weight': torch.ones(3, 2)})

    assert ending(lambda: registry.build(dict(type='Refuses')), capsys)[0] == 1


def test_names_that_no_registry_has(capsys):
    status, said = ending(lambda: HOOKS.build(dict(type='TgGBCHok')), capsys)
    assert status == 1 and said.startswith('error: TgGBCHok is not in the ')


def test_a_config_without_default_scope(capsys):
    with DefaultScope.overwrite_default_scope('mmengine'):
        status, said = ending(lambda: MODELS.build(dict(type='VoxelNet')), capsys)
    assert status == 1 and "has no default_scope, write default_scope = 'mmdet3d'" in said
    other = Registry('other')
    assert 'default_scope' not in ending(lambda: other.build(dict(type='VoxelNet')), capsys)[1]


@pytest.mark.parametrize('error', [TypeError('t'), AttributeError('a'), KeyError('k'), RuntimeError('r'), IndexError()])
def test_faults_keep_their_traceback(error):
    with pytest.raises(type(error)):
        command.run_main(raising(error))


def test_traceback_on_demand(monkeypatch):
    monkeypatch.setenv(command.TRACEBACK, '1')
    with pytest.raises(ValueError, match='x'):
        command.run_main(raising(ValueError('x')))


def test_interrupted(capsys):
    assert ending(raising(KeyboardInterrupt()), capsys) == (130, f'interrupted: {command.GOES_ON}\n')
    assert ending(raising(KeyboardInterrupt()), capsys, after_interrupt='begin anew')[1] == 'interrupted: begin anew\n'


def test_ctrl_c_that_others_turn_into_another_error(capsys):
    """As mmengine's Config does while it formats: whatever is raised, it raises a SyntaxError."""

    def main() -> None:
        try:
            raise KeyboardInterrupt
        except BaseException:
            raise SyntaxError('Failed to format the config file')  # noqa: B904

    assert ending(main, capsys) == (130, f'interrupted: {command.GOES_ON}\n')


SLEEPER = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
from mmprune3d.command import run_main
def main():
    print('begun', flush=True)
    time.sleep(600)
try:
    run_main(lambda: int('x'))
except SystemExit as error:
    assert error.code.startswith('error: '), error.code
run_main(main)
"""


def test_ctrl_c_of_a_process():
    process = subprocess.Popen(
        [sys.executable, '-c', SLEEPER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert process.stdout.readline() == 'begun\n'
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and said.splitlines()[-1].startswith('interrupted: ') and 'Traceback' not in said


def test_reader_that_leaves():
    text = "from mmprune3d.command import run_main\nrun_main(lambda: [print('x' * 99) for _ in range(9999)])"
    done = subprocess.run(f'"{sys.executable}" -c "{text}" | head -1', shell=True, capture_output=True, text=True)
    assert done.stdout == 'x' * 99 + '\n' and 'Traceback' not in done.stderr and 'Broken' not in done.stderr


class _Detector:
    def __init__(self, backbone: object, head: object = None) -> None:
        self.backbone = backbone


@pytest.mark.parametrize(
    ('described', 'said'),
    [
        (dict(type='_Detector', backbon=1), r'unexpected keyword argument .backbon.: .* valid are backbone, head\n'),
        (dict(type='_Detector'), r'missing 1 required positional argument: .backbone.: .* valid are backbone, head\n'),
        (dict(type=3), r'type must be a str or valid type'),
        (3, r'cfg should be a dict'),
    ],
)
def test_what_a_registry_cannot_build(capsys, described, said):
    registry = Registry('wrong')
    registry.register_module(module=_Detector)
    status, text = ending(lambda: registry.build(described), capsys)
    assert status == 1 and re.search(f'^error: .*{said}', text)


def test_other_type_errors_keep_their_traceback():
    with pytest.raises(TypeError):
        command.run_main(lambda: _Detector(backbon=1))
