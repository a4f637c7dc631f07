"""The house rules that no linter knows: no circle, one stem per method, a cheap and safe way to import the package."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_graph import ROOT, ancestors, circles, imports, modules

STEMS = ('tggbc', 'gpq', 'altermoma', 'halting')
HEAVY = ('mmengine', 'mmcv', 'mmdet', 'mmdet3d')


class TestCircles:
    def test_no_module_imports_itself_through_others(self):
        assert circles(imports()) == []

    def test_circles_are_found(self):
        graph = {'a': ['b', 'torch'], 'b': ['c'], 'c': ['a', 'd'], 'd': ['d'], 'e': ['a']}
        assert circles(graph) == [['a', 'b', 'c'], ['d']]

    def test_imports_in_functions_and_for_type_checkers_count(self):
        graph = imports()
        assert 'mmengine.config' in graph['mmprune3d.config_types']
        assert 'mmprune3d.compat' in graph['mmprune3d.registration']
        assert 'mmprune3d.adapters.petr' in graph['mmprune3d.adapters']


class TestStems:
    """A reader who knows a paper finds its code by one name in every room that the method needs."""

    @staticmethod
    def named(stem: str, *folders: str, prefix: str = '') -> list[Path]:
        entries = [entry for folder in folders for entry in (ROOT / folder).rglob('*') if entry.suffix != '.pyc']
        return [entry for entry in entries if entry.stem.startswith((f'{prefix}{stem}_', f'{prefix}{stem}-'))] + [
            entry for entry in entries if entry.stem == f'{prefix}{stem}'
        ]

    @pytest.mark.parametrize('stem', STEMS)
    def test_a_method_has_a_file_in_every_room(self, stem):
        engine = [f'mmprune3d/engine/{room}' for room in ('hooks', 'loops', 'runners')]
        found = {
            'pruning': self.named(stem, 'mmprune3d/pruning'),
            'engine': self.named(stem, *engine),
            'upgrade': self.named(stem, 'mmprune3d/upgrade'),
            'configs': self.named(stem, 'configs'),
            'docs': [path for path in [ROOT / 'docs' / 'user_guides' / f'{stem}.md'] if path.is_file()],
            'tests': self.named(stem, 'tests', prefix='test_'),
        }
        assert [room for room, files in found.items() if not files] == []

    def test_a_method_that_is_not_there_is_missed(self):
        assert self.named('tgg', 'mmprune3d/pruning', 'configs') == []


def first_package(name: str, path: Path) -> str | None:
    """The first thing that an ``__init__.py`` imports and that is not of the standard library."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for node in tree.body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module if node.module and not node.level else name]
        else:
            continue
        others = [other.split('.')[0] for other in names if other.split('.')[0] not in sys.stdlib_module_names]
        if others:
            return others[0]
    return None


class TestRegistrationBeforeRooms:
    """Whoever imports mmengine first starts the registration; see mmprune3d/registration.py."""

    @pytest.fixture(scope='class')
    def heavy(self) -> set[str]:
        """The modules whose import ends in importing one of the OpenMMLab packages."""
        graph, found = imports(at_import=True), set()
        executed = {name: {*ancestors(name)[:-1], *targets} for name, targets in graph.items()}
        executed = {name: {step for part in parts for step in ancestors(part)} for name, parts in executed.items()}
        while True:
            more = {name for name, parts in executed.items() if parts & ({*HEAVY} | found)} - found
            if not more:
                return found
            found |= more

    def test_rooms_that_need_mmengine_import_it_before_anything_of_them_runs(self, heavy):
        files = modules()
        packages = {name: path for name, path in files.items() if path.name == '__init__.py'}
        safe = {name for name, path in packages.items() if first_package(name, path) == 'mmengine'}
        assert sorted(name for name in heavy if not safe & set(ancestors(name))) == []

    def test_what_needs_none_of_them_is_not_heavy(self, heavy):
        light = {name for name in modules() if name.startswith(('mmprune3d.pruning', 'mmprune3d.ops'))}
        assert light and not light & heavy and 'mmprune3d.layers.attention' in heavy and 'mmprune3d' not in heavy


CHECKS = """
import sys

def watched():
    return {name for name in ('mmengine', 'mmcv', 'mmdet', 'mmdet3d') if name in sys.modules}

def waiting():
    return [finder for finder in sys.meta_path if type(finder).__name__ == 'AfterImport']

def check_registered():
    import mmdet3d.registry, mmengine.registry, mmengine.runner.checkpoint
    import mmprune3d
    assert not waiting(), 'still waiting'
    assert mmengine.registry.HOOKS.get('TgGBCHook') and mmengine.registry.RUNNERS.get('AlterMOMARunner')
    for name in ('PETR3D', 'HaltingSST', 'BEVFusion3D'):
        assert mmdet3d.registry.MODELS.get(name), name
    assert mmdet3d.registry.TRANSFORMS.get('RecordAugmentation')
    assert mmdet3d.registry.METRICS.get('MMPrune3DKittiMetric')
    for function in ('load_state_dict', 'load_url', 'find_latest_checkpoint'):
        assert getattr(mmengine.runner.checkpoint, function).__module__.startswith('mmprune3d.'), function
    # whatever came first, every room is complete
    assert mmprune3d.models.petr.PETR3D and mmprune3d.engine.hooks.TgGBCHook and mmprune3d.engine.prune_as_configured
    assert mmprune3d.adapters.attach and mmprune3d.evaluation.KittiMetricCPU
    assert mmprune3d.transforms is sys.modules['mmprune3d.datasets.transforms']
    preparers = sys.modules['mmprune3d.checkpoint.load'].PREPARERS
    assert preparers and len(preparers) == len(set(preparers))
    # the hook leaves no trace in what it noticed
    for name in watched():
        module = sys.modules[name]
        assert module.__loader__ is module.__spec__.loader and 'mmprune3d' not in type(module.__loader__).__module__
    mmprune3d.register()
"""
LEAN = """
import importlib, pkgutil, torch

def import_pruning():
    import mmprune3d.pruning
    folders = mmprune3d.pruning.__path__
    return [importlib.import_module(f'mmprune3d.pruning.{info.name}') for info in pkgutil.iter_modules(folders)]

loading = torch.load, torch.save, torch.hub.load_state_dict_from_url
allowed = list(torch.serialization.get_safe_globals())
assert len(import_pruning()) > 10
assert not watched(), watched()
assert loading == (torch.load, torch.save, torch.hub.load_state_dict_from_url)
assert allowed == torch.serialization.get_safe_globals()

# once more, where the packages cannot be imported at all
for name in [name for name in sys.modules if name.split('.')[0] == 'mmprune3d']:
    del sys.modules[name]
sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in waiting()]
blocked = ('mmengine', 'mmcv', 'mmdet', 'mmdet3d')
sys.modules.update(dict.fromkeys(blocked))
assert len(import_pruning()) > 10 and len(waiting()) == 1
from mmprune3d import compat
original = compat.check_versions
compat.check_versions = lambda: original(lambda name: None if name in blocked else '2.9.0')
import mmprune3d
for attempt in range(2):
    try:
        mmprune3d.register()
        sys.exit('registered without mmengine')
    except ImportError as error:
        assert all(f'{name} is not installed' in str(error) for name in blocked), error
compat.check_versions = original

# and now somebody imports mmengine
for name in blocked:
    del sys.modules[name]
import mmengine
check_registered()
"""
ORDERS = {
    'lean, then mmengine': LEAN,
    'mmdet3d, which imports mmcv and mmengine, after mmprune3d': (
        'import mmprune3d\nassert len(waiting()) == 1 and not watched()\nimport mmdet3d\ncheck_registered()'
    ),
    'a hook first': 'from mmprune3d.engine.hooks import TgGBCHook\ncheck_registered()',
    'a model first': 'import mmprune3d.models.petr\ncheck_registered()',
}


class TestImportOrders:
    """The order mmengine, then mmprune3d is that of every config with custom_imports, which many tests read."""

    @pytest.mark.parametrize('order', ORDERS)
    def test_everything_is_registered_whatever_is_imported_first(self, order):
        environment = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
        done = subprocess.run(
            [sys.executable, '-c', CHECKS + ORDERS[order]],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
