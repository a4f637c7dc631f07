"""Pruning decisions as data: parsed from a command line, stored in a checkpoint, replayed later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from .schedules import split_over_layers


@dataclass(frozen=True)
class TgGBCPlan:
    """How many cross-attention keys tgGBC removes, and when (paper section 3.3).

    Attributes:
        r: Keys removed in total.
        n: Number of decoder layers that prune, counted from the first.
        k: Queries whose scores count, the most confident ones; 0 means all of them (as in the official command line).
        activation: 'sigmoid' for focal-loss heads, 'softmax' for heads with a background column (the last one, left
            out).
    """

    method: ClassVar[str] = 'tggbc'
    activations: ClassVar[tuple[str, ...]] = ('sigmoid', 'softmax')

    r: int
    n: int = 2
    k: int = 175
    activation: str = 'sigmoid'

    def __post_init__(self) -> None:
        for name in ('r', 'n', 'k'):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f'tgGBC: {name}={value!r} must be a whole number, 0 or more')
        if self.activation not in self.activations:
            raise ValueError(f'tgGBC: activation={self.activation!r}; valid are {", ".join(self.activations)}')

    def removals(self, num_layers: int) -> tuple[int, ...]:
        """Keys removed after each of `num_layers` decoder layers; see `split_over_layers`."""
        return split_over_layers(self.r, self.n, num_layers)

    def keys_per_layer(self, num_keys: int, num_layers: int) -> tuple[int, ...]:
        """Keys that each layer attends to, starting from `num_keys`.

        Raises:
            ValueError: If `r` leaves no key.
        """
        if self.r >= num_keys and any(self.removals(num_layers)):
            raise ValueError(f'tgGBC: r={self.r} of {num_keys} keys leaves none; valid are 0 to {num_keys - 1}')
        counts = [num_keys]
        for removed in self.removals(num_layers)[:-1]:
            counts.append(counts[-1] - removed)
        return tuple(counts)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, with the method's name: what goes into `checkpoint['meta']['mmprune3d']`."""
        return {'method': self.method, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TgGBCPlan:
        """The inverse of `to_dict`.

        Raises:
            ValueError: If the method is another one, a key is unknown, or `r` is missing.
        """
        values = dict(data)
        method = values.pop('method', cls.method)
        if method != cls.method:
            raise ValueError(f'expected a {cls.method} plan, got one of {method!r}')
        valid = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(valid))
        if unknown:
            raise ValueError(f'tgGBC: unknown setting {", ".join(unknown)}; valid are {", ".join(valid)}')
        if 'r' not in values:
            raise ValueError('tgGBC: r, the number of keys to remove, is missing (example: r=12000,n=2,k=175)')
        return cls(**values)

    @classmethod
    def parse(cls, text: str) -> TgGBCPlan:
        """A plan from `'r=12000,n=2,k=175'`.

        Raises:
            ValueError: If an item is not `name=value`, or the values are invalid.
        """
        values: dict[str, Any] = {}
        for item in filter(None, (part.strip() for part in text.split(','))):
            name, separator, value = (part.strip() for part in item.partition('='))
            if not separator or not name or not value or name in values:
                raise ValueError(f'tgGBC: cannot read {item!r}; write each setting once, as r=12000,n=2,k=175')
            values[name] = int(value) if value.lstrip('+-').isdigit() else value
        return cls.from_dict(values)
