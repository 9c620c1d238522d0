"""The validation loss: the loss of the averaged weights on held-out records, without random draws.

The clips, their timesteps and their noise are the same at every call and in every run with the same `data`, `clip` and
`train.validation`, so that two losses differ by the weights alone. No condition is dropped and no noise is added to
motion frames. Timesteps are spread evenly, one for each clip.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int
from ml_collections import ConfigDict

from emo_jax.data.pipeline import make_iterator
from emo_jax.data.sources import Source, open_held_out
from emo_jax.distributed import processes
from emo_jax.distributed.mesh import batch_sharding, local_rows, place_batch, replicated, traced_for_mesh
from emo_jax.models.emo import EMO
from emo_jax.models.placement import state_sharding
from emo_jax.training import vae_losses
from emo_jax.training.stages import clip_of, stage_of
from emo_jax.training.step import TrainState, make_denoising_loss, nested

_GOLDEN = (math.sqrt(5) - 1) / 2


class Validation:
    """Measures the validation loss during training.

    Args:
        config: the full config.
        emo: the networks.
        mesh: the mesh of the run.

    Attributes:
        sources: the held-out (source, weight) pairs; empty if there is no validation.
        reason: why there is none; "" otherwise.

    Raises:
        ValueError: `train.validation` is out of range, or its directory cannot be read or has too few records.
    """

    def __init__(self, config: ConfigDict, emo: EMO, mesh: Mesh) -> None:
        self._config, self._emo, self._mesh = config, emo, mesh
        self._validation = config.train.validation
        self._program: Callable[..., Any] | None = None
        _check(self._validation)
        self.sources: list[tuple[Source, float]] = []
        self.reason = "" if self._validation.every else "train.validation.every is 0"
        if self.reason:
            return
        try:
            self.sources = open_held_out(config.data, self._validation.directory, self._validation.split)
            self._batches = self._read()
        except ValueError as error:
            if self._validation.directory:  # the user has asked for these records
                raise
            self.sources, self.reason = [], " ".join(str(error).split())

    @property
    def summary(self) -> str:
        """A line about the records and the frequency of the validation, or why there is none."""
        if not self.sources:
            return f"no validation: {self.reason}"
        places = "; ".join(f"{source.directory}, split {source.split}" for source, _ in self.sources)
        size = len(self._batches) * self._config.train.batch_size
        return f"validation: {size} clips of {places}, every {self._validation.every} steps"

    def due(self, step: int) -> bool:
        """Returns whether to validate after a step, see `is_due`."""
        return bool(self.sources) and is_due(step, self._validation.every, self._config.train.steps)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Returns the loss and its further metrics {name: value}; all processes must call it.

        Args:
            state: the state whose averaged weights are measured.
        """
        if self._program is None:
            self._program = self._compile(state)
        totals: dict[str, np.ndarray] = {}
        for number, batch in enumerate(self._batches):
            placed = place_batch(self._mesh, batch)
            for name, value in jax.device_get(self._program(state.ema, state.frozen, placed, number)).items():
                totals[name] = totals.get(name, np.float64(0)) + np.asarray(value, np.float64)
        # A pair is (sum, count) over the samples of a third of the timesteps.
        count = len(self._batches)
        pairs = {name: total if total.ndim else np.array([total, count]) for name, total in totals.items()}
        return {name: float(total / count) for name, (total, count) in pairs.items() if count}

    def _read(self) -> list[dict[str, np.ndarray]]:
        """Reads this process' rows of the batches, each with its samples' `timesteps`."""
        config, stage, size = self._config, stage_of(self._config), self._config.train.batch_size
        count = -(-self._validation.clips // size)
        data = ConfigDict(config.data).copy_and_resolve_references()
        data.update(flip_prob=0.0, color_jitter=0.0, num_workers=0, without_sound="none", buckets=())
        rows = local_rows(self._mesh, size)
        iterator = make_iterator(
            data,
            clip_of(config, stage),
            batch_size=size,
            seed=0,
            rows=rows,
            needs_sound=stage.sound,
            needs_speed=stage.speed,
            sources=self.sources,
            repeats=True,
        )
        steps = spread_timesteps(count * size, config.diffusion.train_steps).reshape(count, size)[:, rows]
        return [batch | {"timesteps": t} for batch, t in zip(itertools.islice(iterator, count), steps, strict=True)]

    def _compile(self, state: TrainState) -> Callable[..., Any]:
        """Returns (ema, frozen, batch, number of the batch) -> metrics, which all processes compile together."""
        placement, loss = state_sharding(self._mesh, state), self._loss()

        def measure(ema: Any, frozen: Any, batch: Mapping[str, jax.Array], number: jax.Array) -> Any:
            key = jax.random.fold_in(jax.random.key(0), number)
            inputs = {name: a for name, a in batch.items() if name != "timesteps"}
            value, metrics = loss(nested(ema, frozen), inputs, key, batch["timesteps"])
            return {"loss": value, **metrics}

        jitted = jax.jit(
            traced_for_mesh(self._mesh, measure),
            in_shardings=(placement.ema, placement.frozen, batch_sharding(self._mesh), replicated(self._mesh)),
            out_shardings=replicated(self._mesh),
        )
        return processes.compile_together(jitted)

    def _loss(self) -> Callable[..., Any]:
        """Returns loss(params, batch, key, timesteps) -> (loss, metrics), without dropped conditions."""
        config = self._config
        train = ConfigDict(config.train).copy_and_resolve_references()
        train.update(drop_reference=0.0, drop_audio=0.0, drop_both=0.0, motion_noise=0.0, motion_patch_drop=0.0)
        if train.stage == "vae":
            return lambda params, batch, key, _: vae_losses.vae_loss(self._emo, train, params, batch, key)
        return make_denoising_loss(self._emo, config, train)


def is_due(step: int, every: int, steps: int) -> bool:
    """Returns whether a measurement is due after a step: at multiples of `every`, and at the end of a longer run."""
    return step % every == 0 or step == steps > every


def spread_timesteps(count: int, train_steps: int) -> Int[np.ndarray, " count"]:
    """Returns timesteps that cover the schedule evenly, as any consecutive ones of them do (golden-ratio sequence)."""
    return np.floor(np.arange(1, count + 1) * _GOLDEN % 1 * train_steps).astype(np.int32)


def _check(validation: ConfigDict) -> None:
    for name, least in (("every", 0), ("clips", 1)):
        if validation[name] < least:
            raise ValueError(f"train.validation.{name} is {validation[name]}; expected {least} or more")
