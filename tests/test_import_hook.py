"""When a function is called that waits for a package, with small packages made for the purpose."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import pytest

from mmprune3d import doctor
from mmprune3d.import_hook import AfterImport, stop_waiting

FILES = {
    'hook_base/__init__.py': 'from .part import value\n',
    'hook_base/part.py': 'value = 1\n',
    'hook_outer/__init__.py': 'import hook_base\nfrom .late import value\n',
    'hook_outer/late.py': 'value = 2\n',
    'hook_alone.py': 'value = 3\n',
    'hook_broken.py': 'import hook_base\nraise RuntimeError("broken")\n',
}


@pytest.fixture
def wait(tmp_path, monkeypatch):
    """Makes the packages, and a function that begins to wait for hook_base and notes what is complete when called."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    calls = []

    def note(error=None):
        calls.append({name: hasattr(sys.modules.get(name), 'value') for name in ('hook_base', 'hook_outer')})
        if error is not None:
            raise error

    def begin(error=None):
        finder = AfterImport('hook_base', ('hook_outer', 'hook_alone', 'hook_broken'), lambda: note(error))
        finder.install()
        return finder, calls

    yield begin
    sys.meta_path[:] = before
    for name in [name for name in sys.modules if name.startswith('hook_')]:
        del sys.modules[name]


def test_called_once_after_the_package_is_complete(wait):
    finder, calls = wait()
    assert calls == []
    import hook_base

    assert calls == [{'hook_base': True, 'hook_outer': False}] and finder not in sys.meta_path
    importlib.reload(hook_base)
    assert len(calls) == 1


def test_the_outermost_import_is_complete(wait):
    _, calls = wait()
    import hook_outer  # noqa: F401

    assert calls == [{'hook_base': True, 'hook_outer': True}]


def test_a_package_that_does_not_import_it_ends_no_waiting(wait):
    finder, calls = wait()
    import hook_alone  # noqa: F401

    assert calls == [] and finder in sys.meta_path
    import hook_base  # noqa: F401

    assert len(calls) == 1


def test_an_import_that_fails_calls_nothing(wait):
    finder, calls = wait()
    with pytest.raises(RuntimeError, match='broken'):
        import hook_broken  # noqa: F401
    assert calls == [] and finder.running == []


def test_an_error_of_the_function_is_that_of_the_import_and_the_waiting_goes_on(wait):
    finder, calls = wait(ImportError('too old'))
    for _ in range(2):
        with pytest.raises(ImportError, match='too old'):
            import hook_base  # noqa: F401
        assert finder in sys.meta_path and finder.running == []
    assert len(calls) == 2


def test_the_module_keeps_its_own_loader(wait):
    wait()
    spec = importlib.util.find_spec('hook_base')
    assert 'from .part' in spec.loader.get_source('hook_base')
    import hook_base

    assert type(hook_base.__loader__) is type(importlib.import_module('hook_base.part').__loader__)
    assert hook_base.__spec__.loader is hook_base.__loader__


def test_a_package_that_is_absent_stays_absent(wait):
    finder = AfterImport('hook_nowhere', (), print)
    finder.install()
    assert importlib.util.find_spec('hook_nowhere') is None
    with pytest.raises(ModuleNotFoundError, match="No module named 'hook_nowhere'"):
        importlib.import_module('hook_nowhere')


def test_waiting_can_be_ended(wait):
    first, calls = wait()
    first.cancel()
    second, _ = wait()
    stop_waiting()
    import hook_base  # noqa: F401

    assert calls == [] and {first, second} & set(sys.meta_path) == set()


def test_doctor_looks_at_packages_without_registering_anything(wait, monkeypatch):
    """Otherwise a mmdet that is too old would be reported as a mmcv that cannot be imported."""
    finder, calls = wait()

    def examine():
        import hook_base  # noqa: F401

        assert finder not in sys.meta_path
        return [doctor.Finding('python', '3')]

    monkeypatch.setattr(doctor, 'examine', examine)
    assert doctor.main() == 0 and calls == []
