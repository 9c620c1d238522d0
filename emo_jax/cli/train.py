"""Trains one stage of EMO on all devices.

The config is given by --config NAME_OR_FILE[:STAGE] and --config.key=value. SIGTERM and Ctrl-C save a checkpoint and
end the run with exit status 143 or 130; the same command continues it. A second Ctrl-C ends it without saving. On a
cluster, start the command once on every host (or GPU); launch/ has scripts that do.

Example:
  emo train --config tiny:image --workdir runs/image --config.data.directory=data/synthetic
"""

from __future__ import annotations

import argparse
import sys

from emo_jax.cli.arguments import add_verb
from emo_jax.cli.main import DIVERGED


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the verb `train` to the command line."""
    parser = add_verb(subparsers, "train", __doc__)
    parser.add_argument(
        "-o", "--workdir", "--output", dest="workdir", required=True, metavar="PATH",
        help="folder of the run; an existing run is continued",
    )  # fmt: skip
    parser.add_argument("--coordinator", help="HOST:PORT of process 0, if the cluster does not provide it")
    parser.add_argument("--processes", type=int, help="number of processes of the run")
    parser.add_argument("--process", type=int, help="index of this process, from 0")
    parser.add_argument(
        "--profile", type=int, default=0, metavar="N",
        help="trace N steps after the first few for XProf, into WORKDIR/profile",
    )  # fmt: skip
    parser.add_argument(
        "--log", action="append", metavar="NAME",
        help="tensorboard, csv or wandb, in place of train.log; may be given more than once (default: tensorboard)",
    )  # fmt: skip
    parser.set_defaults(main=main, takes_more=True)


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Runs `emo train`; returns the exit status."""
    import jax

    from emo_jax import cache
    from emo_jax import config as config_lib
    from emo_jax.distributed import processes
    from emo_jax.training.loop import train
    from emo_jax.training.termination import Termination

    config = config_lib.parse(rest)
    if args.log:
        config.train.log = tuple(args.log)
    if args.profile < 0:
        raise ValueError(f"--profile is {args.profile}; expected a number of steps, or 0 for no trace")
    processes.start(args.coordinator, args.processes, args.process)
    processes.check_devices()
    cache.keep_programs()
    termination, measure = Termination(), None
    if config.train.evaluators:
        from emo_jax.evaluation.in_training import Measures

        measure = Measures(config)
    try:
        with termination.listening():
            state = train(config, args.workdir, args.profile, termination, measure)
    except ValueError:
        processes.exit_at_end(2)
        raise
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        processes.exit_at_end(1, wait_for_report=True)
        reason = " ".join(str(error).split())[:300]
        raise OSError(
            f"{processes.name()} cannot continue, perhaps because another process has ended, which JAX reports within "
            f"{processes.HEARTBEAT + 10} s; see its log, and start all of them again ({reason})"
        ) from error
    except FloatingPointError:
        processes.exit_at_end(DIVERGED)
        raise
    except Exception:  # The other processes may still be running and must not wait for this one.
        processes.exit_at_end(1)
        raise
    if int(state.step) >= config.train.steps:
        if processes.is_main():
            print(f"step {int(state.step)} is saved in {args.workdir}; emo export --workdir {args.workdir} -o FOLDER")
        return 0
    if processes.is_main():
        saved = f"step {int(state.step)} is saved" if state.step else "before the first step"
        print(f"emo train: {termination.reason}; {saved}", file=sys.stderr, flush=True)
    return termination.status
