"""What an upgrade does with one plan: the interface between `run_upgrade` and the methods.

An upgrade goes through the same stages whatever the methods. A method's class overrides the functions of those stages
in which it has something to do:

1. check, before hours of work: `Step.check_config`, `Step.check_model`, `Step.check_test`.
2. make another model, often by training: `Step.make`, then `Step.settle`.
3. decide what the plan leaves open: `Step.decided`.
4. prune at run time, for methods that change no weights: `Step.attach`, `Step.detach`.
5. compare with the baseline and report: `Step.comparison`, `Step.title`, `Step.evidence`, `Step.text`, `Step.pictures`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from mmprune3d.measure.measured import Measured
from mmprune3d.pruning.settings import Plan

from .compare import SideBySide

if TYPE_CHECKING:  # Python 3.10 has no Self
    from typing import Self


@dataclass(frozen=True)
class Options:
    """Settings of an upgrade that only some methods have; None where nothing is said.

    Attributes:
        epochs: Epochs of fine-tuning.
        lr_factor: Learning rate of fine-tuning, as a multiple of that in the config.
        max_drop: For a search: the largest drop of mAP and of NDS.
        calibrate: For a search: test samples to search on.
    """

    epochs: int | None = None
    lr_factor: float | None = None
    max_drop: float | None = None
    calibrate: int | None = None

    def given(self) -> list[str]:
        """Names of the options that are given."""
        return [one.name for one in fields(self) if getattr(self, one.name) is not None]


@dataclass(frozen=True)
class Made:
    """Another model, made from the one that an upgrade starts with.

    Attributes:
        config: A config that builds and tests the model.
        checkpoint: Its checkpoint, without what only resuming a training needs.
        evidence: What the report says about it, by name.
        text: A section of ``report.md``, or ''.
        files: Names of files in the folder of the upgrade that the config refers to.
    """

    config: Config
    checkpoint: dict[str, Any]
    evidence: dict[str, Any] = field(default_factory=dict)
    text: str = ''
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """Where a step decides what its plan leaves open.

    Attributes:
        upgraded: A runner of the model that earlier steps made, or of the baseline.
        weights: The checkpoint of that model.
        out: Folder of the upgrade.
        measured: Accuracies that are kept until the upgrade is finished.
        samples: How many test samples are evaluated; None means all.
    """

    upgraded: Runner
    weights: Path
    out: Path
    measured: Measured
    samples: int | None = None


@dataclass(frozen=True)
class Step:
    """What an upgrade does with one plan.

    Attributes:
        plan: What to prune.
        at_run_time: Whether pruning happens when the model runs (`attach`, `detach`, and a hook in ``upgraded.py``),
            and not in the weights.
        options: Names of the `Options` that it has.
    """

    plan: Plan
    at_run_time: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """A step with default options."""
        return cls(plan)

    @classmethod
    def parse(cls, plan_type: type[Plan], text: str, options: Options) -> Self:
        """A step from the settings of a command line.

        Args:
            plan_type: Class of the plan.
            text: Settings, such as ``'r=12000,n=2'``.
            options: Those in `options` may be given.

        Raises:
            ValueError: If a setting is not valid.
        """
        return cls.of(plan_type.parse(text))

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.plan.method

    def check_config(self, config: Config) -> None:
        """Raises ValueError if the config does not fit; nothing is built yet."""

    def check_model(self, model: nn.Module, config: Config) -> None:
        """Raises ValueError if the unpruned model does not fit; it has no weights yet, and stays as it is."""

    def check_test(self, runner: Runner) -> None:
        """Raises ValueError if the test set or its evaluator does not fit."""

    def make(self, config: Config, checkpoint: Path, out: Path) -> Made | None:
        """Makes another model; a second call goes on where the first one was interrupted.

        Args:
            config: Config of the model to begin with.
            checkpoint: Its weights.
            out: Folder of the upgrade, for what is needed to go on.

        Returns:
            The new model; None if the model stays what it is.

        Raises:
            ValueError: If the plan does not fit, or `out` holds the work of another one.
        """
        return None

    def settle(self, model: nn.Module, config: Config) -> bool:
        """Estimates anew, in place, what training leaves behind, such as statistics of batch norm.

        Args:
            model: The model that `make` made, with its weights.
            config: Config of the model to begin with.

        Returns:
            Whether the model was changed.
        """
        return False

    def decided(self, scene: Scene) -> Self:
        """The step with a plan that leaves nothing open.

        A step that looks for its plan removes the results of earlier upgrades (`configs.forget_results`) before it
        writes its own, and returns another step.

        Raises:
            ValueError: If no plan is found.
        """
        return self

    def attach(self, model: nn.Module) -> None:
        """Makes a model prune from its next forward pass on; attaching twice is the same as attaching once.

        Raises:
            ValueError: If the plan does not fit the model.
        """
        raise NotImplementedError

    def detach(self, model: nn.Module) -> None:
        """Makes a model what it was before `attach`; nothing if nothing is attached."""
        raise NotImplementedError

    def comparison(self, model: nn.Module, config: Config) -> Callable[..., SideBySide]:
        """What compares baseline and upgraded model: `SideBySide`, or something called with the same arguments.

        Args:
            model: The unpruned model.
            config: Its config.
        """
        return SideBySide

    def title(self) -> str:
        """What the title of the report says about the step."""
        return self.method

    def to_dict(self) -> dict[str, Any]:
        """The plan and what belongs to it, as plain types."""
        return self.plan.to_dict()

    def evidence(self) -> dict[str, Any]:
        """What the report says about the step, by name."""
        return {'plan': self.to_dict()}

    def text(self) -> str:
        """A section of ``report.md`` about the step, or ''."""
        return ''

    def pictures(self, comparison: SideBySide, report: dict[str, Any], folder: Path, count: int) -> list[Path]:
        """Draws further pictures; those that fail are warnings.

        Args:
            comparison: The comparison of both models.
            report: The report.
            folder: Folder for the pictures.
            count: How many samples to draw.

        Returns:
            The files.
        """
        return []
