"""What people write into configs, right and wrong, and what must come of it: it works, or one error says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mmprune3d.pruning.settings import Plan

DEEP: list = reduce(lambda inner, _: [inner], range(5000), [])
"""Deeper than Python recurses."""

ODD = [
    None, True, False, 0, 1, 2, 3, 7, -1, 3.0, 0.5, -0.5, 1.0, 1.5, float('nan'), float('inf'), -float('inf'), 1e308,
    5e-324, 2**31, 2**32, 2**64, 10**400, 10**5000, '', ' ', '0.5', '3', 'nan', 'all', 'true', 'False', 'max', 'lowest',
    [], (), [[]], [1], [0.5], [1, 'a'], [1, 0.5], [5, False], [0, 0], (0.4, 0.3), [0.5, 0.5], [''], ['a'], [None],
    {}, {'a': 1}, {1: 2}, set(), {'a'}, b'12', 1j, object(), int, range(3), DEEP, Decimal('0.5'), Fraction(1, 2),
    np.int64(4), np.uint8(3), np.float32(0.25), np.float64(0.5), np.float64('nan'), np.bool_(True), np.str_('max'),
    np.array(5), np.array(0.5), np.array([1, 2]), np.array([]), np.array([[1.0]]), torch.tensor(2), torch.tensor(0.5),
    torch.tensor(True), torch.tensor([3, 1]), torch.tensor(float('inf')),
]  # fmt: skip
NO_COUNTS = [
    True, False, 3.0, 0.5, '3', '', -1, float('nan'), float('inf'), 10**12, 10**5000, [], [3], {}, b'3', 1j, object(),
    DEEP, np.bool_(True), np.float64(3), np.array([3]), torch.tensor(True), torch.tensor(3.0), Decimal(3), range(3),
]  # fmt: skip
"""What no setting takes that is a number of things."""
NO_SHARES = [
    True, '0.5', -0.1, 1.5, float('nan'), float('inf'), 10**400, [], [[0.5]], {}, 1j, object(), DEEP, np.bool_(False),
    np.float32('nan'), torch.tensor(True), Decimal('0.5'), Fraction(1, 2),
]  # fmt: skip
"""What no setting takes that is a share."""
SAYS_WHAT_IS_VALID = (
    'must',
    'valid',
    'give',
    'need',
    'leave',
    'cannot',
    'are for',
    'missing',
    'there are',
    'stand',
    'write',
    'lower',
)

scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6))
anything = st.one_of(st.sampled_from(ODD), scalars, st.lists(scalars, max_size=4), st.dictionaries(scalars, scalars))


def examples(most: int) -> Callable:
    """As many examples, the same ones in every run."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=most, derandomize=True, deadline=None, database=None, suppress_health_check=checks)


def works_or_says(make: Callable[[], Any], *names: str) -> Any:
    """What `make` makes, or None if it raises the one error that is allowed.

    Args:
        make: Any other exception than ValueError passes through.
        names: The message must name one of these; none: any.
    """
    try:
        return make()
    except ValueError as error:
        message = str(error)
    assert any(name in message for name in names) or not names, f'{names} not named: {message}'
    assert any(words in message for words in SAYS_WHAT_IS_VALID), f'does not say what is valid: {message}'
    assert len(message) < 1500, 'longer than anyone reads'
    return None


def assert_plain(value: Any) -> None:
    """Only types of Python itself, and numbers that are numbers."""
    if type(value) in (list, tuple):
        for item in value:
            assert_plain(item)
    else:
        assert type(value) in (int, float, str, bool, type(None)), repr(value)
        assert value == value and value not in (float('inf'), -float('inf'))


def assert_stored(plan: Plan) -> None:
    """A plan goes into a checkpoint, or a report, and comes back."""
    stored = plan.to_dict()
    for value in stored.values():
        assert_plain(value)
    again = type(plan).from_dict(json.loads(json.dumps(stored, allow_nan=False)))
    assert again == plan and again.to_dict() == stored and hash(again) == hash(plan)
