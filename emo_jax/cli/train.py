"""`emo train`: one stage of EMO's training on all devices.

emo train --config configs/tiny.py:video --workdir runs/video --config.data.directory=data/synthetic \\
    --config.train.init_from=runs/image

The order of side effects in a step is: next batch, step, log, save (state and place in the data together), sample.
Started once on every host (or GPU) of a cluster, the processes find each other: see launch/. A SIGTERM saves and ends
the run with exit status 143; the same command goes on from there.
"""

import sys

import jax

from emo_jax import cache
from emo_jax.cli.main import DIVERGED, TERMINATED
from emo_jax.distributed import processes
from emo_jax.training.loop import train


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
