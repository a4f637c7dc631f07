"""Analysis of the classes that a pickle refers to, from its operations; no object is created."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

LEGACY_PREFACE = 3
"""Number of pickles before the main one in a file of ``torch.save`` before 1.6: magic number, version, number sizes."""
MAPPINGS = ('collections.OrderedDict', 'collections.defaultdict', 'mmengine.config.config.ConfigDict')
HARMLESS = ('torch.', 'collections.', 'numpy.', 'mmengine.', 'builtins.', '__builtin__.', '_codecs.')
"""Packages whose classes occur in every state dict and training state of mmengine; not worth naming in a message."""


class Contents(NamedTuple):
    """The classes and functions that a pickle refers to.

    Attributes:
        root: Class of the outermost object, or None for a dict, list, number and so on.
        names: Names of the classes and functions, in order, each once.
        protocol: Version of the pickle format.
    """

    root: str | None
    names: tuple[str, ...]
    protocol: int

    @property
    def foreign(self) -> list[str]:
        """Names of classes and functions that are not from `HARMLESS` packages."""
        return [name for name in self.names if not name.startswith(HARMLESS)]


def contents_of(path: Path) -> Contents:
    """Analyses the pickle in a file of ``torch.save``.

    Raises:
        ValueError: If the file is damaged.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith('/data.pkl'))
            return scan(io.BytesIO(archive.read(name)))
    with path.open('rb') as file:
        for _ in range(LEGACY_PREFACE):
            scan(file)
        return scan(file)


def scan(stream: BinaryIO) -> Contents:
    """Analyses the next pickle of a stream."""
    operations = list(pickletools.genops(stream))
    first = next((one.name for one, _, _ in operations if one.name not in ('PROTO', 'FRAME')), '')
    names = tuple(dict.fromkeys(_names(operations)))
    # torch.save before 1.6 stored ('module', class, source code) instead of the class of a module.
    looked_up = first in ('GLOBAL', 'SHORT_BINUNICODE') or (first == 'MARK' and _strings(operations)[:1] == ['module'])
    is_object = looked_up and names and names[0] not in MAPPINGS and not names[0].startswith('torch._utils.')
    protocol = next((argument for one, argument, _ in operations if one.name == 'PROTO'), 0)
    return Contents(names[0] if is_object else None, names, protocol)


def _strings(operations: list) -> list[str]:
    return [argument for one, argument, _ in operations if 'UNICODE' in one.name]


def _names(operations: list) -> Iterator[str]:
    """``module.name`` of everything that is looked up; newer protocols push the two parts as strings first."""
    pushed: list[str] = []
    memo: dict[int, str] = {}
    for operation, argument, _ in operations:
        if operation.name == 'GLOBAL':
            yield argument.replace(' ', '.')
        elif operation.name == 'STACK_GLOBAL' and len(pushed) > 1:
            yield '.'.join(pushed[-2:])
        elif 'UNICODE' in operation.name:
            pushed.append(argument)
        elif operation.name == 'MEMOIZE':
            memo[len(memo)] = pushed[-1] if pushed else ''
        elif operation.name in ('BINPUT', 'LONG_BINPUT'):
            memo[argument] = pushed[-1] if pushed else ''
        elif operation.name in ('BINGET', 'LONG_BINGET'):
            pushed.append(memo.get(argument, ''))
