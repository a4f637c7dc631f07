"""The registry of pruning methods: one entry per method, read by everything that has to know which methods there are.

``mmprune3d upgrade``, ``tools/upgrade.py``, ``mmprune3d.prune``, the hooks in ``upgraded.py`` files and the table of
methods in the documentation are made from it. A method of another package is a plan class, a step (see ``steps``) and a
:class:`Method`, which the package names as an entry point::

    [project.entry-points."mmprune3d.methods"]
    mine = "my_package.my_method:METHOD"

Without an installed package, :func:`register` adds it to the running process.

The methods of mmprune3d are in ``builtin``, descriptions of methods for readers in ``describe``. Nothing heavy is
imported here: plans and steps are found by their names when they are needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmprune3d.pruning.settings import Plan

    from .steps import Options, Step

GROUP = 'mmprune3d.methods'
"""Group of entry points that name a `Method`."""


@dataclass(frozen=True)
class Method:
    """A pruning method.

    Attributes:
        name: Its name on command lines and in files; that of its plan.
        plan: The class of its plans, or the dotted name of it.
        step: What an upgrade does with a plan: a subclass of ``upgrade.steps.Step``, or the dotted name of it.
        summary: What is removed or changed, and by which rule, in one line.
        detectors: Detectors that it works on.
        training: Training that it needs, in a few words; '' if there is none.
        carrier: What prunes when the upgraded config is used.
        help: One paragraph: what it does, what it gains, what it costs.
        hook: Registered name of the hook that carries the plan in ``upgraded.py``, for methods that prune at run time.
        together: Methods that it can be combined with in one upgrade; it is enough that one of the two says so.
        imports: Modules that ``upgraded.py`` has to import for it, besides mmprune3d.
    """

    name: str
    plan: type[Plan] | str
    step: type[Step] | str
    summary: str
    detectors: str
    training: str
    carrier: str
    help: str
    hook: str = ''
    together: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()

    @property
    def plan_type(self) -> type[Plan]:
        """The class of its plans."""
        return _found(self.plan)

    @property
    def step_type(self) -> type[Step]:
        """The class that does an upgrade with it."""
        return _found(self.step)

    def command(self, example: str | None = None) -> str:
        """An example of the command line."""
        words = (self.plan_type.example if example is None else example).replace(',', ' ')
        return f'mmprune3d upgrade CONFIG CHECKPOINT {self.name} {words}'


METHODS: dict[str, Method] = {}
"""Name -> method, in the order of registration; read it through `known`, which loads the methods of other packages."""


def register(method: Method) -> Method:
    """Adds a method.

    Raises:
        ValueError: If the name is taken by another method.
    """
    if method.name in METHODS and METHODS[method.name] != method:
        raise ValueError(f'there is a method {method.name!r} already: choose another name')
    if not isinstance(method.plan, str):
        from mmprune3d.pruning import plans

        plans.register(method.plan)
    METHODS[method.name] = method
    return method


def _found(what: Any) -> Any:
    """A class that is given itself or by its dotted name."""
    if not isinstance(what, str):
        return what
    module, _, name = what.rpartition('.')
    return getattr(import_module(module), name)


def known() -> dict[str, Method]:
    """Name -> method: those of mmprune3d, then those that installed packages register."""
    _load_plugins()
    return METHODS


@cache
def _load_plugins() -> None:
    import_module(f'{__package__}.builtin')
    for entry in metadata.entry_points(group=GROUP):
        try:
            method = register(entry.load())
            if method.name != entry.name:
                warnings.warn(f'the entry point {entry.name} names the method {method.name}: they must have one name')
        except Exception as error:  # one broken package must not take all commands away
            warnings.warn(f'the methods of {entry.value} are missing: {type(error).__name__}: {error}')


def get(name: str) -> Method:
    """The method of a name.

    Raises:
        ValueError: If there is none; the message lists those that there are.
    """
    methods = known()
    if name not in methods:
        raise ValueError(f'{name!r} is not a method; valid are {", ".join(methods)}')
    return methods[name]


def check_together(names: Sequence[str]) -> None:
    """Refuses combinations of methods that are not known to work.

    Raises:
        ValueError: If there is no method, one twice, or two that do not go together; the message says what does.
    """
    if not names:
        raise ValueError(f'say what to prune: {", ".join(known())}')
    for name in names:
        get(name)
        if list(names).count(name) > 1:
            raise ValueError(f'{name} is given twice')
    for one, other in combinations(names, 2):
        if not go_together(one, other):
            raise ValueError(
                f'{one} and {other} cannot be combined in one upgrade. Known combinations: {_pairs()}. '
                'Upgrade with one method at a time'
            )


def go_together(one: str, other: str) -> bool:
    """Whether two methods can be combined in one upgrade."""
    return other in get(one).together or one in get(other).together


def _pairs() -> str:
    pairs = [f'{one} with {other}' for one, other in combinations(known(), 2) if go_together(one, other)]
    return ', '.join(pairs)


def step_for(plan: Any) -> Step:
    """What an upgrade does with a plan.

    Args:
        plan: A plan, which trains with the default settings where its method trains; or a step, which is returned.

    Raises:
        ValueError: If no method has such plans.
    """
    from .steps import Step

    return plan if isinstance(plan, Step) else get(plan.method).step_type.of(plan)


def steps_of(plans: Any) -> list[Step]:
    """The steps of an upgrade, in the order in which they are done: what makes another model, then what runs with it.

    Args:
        plans: One plan or step, or several.

    Raises:
        ValueError: If they cannot be combined.
    """
    several = plans if isinstance(plans, (list, tuple)) else [plans]
    steps = [step_for(plan) for plan in several]
    check_together([step.method for step in steps])
    return sorted(steps, key=lambda step: step.at_run_time)


def parse(texts: Mapping[str, str], options: Options | None = None) -> list[Step]:
    """The steps that a command line asks for.

    Args:
        texts: Method -> its settings, such as ``'r=12000,n=2'``.
        options: Settings of the upgrade that only some methods have.

    Raises:
        ValueError: If a method, a combination, a setting or an option is not valid.
    """
    from .steps import Options

    options = options or Options()
    check_together(list(texts))
    types = {name: get(name).step_type for name in texts}
    for option in options.given():
        if not any(option in step.options for step in types.values()):
            users = [method.name for method in known().values() if option in method.step_type.options]
            raise ValueError(
                f'--{option.replace("_", "-")} is an option of {", ".join(users)}, not of {", ".join(texts)}'
            )
    return steps_of([step.parse(get(name).plan_type, texts[name], options) for name, step in types.items()])
