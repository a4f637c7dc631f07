"""The base class of all pruning plans: settings that are checked, parsed from text and stored as plain types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from . import checks

if TYPE_CHECKING:  # Python 3.10 has no Self
    from typing import Self


@dataclass(frozen=True)
class Plan:
    """A pruning decision as data.

    Settings are plain Python types once a plan is made, so that it can be stored; those of a config may also be
    NumPy's, see `checks.plain`.

    Attributes:
        method: Name of the method in commands, configs and checkpoints, such as ``'tggbc'``.
        title: Name of the method with which every message begins, such as ``'tgGBC'``.
        example: Settings as one would type them, such as ``'r=12000,n=2'``.
        purpose: The meaning of the one setting without a default, in words, for the message that it is missing.
        lists: Names of the settings that may be a list, written with ``+`` in text.
    """

    method: ClassVar[str]
    title: ClassVar[str]
    example: ClassVar[str]
    purpose: ClassVar[str]
    lists: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            self.set(field.name, checks.plain(getattr(self, field.name)))

    def set(self, name: str, value: Any) -> None:
        """Gives a setting its value while the plan is made."""
        object.__setattr__(self, name, value)

    def check_count(self, name: str, least: int = 0) -> None:
        """Raises ValueError if the setting `name` is not a whole number from `least`."""
        checks.count(f'{self.title}: {name}', getattr(self, name), least)

    def check_seed(self, name: str) -> None:
        """Raises ValueError if the setting `name` is not a seed that Python, NumPy and torch all take."""
        checks.seed(f'{self.title}: {name}', getattr(self, name))

    def check_number(self, name: str, **limits: Any) -> None:
        """Raises ValueError if the setting `name` is not a finite number within limits; see `checks.number`."""
        checks.number(f'{self.title}: {name}', getattr(self, name), **limits)

    def check_choice(self, name: str, valid: Sequence[str]) -> None:
        """Raises ValueError if the setting `name` is not one of `valid`."""
        checks.choice(f'{self.title}: {name}', getattr(self, name), valid)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain Python types, with the name of the method: the form that is stored in checkpoints."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {'method': self.method, **values}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            ValueError: If the method is another one, a setting is unknown, or one without a default is missing.
        """
        return cls(**cls.known(data))

    @classmethod
    def known(cls, data: Mapping[str, Any], others: Sequence[str] = ()) -> dict[str, Any]:
        """The settings in a dict, if it can be made into a plan as far as their names go.

        Args:
            data: Settings by name; a ``method``, as `to_dict` writes it, is checked and left out of the result.
            others: Names that may stand beside the settings of the plan, such as other arguments of a hook.

        Raises:
            ValueError: If the method is another one, a setting is unknown, or one without a default is missing.
        """
        valid = [*names(cls), *others]
        values = checks.settings(cls.title, data, valid, f'dict({cls.example})', ignored=('method',))
        method = values.pop('method', cls.method)
        if checks.plain(method) != cls.method:
            raise ValueError(f'expected a {cls.method} plan, got one of {checks.shown(method)}')
        for field in fields(cls):
            if field.default is MISSING and field.name not in values:
                raise ValueError(f'{cls.title}: {field.name}, {cls.purpose}, is missing (example: {cls.example})')
        return values

    @classmethod
    def beside(cls, where: str, data: Mapping[str, Any], others: Sequence[str]) -> tuple[Self, dict[str, Any]]:
        """A plan whose settings stand in one dict with those of something else, and the settings of the latter.

        Args:
            where: What the dict is called in a config, for messages.
            data: All settings by name.
            others: Names of the settings that are not the plan's; none of them need be there.

        Raises:
            ValueError: If a setting is unknown, or the plan's own settings are not valid.
        """
        valid = [*others, *names(cls)]
        data = checks.settings(where, data, valid, f'dict({cls.example})', ignored=('method',))
        plan = cls.from_dict({name: value for name, value in data.items() if name not in others})
        return plan, {name: data[name] for name in others if name in data}

    @classmethod
    def parse(cls, text: str) -> Self:
        """A plan from text such as `'r=12000,n=2,k=175'`; lists are written `'r=8000+4000'`.

        Raises:
            ValueError: If an item is not `name=value`, or the values are invalid.
        """
        values: dict[str, Any] = {}
        for item in filter(None, (part.strip() for part in text.split(','))):
            name, separator, value = (part.strip() for part in item.partition('='))
            if not separator or not name or not value or name in values:
                raise ValueError(
                    f'{cls.title}: cannot read {checks.shown(item)}; write each setting once, as {cls.example}'
                )
            parts = [_number(part) for part in value.split('+')] if name in cls.lists else [_number(value)]
            values[name] = parts[0] if len(parts) == 1 else parts
        return cls.from_dict(values)


def names(kind: type) -> list[str]:
    """Names of the settings of a dataclass, in the order in which they are declared."""
    return [field.name for field in fields(kind)]


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
