"""Upgrades by key pruning (tgGBC, ToMe): nothing is trained; the plan is given, or searched on the test set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from mmprune3d import adapters, files
from mmprune3d.checkpoint.begun import fingerprint
from mmprune3d.measure.annotations import require_accuracy
from mmprune3d.measure.measured import Measured
from mmprune3d.measure.replayed_tests import CachedTest
from mmprune3d.measure.samples import restrict
from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.pruning.settings import Plan

from .compare import KeyComparison, SideBySide
from .configs import forget_results
from .search import AUTO, PlanSearch, SearchRequest, parse_plan, require_limited
from .steps import Options, Scene, Step

if TYPE_CHECKING:  # Python 3.10 has no Self
    from typing import Self


@dataclass(frozen=True)
class KeyPruning(Step):
    """Prunes the keys of cross-attention while the detector runs; its weights stay as they are.

    Attributes:
        plan: A plan, or what is known of it before the search.
        request: What to look for first, or None.
        search: The search that found the plan, or None.
    """

    at_run_time: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ('max_drop', 'calibrate')

    plan: KeyPlan
    request: SearchRequest | None = None
    search: PlanSearch | None = None

    @classmethod
    def of(cls, plan: Any) -> Self:
        """A step with a plan, or with a search for one.

        Args:
            plan: A `KeyPlan` or a `SearchRequest`.
        """
        return cls(plan.template, plan) if isinstance(plan, SearchRequest) else cls(plan)

    @classmethod
    def parse(cls, plan_type: type[Plan], text: str, options: Options) -> Self:
        """See `Step`; 'auto' instead of r and n, also with other settings as in 'auto,k=100', asks for a search."""
        return cls.of(parse_plan(plan_type.method, text, options.max_drop, options.calibrate))

    def check_model(self, model: nn.Module, config: Config) -> None:
        """Raises ValueError if no adapter knows the decoder."""
        adapters.stages(model)

    def check_test(self, runner: Runner) -> None:
        """Raises ValueError if there is something to search and accuracy cannot be limited."""
        if self.request is not None:
            require_accuracy(runner, AUTO)
            require_limited(runner)

    def decided(self, scene: Scene) -> Self:
        """Searches the plan, if one is to be searched."""
        if self.request is None:
            return self
        restrict(scene.upgraded, scene.samples)
        search = find_plan(scene.upgraded, self.request, scene.out, scene.measured, fingerprint(scene.weights))
        return replace(self, plan=search.plan or self.plan, request=None, search=search)

    def attach(self, model: nn.Module) -> None:
        """See `adapters.attach`."""
        adapters.attach(model, self.plan)

    def detach(self, model: nn.Module) -> None:
        """See `adapters.detach`."""
        adapters.detach(model)

    def comparison(self, model: nn.Module, config: Config) -> Callable[..., SideBySide]:
        """Queries and keys are counted, and removed keys are drawn."""
        return KeyComparison

    def evidence(self) -> dict[str, Any]:
        """The plan, and how it was found."""
        found = {} if self.search is None else {'search': self.search.to_dict()}
        return {'plan': self.to_dict(), **found}

    def text(self) -> str:
        """How the plan was found."""
        return '' if self.search is None else self.search.markdown()


def find_plan(
    runner: Runner, request: SearchRequest, out: Path, measured: Measured | None = None, weights: str | None = None
) -> PlanSearch:
    """Searches a plan on the runner's model and test set.

    Args:
        runner: Built from the prepared config.
        request: What to look for.
        out: Folder for `search.json` and `search.md`.
        measured: Where figures of plans are kept until the upgrade is finished, or None.
        weights: Fingerprint of the model's weights: what was measured with other weights is measured anew.

    Raises:
        ValueError: If no plan stays within the limit; the files say what was tried.
    """
    with CachedTest(runner, request.calibrate) as test:
        known = {None: test.baseline}

        def figures(plan: KeyPlan | None) -> dict[str, float]:
            if plan in known:
                return known[plan]
            if measured is None:
                return test.evaluate(plan)
            return measured.take(
                f'{request.calibrate or "all"} samples, {plan}, weights {weights}', lambda: test.evaluate(plan)
            )

        search = PlanSearch(request, figures, test.keys[0], len(test.keys), len(test.indices))
        search.run()
    forget_results(out)
    files.write_json(out / 'search.json', search.to_dict())
    files.write_text(out / 'search.md', search.markdown())
    if search.plan is None:
        raise ValueError(
            f'no plan keeps {" and ".join(search.limited)} within {request.max_drop:g} of the baseline; '
            f'{out / "search.md"} lists what was tried'
        )
    return search
