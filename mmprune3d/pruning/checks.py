"""Checks of single settings, for all that reads settings: hooks, plans, loops and models of a config, command lines.

Every function takes the setting's name with what it belongs to, such as ``'tgGBC: n'``, and its value. It returns the
value as a plain Python type, or raises one ValueError that names the setting, shows the value and says what is valid.

Config files are programs, so that numbers may be NumPy's or 0-d tensors: they count as the Python numbers that they
are (`plain`). Nothing else is converted: a bool is no number, ``3.0`` no count, ``'3'`` no number, ``'False'`` no bool.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MOST = 10**9
"""The largest count that is taken for one."""
MOST_SEED = 2**32 - 1
"""The largest seed that Python, NumPy and torch all take."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 12


def plain(value: Any) -> Any:
    """Numbers and arrays of NumPy and torch as Python numbers and lists; everything else as it is."""
    return value.tolist() if hasattr(value, 'tolist') and hasattr(value, 'dtype') else value


def shown(value: Any) -> str:
    """A value for a message, shortened; of any size, depth and type."""
    try:
        return _SHORT.repr(value)
    except Exception:  # a number too long for Python to print, an object whose repr fails
        return f'<{type(value).__name__}>'


def shortened(names: Iterable[str], most: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    rest = len(names) - most
    return ', '.join(names[:most]) + (f' and {rest} more' if rest > 0 else '')


def is_number(value: Any) -> bool:
    """Whether a plain value is a finite number, bools excluded."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the largest float
        return False


def count(where: str, value: Any, least: int = 0, most: int = MOST) -> int:
    """Checks that a setting is a whole number from `least` to `most`, and returns it."""
    value = plain(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f'{where}={shown(value)} must be a whole number, {least} or more')
    if value > most:
        raise ValueError(f'{where}={shown(value)} must be a whole number, {least} to {most}')
    return value


def seed(where: str, value: Any) -> int:
    """Checks that a setting is a seed that Python, NumPy and torch all take, and returns it."""
    return count(where, value, 0, MOST_SEED)


def number(
    where: str, value: Any, least: float = 0, most: float = math.inf, above: float | None = None, below: bool = False
) -> float:
    """Checks that a setting is a finite number within limits, and returns it.

    Args:
        where: Name of the setting with what it belongs to, such as ``'tgGBC: n'``.
        value: Value of the setting.
        least: Smallest valid number.
        most: Largest valid number.
        above: If given, the number must be larger than this, and `least` is ignored.
        below: Whether the number must be smaller than `most`.
    """
    value = plain(value)
    if is_number(value):
        low = value > above if above is not None else value >= least
        if low and (value < most if below else value <= most):
            return value
    raise ValueError(f'{where}={shown(value)} must be {_interval(least, most, above, below)}')


def _interval(least: float, most: float, above: float | None, below: bool) -> str:
    """The numbers that `number` takes with these limits, in words."""
    end = f'{"below " if below else ""}{most:g}'
    if above is not None:
        return f'a number above {above:g}' + ('' if most == math.inf else f' and {end if below else f"up to {end}"}')
    if most < math.inf:
        return f'a number from {least:g} to {end}'
    return 'a finite number' if least == -math.inf else f'a number, {least:g} or more'


def choice(where: str, value: Any, valid: Sequence[str]) -> str:
    """Checks that a setting is one of the strings `valid`, and returns it."""
    value = plain(value)
    if not isinstance(value, str) or value not in valid:
        raise ValueError(f'{where}={shown(value)}; valid are {", ".join(valid)}')
    return value


def flag(where: str, value: Any) -> bool:
    """Checks that a setting is a bool, and returns it."""
    value = plain(value)
    if not isinstance(value, bool):
        raise ValueError(f'{where}={shown(value)} must be True or False')
    return value


def text(where: str, value: Any, what: str) -> str:
    """Checks that a setting is a string that is not empty, and returns it; `what` describes it in the message."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'{where}={shown(value)} must be {what}')
    return str(value)


def texts(where: str, value: Any, what: str, least: int = 1) -> tuple[str, ...]:
    """Checks that a setting is a list of `least` or more strings that are not empty, and returns it as a tuple.

    Args:
        where: Name of the setting with what it belongs to.
        value: Value of the setting, a list or tuple.
        what: Description of a valid list, for the message.
        least: Smallest valid number of strings.
    """
    value = plain(value)
    good = isinstance(value, (list, tuple)) and all(isinstance(item, str) and item.strip() for item in value)
    if not good or len(value) < least:
        raise ValueError(f'{where}={shown(value)} must be {what}')
    return tuple(str(item) for item in value)


def mapping(where: str, value: Any, example: str) -> dict[Any, Any]:
    """Checks that a value is a dict of settings, such as `example`, and returns a copy; names are not checked."""
    if not isinstance(value, Mapping):
        raise ValueError(f'{where}: {shown(value)} must be a dict of settings, such as {example}')
    return dict(value)


def settings(where: str, value: Any, valid: Sequence[str], example: str, ignored: Sequence[str] = ()) -> dict[str, Any]:
    """Checks that a value is a dict of settings with valid names, and returns a copy.

    Args:
        where: What the dict is called, such as ``'tgGBC'`` or ``'train'``.
        value: The dict.
        valid: Names of the valid settings, which the message about an unknown one lists.
        example: A valid dict, as one would write it.
        ignored: Names that are valid too, but that the message does not list.
    """
    value = mapping(where, value, example)
    known = {*valid, *ignored}
    unknown = sorted(key if isinstance(key, str) else shown(key) for key in value if key not in known)
    if unknown:
        raise ValueError(f'{where}: unknown setting {", ".join(unknown)}; valid are {", ".join(valid) or "none"}')
    return value
