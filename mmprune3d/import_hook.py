"""Calls a function right after a package has been imported, by whomever, without importing the package itself.

Only the standard library is used; :mod:`mmprune3d.registration` is the one user.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class AfterImport(MetaPathFinder):
    """A finder on ``sys.meta_path`` that finds nothing itself: it notices when a package has been imported.

    The function is called when the outermost of the watched imports ends. If somebody imports mmdet3d, which imports
    mmcv, which imports mmengine, then all three are complete when the function is called, and it may use all of them.
    The finder leaves ``sys.meta_path`` once the function has returned; if the function raises, the import that led to
    it fails with that error, and the finder stays.

    Args:
        package: Name of the package that is waited for.
        through: Names of packages that import `package` while they are being imported.
        call: The function.
    """

    def __init__(self, package: str, through: Iterable[str], call: Callable[[], object]) -> None:
        self.package = package
        self.names = {package, *through}
        self.call = call
        self.running: list[str] = []

    def install(self) -> None:
        """Registers the finder, which waits for the import of the module."""
        sys.meta_path.insert(0, self)

    def cancel(self) -> None:
        """Ends the waiting, wherever it stands."""
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that another finder gives for a watched package, with a loader that tells when it is imported."""
        if fullname not in self.names or fullname in sys.modules:
            return None
        others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, 'find_spec')]
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _TellingLoader(spec.loader, self)
        return spec

    def ended(self, name: str, complete: bool) -> None:
        """A watched import has ended; `complete` if it did not fail."""
        try:
            if complete and self.running == [name] and self.package in sys.modules:
                self.call()
                self.cancel()
        finally:
            self.running.remove(name)


class _TellingLoader(Loader):
    """Loads as another loader does, and tells a finder when it begins and ends; the module keeps the other loader."""

    def __init__(self, loader: Loader, finder: AfterImport) -> None:
        self.loader = loader
        self.finder = finder

    def __getattr__(self, name: str) -> Any:
        # who only asks for the spec (importlib.util.find_spec) may go on to ask the loader for source or paths
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the other loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Gives the module its own loader back, executes it and tells the finder."""
        name = module.__name__
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.finder.running.append(name)
        complete = False
        try:
            self.loader.exec_module(module)
            complete = True
        finally:
            self.finder.ended(name, complete)


def stop_waiting() -> None:
    """Ends the waiting of every `AfterImport`, for programs that look at a set-up which may be broken."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, AfterImport)]
