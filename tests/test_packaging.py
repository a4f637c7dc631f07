from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STACK = {'torch', 'torchvision', 'mmcv', 'mmengine', 'mmdet', 'mmdet3d', 'open3d', 'opencv-python'}


def pip(*arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, '-m', 'pip', *map(str, arguments), '--no-build-isolation', '--no-deps', '--no-index'],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """A copy of what the wheel is made of, so that building leaves nothing behind here."""
    folder = tmp_path_factory.mktemp('checkout')
    unwanted = shutil.ignore_patterns('.mim', '__pycache__')
    for name in ('mmprune3d', 'configs', 'tools', 'requirements'):
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope='module')
def wheel(checkout, tmp_path_factory):
    out = tmp_path_factory.mktemp('wheel')
    pip('wheel', checkout, '-w', out)
    with zipfile.ZipFile(next(out.glob('*.whl'))) as archive:
        yield archive


def test_wheel_is_light(wheel):
    """Checkpoints of the demo stay in the checkout; pictures and results were never in the wheel."""
    assert Path(wheel.filename).stat().st_size < 2e6
    kinds = {Path(name).suffix for name in wheel.namelist() if '.dist-info/' not in name}
    assert kinds <= {'.py', '.md', '.yml', '.sh'}
    assert max(info.file_size for info in wheel.infolist()) < 100_000


def metadata_of(wheel):
    name = next(name for name in wheel.namelist() if name.endswith('.dist-info/METADATA'))
    return email.message_from_bytes(wheel.read(name))


def requirement_names(lines):
    return {re.match(r'[\w.-]+', line).group().lower() for line in lines}


def test_wheel_carries_configs_tools_and_index(wheel):
    names = set(wheel.namelist())
    assert 'mmprune3d/.mim/model-index.yml' in names
    for tool in ('train', 'test', 'doctor'):
        assert f'mmprune3d/.mim/tools/{tool}.py' in names
    configs = {f'mmprune3d/.mim/{path.relative_to(ROOT)}' for path in (ROOT / 'configs').rglob('*.py')}
    assert configs <= names
    assert not any('/dev/' in name or '__pycache__' in name for name in names)


def test_wheel_carries_every_module(wheel):
    names = set(wheel.namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / 'mmprune3d').rglob('*.py') if '.mim' not in path.parts}
    assert modules <= names
    assert not any(name.startswith('tests/') for name in names)


def test_doctor_runs_from_the_wheel(wheel, tmp_path):
    wheel.extractall(tmp_path)
    tool = tmp_path / 'mmprune3d' / '.mim' / 'tools' / 'doctor.py'
    done = subprocess.run([sys.executable, '-S', '-E', tool], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr == '' and 'torch is not installed' in done.stdout


@pytest.mark.parametrize(
    ('arguments', 'status', 'printed'), [(['--help'], 0, 'upgrade'), (['doctor'], 1, 'torch is not installed')]
)
def test_the_command_runs_from_the_wheel_where_nothing_else_is_installed(wheel, tmp_path, arguments, status, printed):
    name = next(name for name in wheel.namelist() if name.endswith('.dist-info/entry_points.txt'))
    scripts = ConfigParser()
    scripts.read_string(wheel.read(name).decode())
    module, function = scripts['console_scripts']['mmprune3d'].split(':')
    wheel.extractall(tmp_path)
    code = f'import sys; from {module} import {function}; sys.exit({function}())'
    # -S: no site-packages
    done = subprocess.run(
        [sys.executable, '-S', '-c', code, *arguments],
        cwd=tmp_path,
        env={'PYTHONPATH': str(tmp_path), 'PATH': os.environ['PATH']},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, ''), done.stderr
    assert printed in done.stdout


def test_installing_replaces_nobody_s_stack(wheel):
    requirements = metadata_of(wheel).get_all('Requires-Dist')
    always = [line for line in requirements if 'extra ==' not in line]
    assert requirement_names(always) & STACK == set()
    assert requirement_names(always) == {'numpy'}


def test_metadata(wheel):
    from mmprune3d import __version__

    metadata = metadata_of(wheel)
    assert metadata['Name'] == 'mmprune3d' and metadata['Version'] == __version__
    assert set(metadata.get_all('Provides-Extra')) == {'tests', 'docs', 'deploy', 'lint'}
    assert metadata['License'] == 'Apache-2.0'
    assert any(name.endswith('LICENSE') for name in wheel.namelist())


def test_setup_imports_neither_torch_nor_the_package(checkout):
    code = (
        "import runpy, sys; sys.argv = ['setup.py', '--version']; "
        "sys.modules.update(torch=None, mmengine=None, mmprune3d=None); runpy.run_path('setup.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == '0.1.0'


def test_editable_install_links_into_the_checkout(checkout, tmp_path):
    pip('install', '--target', tmp_path, '-e', checkout)
    mim = checkout / 'mmprune3d' / '.mim'
    for name in ('configs', 'tools', 'model-index.yml'):
        assert (mim / name).is_symlink()
        assert (mim / name).resolve() == checkout / name


def lock():
    lines = (ROOT / 'requirements' / 'lock-cpu.txt').read_text().splitlines()
    return dict(line.split('==') for line in lines if line and not line.startswith('#'))


def test_lock_is_exact_and_holds_what_matters():
    pins = lock()
    assert pins['torch'] == '2.13.0' and pins['mmdet3d'] == '1.4.0'
    assert pins['numpy'].startswith('1.') and int(pins['setuptools'].split('.')[0]) < 80
    assert 'lyft-dataset-sdk' in pins
    assert [name for name in pins if name.startswith('opencv')] == ['opencv-python-headless']
    unwanted = {'open3d', 'torchvision', 'torchaudio', 'triton', 'mmcv', 'mmcv-lite', 'mmprune3d'}
    assert unwanted & set(pins) == set() and not any('nvidia' in name or 'cuda' in name for name in pins)


@pytest.mark.parametrize('name', ['tests', 'docs', 'lint', 'deploy', 'runtime'])
def test_lock_holds_every_requirement(name):
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    wanted = requirement_names(line for line in lines if line and not line.startswith('#'))
    assert wanted <= set(lock())


@pytest.mark.skipif(Path(sys.prefix) != ROOT / '.venv', reason='not the environment of `make env`')
def test_lock_is_what_is_installed():
    from importlib.metadata import version

    assert {name: version(name).split('+')[0] for name in lock()} == lock()
