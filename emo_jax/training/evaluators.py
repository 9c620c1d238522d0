"""What a run is judged by: the validation loss, and measures of generated videos (`train.evaluators`)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from emo_jax.distributed import processes
from emo_jax.progress import report_waiting
from emo_jax.training.metrics import MetricsWriter
from emo_jax.training.samples import failure_is_a_warning, placed_params
from emo_jax.training.step import TrainState
from emo_jax.training.validation import Validation, is_due

Measure = Callable[[ConfigDict, Mapping[str, Any], Sequence[str]], Mapping[str, tuple[float, bool]]]
"""(full config, params tree, properties) -> {property: (value, whether lower values are better)}."""


class Judge:
    """Validates and evaluates during training, writes the results, and returns the score of the weights.

    Args:
        config: the full config.
        validation: measures the validation loss.
        writer: takes the scalars.
        measure: measures generated videos; required if `train.evaluators` has rows.

    Raises:
        ValueError: a row of `train.evaluators` that cannot be used, or an unknown `train.validation.best_by`.
    """

    def __init__(
        self, config: ConfigDict, validation: Validation, writer: MetricsWriter, measure: Measure | None = None
    ) -> None:
        self._config, self._validation, self._writer, self._measure = config, validation, writer, measure
        self._rows, self._best_by = check_evaluators(config.train), config.train.validation.best_by
        self._ranks_losses = config.train.validation.keep_best and self._best_by == "loss"
        if self._rows and measure is None:
            raise ValueError("train.evaluators has rows, but nothing measures them; pass `measure` to train()")

    def __call__(self, step: int, state: TrainState, best: tuple[int, float] | None) -> float | None:
        """Runs the measurements that are due after a step. All processes must call this method.

        Args:
            step: the step.
            state: the state whose averaged weights are measured.
            best: (step, score) of the best checkpoint so far; None if there is none.

        Returns:
            The score by which checkpoints are compared, of which lower values are better; None if it was not measured.
        """
        scores = {}
        if self._validation.due(step):
            with self._writer.paused(), report_waiting("validating", processes.say, after=10):
                measured = self._validation(state)
            self._writer.validation(measured, step, best, self._ranks_losses)
            scores["loss"] = measured["loss"]
        names = [name for name, every in self._rows if is_due(step, every, self._config.train.steps)]
        if names:
            with self._writer.paused():
                found = self._evaluate(step, names, state)
            self._writer.evaluation({name: value for name, (value, _) in found.items()}, step)
            scores |= {name: value if below else -value for name, (value, below) in found.items()}
        return scores.get(self._best_by)

    def _evaluate(self, step: int, names: list[str], state: TrainState) -> dict[str, tuple[float, bool]]:
        """Measures on process 0, while the others wait; a failure is a warning, and training continues."""
        fetched = processes.fetch(state.flat(ema=True))  # parameters may be sharded; None except on process 0
        found: Mapping[str, tuple[float, bool]] = {}
        if fetched is not None and self._measure is not None:
            with failure_is_a_warning(f"no evaluation at step {step}"):
                params = placed_params(fetched, self._config.model.dtype)
                found = self._measure(self._config, params, names)
        pairs = processes.from_main([found.get(name, (math.nan, False)) for name in names])
        return {name: (value, bool(below)) for name, (value, below) in zip(names, pairs, strict=True)}


def check_evaluators(train: ConfigDict) -> list[tuple[str, int]]:
    """Returns the rows of `train.evaluators`, (property, every N steps).

    Raises:
        ValueError: a row is not of this form, or `train.validation.best_by` is not among the rows.
    """
    rows = []
    for row in train.evaluators:
        if len(row) != 2 or not isinstance(row[0], str) or not isinstance(row[1], int) or row[1] < 1:
            raise ValueError(f"train.evaluators has {tuple(row)}; expected (property, every N steps), N at least 1")
        rows.append((row[0], row[1]))
    names, best_by = [name for name, _ in rows], train.validation.best_by
    if len(set(names)) < len(names):
        raise ValueError(f"train.evaluators names a property twice: {', '.join(names)}")
    if best_by != "loss" and best_by not in names:
        raise ValueError(f"train.validation.best_by is {best_by!r}; expected {' or '.join(['loss', *names])}")
    return rows
