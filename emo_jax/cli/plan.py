"""`emo plan`: whether a program fits the chips of a TPU slice, and how fast it can be there, before it is paid for.

emo plan --config configs/base.py:video --topology v5e:4x4 --config.train.mesh.fsdp=16 --config.train.mesh.data=1 \\
    --config.train.batch_size=16

compiles the training step of the config's stage for that slice, by the compiler of its chips (extra: tpu), without a
chip and without a number of the model in memory; `--program denoise` one guided denoising step of `emo generate`.
With `--composed` the step is not compiled in one, which takes 20 minutes and 20 GB at full size, but every kind of its
blocks once, and what they need is added up. What shapes alone tell is printed within a minute, and is all with
`--no-compile`. What was compiled once is read from the cache. Exit status 1: it does not fit.
"""

import json

import jax

from emo_jax.files import write_text
from emo_jax.planning.plan import PROGRAMS, compiled, count
from emo_jax.planning.report import compiled_lines, counted_lines
from emo_jax.planning.topologies import find_devices


def add_parser(subparsers):
    """Adds the verb `plan` to the command line."""
    parser = subparsers.add_parser(
        "plan",
        help="memory and speed on a TPU slice, without one",
        description=__doc__,
        epilog="also takes --config FILE[:arg] and --config.key=value",
    )
    parser.add_argument("--topology", required=True, help="v4, v5e, v5p or v6e and its shape, such as v5p:4x4x4; "
                        "cpu:N; gpu:N, where N GPUs are")  # fmt: skip
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="TPU slices of that topology, joined by the "
                        "network of the data center, as train.mesh.dcn_data has them (default 1)")  # fmt: skip
    parser.add_argument("--program", choices=PROGRAMS, default="step", help="(default %(default)s)")
    parser.add_argument("--composed", action="store_true", help="compile each kind of block once, and add up what they "
                        "need: a step in minutes, less exactly")  # fmt: skip
    parser.add_argument("--no-compile", action="store_true", help="only what is counted from shapes")
    parser.add_argument("--output", help="JSON file to write, too")
    parser.set_defaults(main=main, takes_config=True)


def main(args, config):
    """Runs `emo plan`; returns the exit status."""
    if args.slices > 1 and args.program != "step":
        raise ValueError(f"--slices is {args.slices}; one slice alone runs the program {args.program}")
    if args.composed and (args.program != "step" or config.train.stage == "vae"):
        what = f"the program {args.program}" if args.program != "step" else "stage vae"
        raise ValueError(f"--composed is for the step of a stage with UNets; leave it out for {what}")
    jax.config.update("jax_traceback_in_locations_limit", 0)  # or a kernel's text, and its key, tell where EMO lies
    devices = find_devices(args.topology, args.slices)
    found, program = count(config, devices, args.topology, args.program)
    print("\n".join(counted_lines(found)), flush=True)
    if not args.no_compile and found["fits"] is None:
        found = compiled(found, program, devices[0], args.composed)
        print("\n".join(compiled_lines(found)))
    if args.output:
        write_text(args.output, json.dumps(found, indent=1) + "\n")
    return 0 if found["fits"] is not False else 1
