"""`emo train`: one stage of EMO's training on all devices.

emo train --config configs/tiny.py:video --workdir runs/video --config.data.directory=data/synthetic \\
    --config.train.init_from=runs/image

The order of side effects in a step is: next batch, step, log, save (state and place in the data together), sample.
Started once on every host (or GPU) of a cluster, the processes find each other: see launch/. A SIGTERM saves and ends
the run with exit status 143; the same command goes on from there.
"""

import contextlib
import functools
import time

import jax
import jax.numpy as jnp

from emo_jax.data.pipeline import element_spec, make_iterator, open_sources
from emo_jax.distributed import processes
from emo_jax.distributed.mesh import check_mesh, local_rows, make_mesh, place_batch, replicated, traced_for_mesh
from emo_jax.models import emo as emo_lib
from emo_jax.models.placement import state_sharding
from emo_jax.training.encoders import check_encoders
from emo_jax.training.flops import step_flops
from emo_jax.training.initial_weights import _initial_params
from emo_jax.training.metrics import MetricsWriter, SkipLimit
from emo_jax.training.samples import Samples
from emo_jax.training.stages import clip_of, get_stage
from emo_jax.training.step import make_step, new_state
from emo_jax.training.watch import Profiled, next_batch
from emo_jax.weights.checkpoint import Checkpoints
from emo_jax.weights.runs import check_workdir


def train(config, workdir, profile=0):
    """Trains the config's stage up to `train.steps`, or until a SIGTERM, and returns the state then saved.

    Resumes from the newest checkpoint in `workdir`; without one it starts from `train.init_from`, the run or weights
    of the stage before, or from fresh parameters where the stage starts from none. `profile` steps are traced.

    Raises:
        ValueError: a config, data set or checkpoint that does not fit.
        FloatingPointError: `train.max_skipped` steps in a row were not finite.
        OSError: a checkpoint cannot be written, or a data worker was killed.
    """
    stage, steps = get_stage(config.train.stage), config.train.steps
    _check(config)
    emo = emo_lib.build(config)
    mesh = make_mesh(**config.train.mesh, clips=stage.video)
    check_mesh(mesh, config)
    sources = open_sources(config.data)
    iterator = make_iterator(
        config.data,
        clip_of(config, stage),
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        rows=local_rows(mesh, config.train.batch_size),
        needs_sound=stage.sound,
        needs_speed=stage.speed,
        sources=sources,
    )
    sources = [source for source, _ in sources]
    check_workdir(workdir)
    checkpoints = Checkpoints(workdir, config.train.keep, config.train.keep_every)
    state = _start(config, emo, mesh, checkpoints, iterator)
    check_encoders(sources, emo, mesh, {**state.frozen, **state.trained})
    step_fn = processes.together(make_step(emo, config, mesh, state))
    step_fn = Profiled(step_fn, workdir, profile, left=steps - int(state.step))
    layout = getattr(sources[0], "layout", None)  # the same for all
    writer = MetricsWriter(workdir, int(state.step), steps, _flops(config, stage, emo, state, layout))
    samples, skips = Samples(config, emo, workdir, writer), SkipLimit(config.train.max_skipped)
    scaled, ending = _scaler(config, emo, mesh), processes.Ending()

    with contextlib.ExitStack() as leaving:  # interrupted too: what is being saved is saved, and Grain's workers end
        leaving.callback(_close, iterator)
        leaving.callback(writer.close)
        leaving.callback(checkpoints.close)
        leaving.callback(step_fn.close)
        leaving.callback(ending.close)
        ending.listen()
        first, batch = int(state.step), None
        for step in range(first, steps):
            waited = time.perf_counter()
            try:
                with ending.waiting():
                    made = next_batch(iterator, step + 1, config.train.stall_seconds)
            except processes.Told:
                if step > first and checkpoints.latest != step:
                    checkpoints.save(step, scaled(state, batch), iterator, config)
                break
            batch = place_batch(mesh, made)
            waited = time.perf_counter() - waited
            state, metrics = step_fn(state, batch)
            done = step + 1
            skips.add(done, metrics)
            checkpoints.check()
            writer.add(metrics, waited)
            told = ending.told(done)
            if done % config.train.log_every == 0 or done == steps or told:
                writer.write(done)
            if done % config.train.save_every == 0 or done == steps or told:
                state = scaled(state, batch)
                checkpoints.save(done, state, iterator, config)
            if told:
                break
            if config.train.sample_every and done % config.train.sample_every == 0:
                with writer.paused():
                    samples.write(done, state.flat(ema=True))
        skips.check()
    return state


def _check(config):
    for name in ("steps", "log_every", "save_every", "keep", "max_skipped"):
        if config.train[name] < 1:
            raise ValueError(f"train.{name} is {config.train[name]}; expected 1 or more")
    if config.model.dtype == "float16":
        raise ValueError("model.dtype is float16, whose small gradients vanish; train in bfloat16 or float32")
    if not config.train.stall_seconds > 0:
        raise ValueError(f"train.stall_seconds is {config.train.stall_seconds}; expected more than 0")


def _flops(config, stage, emo, state, layout):
    """FLOPs of a step, counted on the process that tells them; None on a run that has no step to do."""
    if not processes.first() or int(state.step) >= config.train.steps:
        return None
    spec = element_spec(clip_of(config, stage), config.train.batch_size, layout)
    return step_flops(emo, config, state, {name: jax.ShapeDtypeStruct(*array) for name, array in spec.items()})


def _start(config, emo, mesh, checkpoints, iterator):
    """Resumes if there is a checkpoint, else starts from init_from, else from fresh parameters."""
    shapes = jax.eval_shape(functools.partial(new_state, config), emo.abstract_params())
    placed = state_sharding(mesh, shapes)
    if checkpoints.latest is not None:
        abstract = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)
        return checkpoints.restore_newest(abstract, iterator)
    params = _initial_params(config, emo)
    return jax.jit(functools.partial(new_state, config), out_shardings=placed)(params)


def _scaler(config, emo, mesh):
    """(state, batch) -> the state with the scale that brings the latents of a VAE in training to unit variance."""
    if config.train.stage != "vae":
        return lambda state, batch: state

    def scale_of(params, frames):
        return params["vae"]["scaling_factor"] / jnp.std(emo.encode(params, frames))

    scale_of = processes.together(jax.jit(traced_for_mesh(mesh, scale_of), out_shardings=replicated(mesh)))

    def scaled(state, batch):
        scale = scale_of(state.params(ema=True), batch["frames"])
        return state.replace(frozen={**state.frozen, "vae/scaling_factor": scale})

    return scaled


def _close(iterator):
    if hasattr(iterator, "close"):
        iterator.close()
