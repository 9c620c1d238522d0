"""`emo train`: one stage of EMO's training on all devices.

emo train --config configs/tiny.py:video --workdir runs/video --config.data.directory=data/synthetic \
    --config.train.init_from=runs/image

The order of side effects in a step is: next batch, step, log, save (state and place in the data together), sample.
Started once on every host (or GPU) of a cluster, the processes find each other: see launch/. A SIGTERM saves and ends
the run with exit status 143; the same command goes on from there.
"""

import contextlib
import functools
import sys
import time

import jax
import jax.numpy as jnp

from emo_jax import cache, sharding
from emo_jax.cli import DIVERGED, TERMINATED
from emo_jax.data.pipeline import element_spec, make_iterator, open_sources
from emo_jax.latents import check_encoders
from emo_jax.models import emo as emo_lib
from emo_jax.training import processes
from emo_jax.training.checkpoint import Checkpoints, check_workdir
from emo_jax.training.flops import step_flops
from emo_jax.training.metrics import MetricsWriter, SkipLimit
from emo_jax.training.samples import Samples
from emo_jax.training.stages import clip_of, get_stage, stages_before
from emo_jax.training.step import make_step, new_state
from emo_jax.training.watch import Profiled, next_batch
from emo_jax.weights.store import adopt, load_weights, nest


def add_parser(subparsers):
    """Adds the verb `train` to the command line."""
    parser = subparsers.add_parser(
        "train",
        help="train one stage",
        description=__doc__,
        epilog="also takes --config FILE[:arg] and --config.key=value",
    )
    parser.add_argument("--workdir", required=True, help="folder of the run; a run that is there already goes on")
    parser.add_argument("--coordinator", help="HOST:PORT of process 0, where no cluster tells it")
    parser.add_argument("--processes", type=int, help="how many processes the run has")
    parser.add_argument("--process", type=int, help="which of them this is, from 0")
    parser.add_argument("--profile", type=int, default=0, metavar="N",
                        help="trace N steps after the first few for XProf, into WORKDIR/profile")  # fmt: skip
    parser.set_defaults(main=main, takes_config=True)


def main(args, config):
    """Runs `emo train`; returns the exit status."""
    if args.profile < 0:
        raise ValueError(f"--profile is {args.profile}; expected a number of steps, or 0 for no trace")
    processes.start(args.coordinator, args.processes, args.process)
    processes.check_devices()
    cache.keep_programs()
    try:
        state = train(config, args.workdir, args.profile)
    except ValueError:
        processes.leave(2)
        raise
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        processes.leave(1, blameless=True)
        told = " ".join(str(error).split())[:300]
        raise OSError(
            f"{processes.name()} cannot go on, perhaps because another has ended, which JAX names within "
            f"{processes.HEARTBEAT + 10} s; see its log, and start all of them again ({told})"
        ) from error
    except FloatingPointError:
        processes.leave(DIVERGED)
        raise
    except Exception:  # of this process alone, perhaps
        processes.leave(1)
        raise
    if int(state.step) >= config.train.steps:
        return 0
    if processes.first():
        saved = f"step {int(state.step)} is saved" if state.step else "before the first step"
        print(f"emo train: terminated; {saved}", file=sys.stderr, flush=True)
    return TERMINATED


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
    mesh = sharding.make_mesh(**config.train.mesh, clips=stage.video)
    sharding.check(mesh, config)
    sources = open_sources(config.data)
    iterator = make_iterator(
        config.data,
        clip_of(config, stage),
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        rows=sharding.rows(mesh, config.train.batch_size),
        needs_sound=stage.sound,
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
            batch = sharding.place_batch(mesh, made)
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
    placed = sharding.state_sharding(mesh, shapes)
    if checkpoints.latest is not None:
        abstract = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)
        return checkpoints.restore_newest(abstract, iterator)
    params = _initial_params(config, emo)
    return jax.jit(functools.partial(new_state, config), out_shardings=placed)(params)


def _initial_params(config, emo):
    """Fresh parameters, and in their place what `train.init_from` holds.

    What the stages before have trained must all be there. Other parts may be of another kind or switched off there or
    here, as in an ablation: then they start fresh, which is told.
    """
    stage, origin, key = config.train.stage, config.train.init_from, jax.random.key(config.train.seed)
    done = stages_before(stage)
    if not origin:
        if done:
            _warn(f"stage {stage} starts from nothing; it is meant to start from stage {done[-1]} "
                  "(--config.train.init_from=RUN)")  # fmt: skip
        return emo.init(key)
    found_config, found = load_weights(origin)
    if done and done[-1] not in (found_config.train.stage, *stages_before(found_config.train.stage)):
        _warn(f"stage {stage} is meant to start from stage {done[-1]}, but {origin} is of {found_config.train.stage}")
    flat, fresh = adopt(emo, found, [part for name in done for part in get_stage(name).trains], key, origin)
    if fresh:
        _warn(f"{len(fresh)} parameters start fresh, as {origin} has none of their shape: {fresh[0]}, ...")
    return nest(emo, flat, origin)


def _warn(text):
    if processes.first():
        print(f"warning: {text}", file=sys.stderr, flush=True)


def _scaler(config, emo, mesh):
    """(state, batch) -> the state with the scale that brings the latents of a VAE in training to unit variance."""
    if config.train.stage != "vae":
        return lambda state, batch: state

    def scale_of(params, frames):
        return params["vae"]["scaling_factor"] / jnp.std(emo.encode(params, frames))

    scale_of = processes.together(jax.jit(sharding.over(mesh, scale_of), out_shardings=sharding.replicated(mesh)))

    def scaled(state, batch):
        scale = scale_of(state.params(ema=True), batch["frames"])
        return state.replace(frozen={**state.frozen, "vae/scaling_factor": scale})

    return scaled


def _close(iterator):
    if hasattr(iterator, "close"):
        iterator.close()
