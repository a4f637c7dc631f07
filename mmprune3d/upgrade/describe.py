"""Methods and their settings in words: for ``--help``, and as a table for the documentation."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import MISSING, fields
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

from .methods import Method, get, go_together, known

if TYPE_CHECKING:
    from mmprune3d.pruning.settings import Plan


wrapped = partial(fill, width=100, break_on_hyphens=False)


class Setting(NamedTuple):
    """A setting of a plan.

    Attributes:
        name: Its name.
        default: Its default as one would type it; '' if there is none.
        text: What it says, in one sentence.
    """

    name: str
    default: str
    text: str


def settings_of(plan: type[Plan]) -> list[Setting]:
    """The settings of a plan with the first sentences of what the docstrings of its classes say about them."""
    texts: dict[str, str] = {}
    for parent in reversed(plan.__mro__):
        attributes = (inspect.getdoc(parent) or '').partition('Attributes:\n')[2].partition('\n\n')[0]
        for name, text in re.findall(r'^    (\w+): (.*(?:\n {8}.*)*)', attributes, re.MULTILINE):
            texts[name] = _first_sentence(' '.join(text.split()))
    return [Setting(field.name, _shown(field.default), texts.get(field.name, '')) for field in fields(plan)]


def _first_sentence(text: str) -> str:
    return re.split(r'(?<!Eq\.)(?<=[.;]) (?=[A-Z0-9\'])', text)[0].rstrip('.;')


def _shown(default: Any) -> str:
    if default is MISSING or default is None:
        return ''
    return '+'.join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)


def describe(name: str) -> str:
    """A method and its settings, for the screen.

    Raises:
        ValueError: If there is no such method.
    """
    method = get(name)
    partners = [other for other in known() if other != name and go_together(name, other)]
    lines = [
        f'{name}: {method.summary}',
        '',
        wrapped(method.help),
        '',
        f'detectors:  {method.detectors}',
        f'training:   {method.training or "none"}',
        f'goes with:  {", ".join(partners) or "no other method"}',
        f'example:    {method.command()}',
        '',
        'settings (default):',
    ]
    for setting in settings_of(method.plan_type):
        head = f'{setting.name} ({setting.default})' if setting.default else setting.name
        lines.append(wrapped(setting.text, initial_indent=f'  {head:24} ', subsequent_indent=' ' * 27))
    return '\n'.join(lines)


def listing() -> str:
    """All methods with one line each, for the screen."""
    return '\n'.join(f'{method.name:10} {method.summary}' for method in known().values())


def table(methods: Iterable[Method] | None = None) -> str:
    """All methods as a Markdown table, for the documentation."""
    lines = [
        '| method | what it does | detectors | training | what prunes afterwards | goes with | example |',
        '|---|---|---|---|---|---|---|',
    ]
    for method in known().values() if methods is None else methods:
        partners = [f'`{other}`' for other in known() if other != method.name and go_together(method.name, other)]
        cells = (
            f'`{method.name}`',
            method.summary,
            method.detectors,
            method.training or 'none',
            method.carrier,
            ', '.join(partners) or '-',
            f'`{method.name} {method.plan_type.example.replace(",", " ")}`',
        )
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)
