"""The logic of scripts/make_env.py, without installing anything."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'make_env.py'


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """The script as a module that works in a temporary folder."""
    spec = importlib.util.spec_from_file_location('make_env', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / '.venv'
    (venv / 'bin').mkdir(parents=True)
    (venv / 'bin' / 'python').symlink_to(sys.executable)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    for name, value in dict(VENV=venv, PYTHON=venv / 'bin' / 'python', LOG=venv / 'log', DONE=venv / 'done').items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, 'missing_tools', lambda wheel_cached: [])
    return module


def steps(setup, monkeypatch, *bodies):
    """Replaces the steps; gives the list of those that ran."""
    ran = []

    def step(number, body):
        def call():
            ran.append(number)
            body()

        return f'step {number}', call

    monkeypatch.setattr(setup, 'STEPS', tuple(step(number, body) for number, body in enumerate(bodies, 1)))
    return ran


def nothing():
    pass


def test_finished_set_up_does_nothing(setup, monkeypatch, capsys):
    ran = steps(setup, monkeypatch, nothing, nothing)
    assert setup.main() == 0 and ran == [1, 2]
    capsys.readouterr()
    assert setup.main() == 0 and ran == [1, 2]
    assert capsys.readouterr().out == ''


def test_interrupted_set_up_goes_on(setup, monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    ran = steps(setup, monkeypatch, nothing, interrupt, nothing)
    assert setup.main() == 130 and ran == [1, 2]
    assert 'goes on' in capsys.readouterr().err
    ran = steps(setup, monkeypatch, nothing, nothing, nothing)
    assert setup.main() == 0 and ran == [2, 3]


def test_failed_step_shows_the_log_and_what_to_do(setup, monkeypatch, capsys):
    def fail():
        setup.run([sys.executable, '-c', 'print("a.c: fatal error: Python.h: No such file"); raise SystemExit(1)'])

    steps(setup, monkeypatch, fail)
    assert setup.main() == 1
    message = capsys.readouterr().err
    assert 'fatal error' in message and setup.APT in message and 'step 1: failed' in message


def test_a_changed_lock_is_noticed(setup, monkeypatch, tmp_path):
    ran = steps(setup, monkeypatch, nothing)
    assert setup.main() == 0
    changed = tmp_path / 'lock.txt'
    changed.write_text(setup.LOCK.read_text() + '# changed\n')
    monkeypatch.setattr(setup, 'LOCK', changed)
    assert setup.main() == 0 and ran == [1, 1]


def test_a_broken_stamp_starts_again(setup, monkeypatch):
    ran = steps(setup, monkeypatch, nothing)
    setup.DONE.write_text('{"fingerprint":')
    assert setup.main() == 0 and ran == [1]
    assert json.loads(setup.DONE.read_text())['steps'] == ['step 1']


def test_missing_tools_are_named_with_the_command(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location('make_env', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.sys, 'version_info', (3, 9, 1))
    monkeypatch.setattr(module.shutil, 'which', lambda name: None)
    monkeypatch.setattr(module.importlib.util, 'find_spec', lambda name: None)
    text = '\n'.join(module.missing_tools(wheel_cached=False))
    assert 'Python 3.11 is needed' in text and 'no venv module' in text and 'no C++ compiler' in text
    assert text.count(module.APT) == 3
    assert 'compiler' not in '\n'.join(module.missing_tools(wheel_cached=True))


@pytest.mark.parametrize(
    ('output', 'advice'),
    [
        ('OSError: [Errno 28] No space left on device', 'disk is full'),
        ('c++: fatal error: Killed signal terminated program cc1plus', 'JOBS=1'),
        ('ReadTimeoutError: Read timed out', 'network failed'),
        ('ImportError: libcudart.so.12: cannot open shared object file', 'TORCH_INDEX'),
        ('something else', 'goes on'),
    ],
)
def test_advice(setup, output, advice):
    assert advice in setup.explain_failure(output)


def test_wheels_are_kept_apart_by_what_they_were_built_for(setup):
    folders = {setup.wheel_folder('2.13.0+cpu'), setup.wheel_folder('2.12.0+cpu')}
    assert len(folders) == 2
    assert all(f'cp{sys.version_info[0]}{sys.version_info[1]}' in folder.name for folder in folders)


def test_the_foundation_is_in_the_lock(setup):
    names = {line.split('==')[0] for line in setup.LOCK.read_text().splitlines() if '==' in line}
    assert names >= setup.FOUNDATION


def test_the_child_gets_no_stdin_and_its_output_goes_to_the_log(setup):
    setup.run([sys.executable, '-c', 'import sys; print("read", repr(sys.stdin.read()))'])
    assert "read ''" in setup.LOG.read_text()


def test_progress_of_the_build_is_read_from_the_log(setup):
    setup.LOG.write_text('  [1/106] c++ a\n  [42/106] c++ b\n')
    assert setup.built_so_far() == '42 of 106 files'
    setup.LOG.write_text('nothing yet\n')
    assert setup.built_so_far() == ''
