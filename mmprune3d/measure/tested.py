"""The test set of an upgrade: what is checked before hours of work, and how accuracy is measured on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.runner import Runner, autocast

from . import report as reports
from .accuracy import evaluate_and_warn, evenly_spaced, summarize
from .annotations import check_classes, check_dataset, no_accuracy
from .measured import Measured
from .samples import Chosen, batch_size_of, check_samples, data_info, judged_alone, restrict, total_samples

BASELINE = 'baseline'
NO_FIGURES = 'the evaluator gave no figures'


@dataclass(frozen=True)
class TestedSet:
    """A runner's test set, whole or in part.

    Attributes:
        runner: Tests these samples and no others.
        total: Samples that there are.
        note: How a part was chosen, or ''.
        no_accuracy: Why accuracy cannot be measured, or ''.
        env: What figures depend on; gathered early, so that it cannot fail late.
        measured: Where figures of the baseline are kept until the upgrade is finished, or None.
        warnings: What was tested -> sentences about details that decide its figures, see `score_warnings`.
    """

    __test__ = False  # no test of pytest's

    runner: Runner
    total: int
    note: str
    no_accuracy: str
    env: dict[str, Any]
    measured: Measured | None = None
    warnings: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, runner: Runner, samples: int | None = None, measured: Measured | None = None) -> TestedSet:
        """Restricts a runner to a part of its test set, and checks what can be.

        Args:
            runner: Built from the prepared config.
            samples: How many to test, see `samples.choose`; None means all.
            measured: Where figures of the baseline are kept until the upgrade is finished, or None.

        Raises:
            ValueError: If they cannot be tested or judged; the message says what can.
        """
        check_dataset(runner)
        check_classes(runner.model, runner.test_dataloader.dataset)
        choice = restrict(runner, samples)
        check_samples(runner)
        loader = runner.test_dataloader
        reason = no_accuracy(loader.dataset, runner.test_evaluator)
        dtype = str(next(runner.model.parameters()).dtype).removeprefix('torch.')
        dtype += ' under autocast' if _fp16(runner) else ''
        env = reports.environment(batch_size_of(loader), dtype)
        return cls(runner, total_samples(runner), choice.note, reason, env, measured)

    def precision(self) -> AbstractContextManager[None]:
        """That of the test: what is timed and drawn runs under autocast where the test does (``test_cfg.fp16``)."""
        return autocast(enabled=_fp16(self.runner))

    def figures(self, title: str) -> dict[str, float]:
        """Accuracy of the runner's model as it is now; nothing where it cannot be measured."""
        if self.no_accuracy:
            return {}

        def measure() -> dict[str, Any]:
            with judged_alone(self.runner):
                metrics, warnings = evaluate_and_warn(self.runner, title)
            return {'figures': summarize(metrics), 'warnings': warnings}

        made = self.measured.take(title, measure) if self.measured and title == BASELINE else measure()
        self.warnings[title] = made['warnings']
        return made['figures']

    def all_warnings(self) -> list[str]:
        """All warnings, of baseline and upgraded model."""
        return [sentence for sentences in self.warnings.values() for sentence in sentences]

    def to_dict(self, timed: int, figures: Iterable[dict[str, float]]) -> dict[str, Any]:
        """What a report says about samples.

        Args:
            timed: Samples that were timed.
            figures: Accuracies that were measured.
        """
        evaluated = len(self.runner.test_dataloader.dataset)
        reason = self.no_accuracy or ('' if any(figures) else NO_FIGURES)
        said = {'total': self.total, 'chosen': self.note, 'no_accuracy': reason}
        return {
            'evaluated': 0 if reason else evaluated,
            'timed': timed,
            **{name: value for name, value in said.items() if value and (name != 'total' or value != evaluated)},
        }

    def draw(self, count: int, draw: Callable[[int, dict[str, Any], dict[str, Any]], Path]) -> list[Path]:
        """Draws samples spread over the test set; one that fails is a warning with the reason, and costs no other.

        Args:
            count: How many.
            draw: Draws one sample from its number in the test set, a batch of it alone, and its info; returns the
                file.

        Returns:
            The files.
        """
        loader, paths = self.runner.test_dataloader, []
        for index in evenly_spaced(len(loader.dataset), min(count, len(loader.dataset))) if count else ():
            number = loader.dataset.indices[index] if isinstance(loader.dataset, Chosen) else index

            def one(index: int = index, number: int = number) -> Path:
                return draw(number, loader.collate_fn([loader.dataset[index]]), data_info(loader.dataset, index))

            paths += safely(self.runner, f'the picture of sample {number}', one)
        return paths


def _fp16(runner: Runner) -> bool:
    return bool(getattr(runner.test_loop, 'fp16', False))


def safely(runner: Runner, what: str, draw: Callable[[], Path]) -> list[Path]:
    """The file that `draw` wrote; if it fails, none, and a warning with the reason: pictures must not cost figures."""
    try:
        return [draw()]
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        runner.logger.warning(f'{what} could not be drawn: {reason} ({type(error).__name__})')
        return []
