"""The training loop of `emo train`.

The order of side effects in a step is law: next batch, step, log, validate and evaluate, save (the state and the
position in the data together), sample. A run resumes from its newest checkpoint, so the same command continues a run
that was ended.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from emo_jax.cache import watch_compilation
from emo_jax.data.latents import Layout
from emo_jax.data.pipeline import element_spec, make_iterator, open_sources
from emo_jax.distributed import processes
from emo_jax.distributed.mesh import check_mesh, local_rows, make_mesh, place_batch, replicated, traced_for_mesh
from emo_jax.models import emo as emo_lib
from emo_jax.models.frame_latents import encode_frames
from emo_jax.models.placement import state_sharding
from emo_jax.progress import report_waiting
from emo_jax.training import distillation
from emo_jax.training.encoders import check_encoders
from emo_jax.training.evaluators import Judge, Measure, check_evaluators
from emo_jax.training.flops import step_flops
from emo_jax.training.initial_weights import initial_params
from emo_jax.training.metrics import MetricsWriter, SkipLimit
from emo_jax.training.run_config import write_run_config
from emo_jax.training.samples import SampleWriter
from emo_jax.training.stages import clip_of, get_stage, stage_of
from emo_jax.training.step import TrainState, make_step, new_state
from emo_jax.training.summary import start_lines
from emo_jax.training.termination import Terminated, Termination
from emo_jax.training.validation import Validation
from emo_jax.training.watch import ProfiledStep, next_batch
from emo_jax.training.writers import check_writers
from emo_jax.weights.checkpoint import Checkpoints
from emo_jax.weights.runs import check_workdir


def train(
    config: ConfigDict,
    workdir: str | os.PathLike,
    profile: int = 0,
    termination: Termination | None = None,
    measure: Measure | None = None,
) -> TrainState:
    """Trains the config's stage for `train.steps` steps, or until termination is requested.

    Resumes from the newest checkpoint in `workdir`. Without one it starts from `train.init_from`, the run or weights
    of the previous stage, or from fresh parameters if that is empty.

    Args:
        config: the full config.
        workdir: the run's folder, which gets checkpoints, metrics and samples; may be a bucket.
        profile: the number of steps to trace for XProf.
        termination: ends the run early, after saving; None: nothing does.
        measure: measures generated videos for `train.evaluators`, as `evaluation.in_training.Measures` does.

    Returns:
        The last state, which has been saved.

    Raises:
        ValueError: the config, the data set or the checkpoint do not fit together.
        FloatingPointError: `train.max_skipped` consecutive steps were not finite.
        OSError: a checkpoint cannot be written, or a data worker died.
    """
    config = FrozenConfigDict(config)
    _check(config)
    stage, steps, batch_size = stage_of(config), config.train.steps, config.train.batch_size
    termination = termination or Termination()

    emo = emo_lib.build(config)
    networks = _networks_of_each_size(emo)
    mesh = make_mesh(**config.train.mesh, clips=stage.video)
    check_mesh(mesh, config)
    sources = open_sources(config.data)
    iterator = make_iterator(
        config.data,
        clip_of(config, stage),
        batch_size=batch_size,
        seed=config.train.seed,
        rows=local_rows(mesh, batch_size),
        needs_sound=stage.sound,
        needs_speed=stage.speed,
        sources=sources,
    )
    validation = Validation(config, emo, mesh)
    check_workdir(workdir)
    changes = write_run_config(workdir, ConfigDict(config)) if processes.is_main() else []
    best = dict(keep_best=config.train.validation.keep_best, measure=config.train.validation.best_by)
    checkpoints = Checkpoints(workdir, config.train.keep, config.train.keep_every, **best)
    with report_waiting("initializing", processes.say):
        state = _restore_or_init(config, emo, mesh, checkpoints, iterator)
    check_encoders([source for source, _ in [*sources, *validation.sources]], emo, mesh, state.frozen)

    first = int(state.step)
    with report_waiting("counting FLOPs", processes.say):
        flops = _step_flops(config, emo, state, getattr(sources[0][0], "layout", None))  # equal for all sources
    fields = json.loads(config.to_json_best_effort())
    writer = MetricsWriter(workdir, first, steps, flops, config.train.log, fields)
    judge = Judge(config, validation, writer, measure)
    samples, skips = SampleWriter(config, emo, workdir, writer, validation.sources), SkipLimit(config.train.max_skipped)
    step_fn = ProfiledStep(
        _step_of_each_size(networks, mesh, state), workdir, profile, left=steps - first
    )
    rescale = _latent_rescaling(config, emo, mesh)
    processes.say("\n".join([*start_lines(config, stage, sources, mesh, state), validation.summary, *changes]))

    with contextlib.ExitStack() as cleanup:  # also after an error: a save in progress ends, and so do Grain's workers
        cleanup.callback(_close, iterator)
        cleanup.callback(writer.close)
        cleanup.callback(checkpoints.close)
        cleanup.callback(step_fn.close)
        cleanup.enter_context(watch_compilation(lambda: processes.say("compiling")))
        batch = {}
        for step in range(first + 1, steps + 1):
            waiting_since = time.perf_counter()
            try:
                with termination.interrupting():
                    local_batch = next_batch(iterator, step, config.train.stall_seconds)
            except Terminated:
                if step - 1 > first and checkpoints.latest != step - 1:
                    checkpoints.save(step - 1, rescale(state, batch), iterator, config)
                break
            batch = place_batch(mesh, local_batch)
            waited = time.perf_counter() - waiting_since

            with _explaining_first_step(step == first + 1):
                state, metrics = step_fn(state, batch)
            skips.add(step, metrics)
            checkpoints.check()
            writer.add(metrics, waited)
            termination.nothing_to_save = False

            ends = termination.requested(step)
            last = step == steps or ends
            if step % config.train.log_every == 0 or last:
                writer.write(step)
            score = None if ends else judge(step, state, checkpoints.best)
            if step % config.train.save_every == 0 or last or checkpoints.improves(score):
                state = rescale(state, batch)
                checkpoints.save(step, state, iterator, config, score)
                processes.say(f"checkpoint of step {step}: {checkpoints.path(step)}")
            if ends:
                break
            if config.train.sample_every and step % config.train.sample_every == 0:
                with writer.paused():
                    samples.write(step, state.flat(ema=True))
        skips.check()
    return state


def _explaining_first_step(is_first: bool) -> contextlib.AbstractContextManager[None]:
    """Prints that the first step is traced and compiled, which takes from seconds to many minutes."""
    return report_waiting("tracing and compiling the step", processes.say) if is_first else contextlib.nullcontext()


def _check(config: ConfigDict) -> None:
    for name in ("steps", "log_every", "save_every", "keep", "max_skipped", "motion_patch_size"):
        if config.train[name] < 1:
            raise ValueError(f"train.{name} is {config.train[name]}; expected 1 or more")
    if config.model.dtype == "float16":
        raise ValueError("model.dtype is float16, in which small gradients vanish; train in bfloat16 or float32")
    if not 0 <= config.train.motion_patch_drop < 1:
        raise ValueError(f"train.motion_patch_drop is {config.train.motion_patch_drop}; expected 0 (off) to below 1")
    if not config.train.stall_seconds > 0:
        raise ValueError(f"train.stall_seconds is {config.train.stall_seconds}; expected more than 0")
    if get_stage(config.train.stage).distills:
        distillation.check(config.train.distill, config.diffusion.train_steps)
        if not config.model.guidance_inputs:
            raise ValueError("stage distill needs model.guidance_inputs, through which the student gets the scales")
    check_writers(config.train.log)
    check_evaluators(config.train)


def _step_flops(config: ConfigDict, emo: emo_lib.EMO, state: TrainState, layout: Layout | None) -> int | None:
    """Counts the FLOPs of a step on process 0, which reports them; returns None elsewhere or if no step is left."""
    if not processes.is_main() or int(state.step) >= config.train.steps:
        return None
    spec = element_spec(clip_of(config, get_stage(config.train.stage)), config.train.batch_size, layout)
    return step_flops(emo, config, state, {name: jax.ShapeDtypeStruct(*array) for name, array in spec.items()})


def _restore_or_init(
    config: ConfigDict, emo: emo_lib.EMO, mesh: Mesh, checkpoints: Checkpoints, iterator: Any
) -> TrainState:
    """Restores the newest checkpoint and the position in the data, or returns the state of step 0."""
    shapes = jax.eval_shape(functools.partial(new_state, config), emo.abstract_params())
    placement = state_sharding(mesh, shapes)
    if checkpoints.latest is not None:
        abstract = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placement)
        return checkpoints.restore_newest(abstract, iterator)
    params = initial_params(config, emo)
    return jax.jit(functools.partial(new_state, config), out_shardings=placement)(params)


def _networks_of_each_size(emo: emo_lib.EMO) -> dict[tuple[int, int], emo_lib.EMO]:
    """Returns {(height, width): networks} of the image sizes of the batches."""
    networks = {tuple(emo.config.clip.image_size): emo}
    for size in emo.config.data.get("buckets", ()):
        sized = ConfigDict(emo.config).copy_and_resolve_references()
        sized.clip.image_size = tuple(size)
        try:
            networks[tuple(size)] = emo_lib.build(sized)
        except ValueError as error:
            raise ValueError(f"data.buckets: with {tuple(size)}, {error}") from error
    return networks


def _step_of_each_size(
    networks: Mapping[tuple[int, int], emo_lib.EMO], mesh: Mesh, state: TrainState
) -> Callable[[TrainState, Mapping[str, jax.Array]], Any]:
    """Returns (state, batch) -> (state, metrics), compiled once for each image size."""
    steps = {
        size: processes.compile_together(make_step(emo, emo.config, mesh, state)) for size, emo in networks.items()
    }

    def step(state: TrainState, batch: Mapping[str, jax.Array]) -> Any:
        _, height, width, _ = batch["mask"].shape
        return steps[height, width](state, batch)

    return step


def _latent_rescaling(
    config: ConfigDict, emo: emo_lib.EMO, mesh: Mesh
) -> Callable[[TrainState, Mapping[str, jax.Array]], TrainState]:
    """Returns (state, batch) -> state whose VAE scale gives the batch's latents unit variance (stage vae only).

    Latents of flow are fixed transforms of about unit variance, which keep their scale.
    """
    if config.train.stage != "vae" or emo.uses_flow:
        return lambda state, batch: state

    def measure(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        latents = encode_frames(emo, params, batch["frames"], batch.get("field"))
        return params["vae"]["scaling_factor"] / jnp.std(latents)

    jitted = jax.jit(traced_for_mesh(mesh, measure), out_shardings=replicated(mesh))
    measures = collections.defaultdict(lambda: processes.compile_together(jitted))  # by the size of the images

    def rescale(state: TrainState, batch: Mapping[str, jax.Array]) -> TrainState:
        inputs = {name: batch[name] for name in ("frames", "field") if name in batch}
        scale = measures[batch["frames"].shape](state.params(ema=True), inputs)
        return dataclasses.replace(state, frozen={**state.frozen, "vae/scaling_factor": scale})

    return rescale


def _close(iterator: Any) -> None:
    if hasattr(iterator, "close"):  # Grain's iterator without workers has none
        iterator.close()
