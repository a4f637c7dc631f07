"""The part of the packaging that pyproject.toml cannot say: configs and tools travel in the wheel, for ``mim``."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.develop import develop
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
MIM = ROOT / 'mmprune3d' / '.mim'
CARRIED = ('configs', 'tools', 'model-index.yml')
# Checkpoints and their training logs are data of the demo: they are found in a checkout, or named by a path.
SKIPPED = shutil.ignore_patterns('__pycache__', '*.pyc', '*.pth', '*.json')


def link_mim() -> None:
    """Points mmprune3d/.mim at this checkout, so that an editable install sees configs and tools as they are edited."""
    MIM.mkdir(exist_ok=True)
    for name in CARRIED:
        link = MIM / name
        if link.is_symlink() or not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(Path('..', '..', name))


class BuildWithMim(build_py):
    """Copies configs, tools and model-index.yml into the built package as mmprune3d/.mim."""

    def run(self) -> None:
        """Builds as usual, then copies; an editable build gets links instead."""
        super().run()
        if getattr(self, 'editable_mode', False):
            link_mim()
            return
        target = Path(self.build_lib) / 'mmprune3d' / '.mim'
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in CARRIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, target / name, ignore=SKIPPED)
            else:
                shutil.copy2(source, target / name)


class DevelopWithMim(develop):
    """``setup.py develop``, which old versions of pip call for ``pip install -e``."""

    def run(self) -> None:
        """Links first, then installs."""
        link_mim()
        super().run()


class EditableWithMim(editable_wheel):
    """What newer versions of pip call for ``pip install -e``."""

    def run(self) -> None:
        """Links first, then installs."""
        link_mim()
        super().run()


setup(cmdclass={'build_py': BuildWithMim, 'develop': DevelopWithMim, 'editable_wheel': EditableWithMim})
