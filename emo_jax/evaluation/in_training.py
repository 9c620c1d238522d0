"""The rows of `emo evaluate` during training (`train.evaluators`), with one set of people and programs for a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from emo_jax.evaluation.evaluate import Evaluation, measured_rows, select_properties
from emo_jax.evaluation.heldout import choose_people
from emo_jax.evaluation.probe import load_probe

STRANGERS = 16
"""Number of further people among whom a face must be recognised."""


class Measures:
    """Measures the weights of a run; see `training.evaluators.Measure`.

    Args:
        config: the full config.

    Raises:
        ValueError: `train.evaluators` names an unknown property, or "memory".
    """

    def __init__(self, config: ConfigDict) -> None:
        names = [row[0] for row in config.train.evaluators]
        select_properties(names, long=config.train.evaluation.long)
        if "memory" in names:
            raise ValueError("train.evaluators names 'memory', which measures exported weights; use emo evaluate")
        self._evaluation: Evaluation | None = None

    def __call__(
        self, config: ConfigDict, params: Mapping[str, Any], names: Sequence[str]
    ) -> dict[str, tuple[float, bool]]:
        """Returns {property: (value, whether lower values are better)}.

        Args:
            config: the full config; `train.evaluation` says on whom to measure.
            params: params tree of the weights.
            names: some of the properties in `train.evaluators`.

        Raises:
            ValueError: `train.evaluation.data` cannot be used.
        """
        if self._evaluation is None:
            self._evaluation = _new(config, params)
        self._evaluation.use(params, names)
        rows, _ = measured_rows(self._evaluation)
        return {row.property: (float(row.value), row.below) for row in rows if row.property in names}


def _new(config: ConfigDict, params: Mapping[str, Any]) -> Evaluation:
    on, scale = config.train.evaluation, sum(config.data.crop_scale) / 2
    people = choose_people(on.identities, STRANGERS, on.seconds, config.clip, scale, on.data or None)
    return Evaluation(ConfigDict(config), params, people, load_probe(), long=on.long)
