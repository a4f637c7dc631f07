"""Packaging of mmprune3d: a light wheel that carries configs and tools for ``mim`` and replaces nobody's OpenMMLab."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.develop import develop
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
MIM = ROOT / 'mmprune3d' / '.mim'
CARRIED = ('configs', 'tools', 'model-index.yml')
SKIPPED = shutil.ignore_patterns('__pycache__', '*.pyc')


def read_version() -> str:
    """The version, without importing the package (which would need torch)."""
    text = (ROOT / 'mmprune3d' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"__version__ = '([^']+)'", text).group(1)


def read_requirements(name: str) -> list[str]:
    """The lines of requirements/<name>.txt, without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith('#')]


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


setup(
    name='mmprune3d',
    version=read_version(),
    description='Published pruning methods for the 3D detectors of mmdetection3d, as one plugin',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords='3D object detection, pruning, mmdetection3d, PETR, StreamPETR, BEVFusion, SST, nuScenes',
    classifiers=[
        'Development Status :: 4 - Beta',
        'License :: OSI Approved :: Apache Software License',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['mmprune3d', 'mmprune3d.*']),
    install_requires=read_requirements('runtime'),
    extras_require={name: read_requirements(name) for name in ('tests', 'docs', 'deploy', 'lint')},
    cmdclass={'build_py': BuildWithMim, 'develop': DevelopWithMim, 'editable_wheel': EditableWithMim},
    zip_safe=False,
)
