"""The plans of all methods by name: how settings that were stored, or typed, become a plan again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import checks
from .altermoma import AlterMOMAPlan
from .gpq import GPQPlan
from .halting import HaltingPlan
from .settings import Plan
from .tggbc import TgGBCPlan
from .tome import ToMePlan

PLANS: dict[str, type[Plan]] = {
    plan.method: plan for plan in (TgGBCPlan, ToMePlan, GPQPlan, AlterMOMAPlan, HaltingPlan)
}
"""Method -> the class of its plans."""


def register(plan: type[Plan]) -> type[Plan]:
    """Adds the plan class of another method, so that its plans can be stored and read again.

    Args:
        plan: Its attribute ``method`` is the name.

    Raises:
        ValueError: If the name belongs to another class already.
    """
    if PLANS.setdefault(plan.method, plan) is not plan:
        raise ValueError(f'{plan.method!r} is the method of {PLANS[plan.method].__name__} already: choose another name')
    return plan


def plan_type(method: str) -> type[Plan]:
    """The class of the plans of a method.

    Raises:
        ValueError: If no plan has that name; the message lists those that there are.
    """
    return PLANS[checks.choice('method', method, tuple(PLANS))]


def plan_from_dict(data: Mapping[str, Any]) -> Plan:
    """The plan that `Plan.to_dict` wrote, for example into ``checkpoint['meta']['mmprune3d']``.

    Args:
        data: Settings, with the name of the method under ``method``.

    Raises:
        ValueError: If the method or a setting is unknown or not valid.
    """
    values = checks.mapping('plan', data, "dict(method='tggbc', r=12000)")
    return plan_type(values.get('method', '')).from_dict(values)
