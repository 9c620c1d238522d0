"""The rows of `emo evaluate` during training (`train.evaluators`), with one set of people and programs for a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from emo_jax.evaluation.evaluate import Evaluation, check_lengths, measured_rows, new_evaluation, select_properties

STRANGERS = 16
"""Number of further people among whom a face must be recognised."""


class Measures:
    """Measures the weights of a run; see `training.evaluators.Measure`.

    Args:
        config: the full config.

    Raises:
        ValueError: `train.evaluators` names an unknown property, or "memory", or `train.evaluation` has a number that
            cannot be used.
    """

    def __init__(self, config: ConfigDict) -> None:
        names, on = [row[0] for row in config.train.evaluators], config.train.evaluation
        select_properties(names, long=on.long)
        check_lengths(on.identities, on.seconds, on.long, "train.evaluation.")
        if "memory" in names:
            raise ValueError("train.evaluators names 'memory', which measures exported weights; use emo evaluate")
        self._evaluation: Evaluation | None = None

    def __call__(
        self, config: ConfigDict, params: Mapping[str, Any], names: Sequence[str]
    ) -> dict[str, tuple[float, bool]]:
        """Returns {property: (value, whether lower values are better)}.

        Args:
            config: the full config, of which `train.evaluation` chooses the people.
            params: params tree of the weights.
            names: some of the properties in `train.evaluators`.

        Raises:
            ValueError: `train.evaluation.data` cannot be used.
        """
        if self._evaluation is None:
            on = config.train.evaluation
            people = (on.identities, on.seconds, STRANGERS, on.data or None)
            self._evaluation = new_evaluation(ConfigDict(config), params, *people, long=on.long)
        self._evaluation.use(params, names)
        rows, _ = measured_rows(self._evaluation)
        return {row.property: (float(row.value), row.below) for row in rows if row.property in names}
