from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

from mmprune3d import compat
from tests.toy_runner import write_config

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = {
    'torch': '2.13.0+cpu',
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmdet': '3.3.0',
    'mmdet3d': '1.4.0',
}


def run_python(*arguments: object) -> subprocess.CompletedProcess:
    """Runs Python in a new process that can import the toy model."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


class TestVersions:
    def test_ranges_equal_the_requirements_file(self):
        lines = (ROOT / 'requirements' / 'mminstall.txt').read_text().split()
        assert [entry.requirement for entry in compat.SUPPORTED] == lines

    def test_supported_versions_pass(self):
        compat.check_versions(VERSIONS.get)

    @pytest.mark.parametrize(
        ('name', 'version', 'typed'),
        [
            ('mmcv', '2.2.0', 'mmcv==2.1.0'),
            ('mmcv', '1.7.2', 'mmcv==2.1.0'),
            ('mmdet', '3.4.0', 'pip install "mmdet==3.3.0"'),
            ('mmdet3d', '1.0.0rc6', 'pip install "mmdet3d==1.4.0"'),
            ('mmengine', None, 'pip install "mmengine==0.10.7"'),
            ('torch', '1.13.1+cu117', 'pip install "torch>=2.0.0"'),
        ],
    )
    def test_message_names_version_range_and_command(self, name, version, typed):
        with pytest.raises(ImportError) as error:
            compat.check_versions((VERSIONS | {name: version}).get)
        message = str(error.value)
        assert name in message and typed in message and f'{name}>=' in message
        assert (version or 'not installed') in message
        assert message.count('Type:') == 1

    def test_every_problem_is_listed(self):
        assert len(compat.version_problems(lambda name: None)) == len(compat.SUPPORTED)

    def test_first_unsupported_version_is_excluded_and_last_supported_is_not(self):
        mmcv = next(entry for entry in compat.SUPPORTED if entry.name == 'mmcv')
        assert mmcv.problem('2.0.0') is None and mmcv.problem('2.1.9') is None
        assert mmcv.problem('1.9.9') is not None and mmcv.problem('2.2') is not None

    def test_installed_version_of_a_package_without_metadata(self, tmp_path, monkeypatch):
        (tmp_path / 'only_on_the_path.py').write_text('__version__ = "7.8"')
        monkeypatch.syspath_prepend(tmp_path)
        assert compat.installed_version('only_on_the_path') == '7.8'
        assert compat.installed_version('nowhere_at_all') is None

    def test_no_version_at_all_is_an_error(self):
        with pytest.raises(ValueError, match='is not a version'):
            compat.parse_version('unknown')


class TestAllowList:
    @pytest.mark.parametrize(
        'value',
        [
            np.float32(0.5),
            np.float64(0.25),
            np.int64(3),
            np.bool_(True),
            np.arange(6.0).reshape(2, 3),
            np.array(['a', 'bc']),
            np.array([True, False]),
            ConfigDict(nested=dict(classes=['car'])),
        ],
    )
    def test_values_of_checkpoints_come_back(self, tmp_path, value):
        torch.save(dict(value=value), tmp_path / 'value.pth')
        loaded = torch.load(tmp_path / 'value.pth', weights_only=True)['value']
        assert type(loaded) is type(value)
        np.testing.assert_array_equal(loaded, value)

    def test_history_buffer_comes_back_with_its_statistics(self, tmp_path):
        torch.save(HistoryBuffer([1.0, 2.0, 6.0], [1, 1, 1]), tmp_path / 'history.pth')
        loaded = torch.load(tmp_path / 'history.pth', weights_only=True)
        assert loaded.mean() == 3.0 and loaded.statistics('max') == 6.0

    @pytest.mark.parametrize(
        ('owner', 'name'),
        [(HistoryBuffer, '__init__'), (HistoryBuffer, '__globals__'), (os, 'system'), (str, 'format'), ([], 'min')],
    )
    def test_other_attributes_are_refused(self, owner, name):
        with pytest.raises(pickle.UnpicklingError, match='may not read'):
            compat._restricted_getattr(owner, name)

    @pytest.mark.parametrize(('function', 'argument'), [(os.system, 'true'), (eval, '1'), (getattr, 'x'), (print, 'x')])
    def test_functions_are_refused(self, tmp_path, function, argument):
        class Evil:
            def __reduce__(self):
                return function, (argument,)

        torch.save(dict(evil=Evil()), tmp_path / 'evil.pth')
        with pytest.raises((pickle.UnpicklingError, TypeError)):
            torch.load(tmp_path / 'evil.pth', weights_only=True)

    def test_arrays_of_objects_are_refused(self, tmp_path):
        torch.save(np.array([object()], dtype=object), tmp_path / 'objects.pth')
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / 'objects.pth', weights_only=True)


class RunsWhenLoaded:
    """Pickles as a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A work folder with the config and the checkpoint of one epoch, written by a real Runner."""
    folder = tmp_path_factory.mktemp('trained')
    config = write_config(folder / 'config.py', folder / 'work')
    runner = Runner.from_cfg(Config.fromfile(config))
    runner.train()
    return folder


class TestRealCheckpoints:
    def test_torch_alone_refuses_what_we_allow(self, trained):
        """The other tests would prove nothing if torch could read these checkpoints anyway."""
        path = str(trained / 'work' / 'epoch_1.pth')
        assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []
        done = run_python(
            '-c', 'import sys, torch; print(torch.serialization.get_unsafe_globals_in_checkpoint(sys.argv[1]))', path
        )
        assert 'HistoryBuffer' in done.stdout and 'builtins.getattr' in done.stdout

    def test_resumes_in_a_new_process(self, trained):
        config = write_config(
            trained / 'longer.py', trained / 'work', train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1)
        )
        done = run_python(ROOT / 'tools' / 'train.py', config, '--resume')
        assert done.returncode == 0, done.stderr
        assert 'resumed epoch: 1, iter: 2' in done.stdout + done.stderr
        assert torch.load(trained / 'work' / 'epoch_2.pth', weights_only=True)['meta']['iter'] == 4

    def test_tests_in_a_new_process(self, trained):
        done = run_python(ROOT / 'tools' / 'test.py', trained / 'config.py', trained / 'work' / 'epoch_1.pth')
        assert done.returncode == 0, done.stderr
        assert 'score: 0.5000' in done.stdout + done.stderr

    def test_a_program_in_a_checkpoint_does_not_run(self, trained):
        touched = trained / 'touched'
        checkpoint = torch.load(trained / 'work' / 'epoch_1.pth', weights_only=True)
        checkpoint['meta']['evil'] = RunsWhenLoaded(touched)
        torch.save(checkpoint, trained / 'evil.pth')
        done = run_python(ROOT / 'tools' / 'test.py', trained / 'config.py', trained / 'evil.pth')
        assert done.returncode != 0
        # one message, of ours: torch's own advises to switch the check off
        assert 'evil.pth' in done.stderr and 'contains posix.mkdir: a program, of which nothing was run' in done.stderr
        assert 'Traceback' not in done.stderr and 'weights_only' not in done.stderr
        assert not touched.exists()
        # The file is armed: this is what it calls.
        assert torch.serialization.get_unsafe_globals_in_checkpoint(trained / 'evil.pth') == ['posix.mkdir']


WITHOUT_PKG_RESOURCES = """
import sys
sys.modules['pkg_resources'] = None  # as in an environment with setuptools 82 or newer
from mmengine.config import Config
import mmengine.utils
try:
    Config.fromfile(sys.argv[1])
    sys.exit('mmengine does not need help any more: take install_package_lookup out')
except ModuleNotFoundError as error:
    assert 'pkg_resources' in str(error), error
import mmprune3d
assert len(Config.fromfile(sys.argv[1]).train_pipeline) > 3
assert mmengine.utils.is_installed('mmdet') and not mmengine.utils.is_installed('no-such-package')
"""


class TestPackageLookup:
    def test_configs_with_bases_of_mmdet3d_are_read_without_pkg_resources(self, tmp_path):
        script = tmp_path / 'script.py'
        script.write_text(WITHOUT_PKG_RESOURCES)
        result = run_python(script, ROOT / 'configs' / 'sst' / 'sst_kitti.py')
        assert result.returncode == 0, result.stderr

    @pytest.mark.parametrize('package', ['mmdet3d', 'mmengine', 'torch'])
    def test_the_answers_are_those_of_mmengine(self, package):
        from mmengine.utils import package_utils

        try:
            expected = package_utils.get_installed_path(package)
        except ModuleNotFoundError:
            pytest.skip('setuptools has no pkg_resources')
        assert Path(compat.get_installed_path(package)).samefile(expected)
        assert compat.is_installed(package) and not compat.is_installed('no-such-package')

    def test_a_package_on_the_path_and_a_distribution_with_another_name(self, tmp_path, monkeypatch):
        (tmp_path / 'on_the_path').mkdir()
        (tmp_path / 'on_the_path' / '__init__.py').touch()
        (tmp_path / 'other_full-1.0.dist-info').mkdir()
        (tmp_path / 'other_full-1.0.dist-info' / 'METADATA').write_text('Name: other-full\nVersion: 1.0\n')
        (tmp_path / 'other_full-1.0.dist-info' / 'top_level.txt').write_text('on_the_path\n')
        (tmp_path / 'only_a_folder').mkdir()
        monkeypatch.syspath_prepend(tmp_path)
        for name in ('on_the_path', 'other-full'):
            assert compat.is_installed(name) and compat.get_installed_path(name) == str(tmp_path / 'on_the_path')
        assert not compat.is_installed('only_a_folder')
        with pytest.raises(RuntimeError, match='only_a_folder is a namespace package'):
            compat.get_installed_path('only_a_folder')
        with pytest.raises(ModuleNotFoundError, match='no-such-package'):
            compat.get_installed_path('no-such-package')

    def test_where_pkg_resources_is_there_mmengine_is_left_alone(self, monkeypatch):
        from mmengine.utils import package_utils

        before = package_utils.is_installed
        monkeypatch.setattr(compat.importlib.util, 'find_spec', lambda name: object())
        compat.install_package_lookup()
        assert package_utils.is_installed is before
