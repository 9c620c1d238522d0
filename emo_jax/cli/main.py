"""The `emo` command: every verb is a subcommand."""

import argparse
import contextlib
import importlib
import signal
import sys
import threading

VERBS = {
    "generate": "make a talking video of a portrait and a voice",
    "demo": "generate with the portrait and the voice that come with the package",
    "prepare": "write records to train on",
    "train": "train one stage",
    "plan": "memory and speed of training on a TPU slice, without one",
    "evaluate": "measure a model on held-out people and voices",
    "convert": "weights of Stable Diffusion and AnimateDiff to a checkpoint, and back",
    "export": "write a training run's averaged weights for use",
    "sweep": "train and evaluate variants, and compare them",
    "bench": "measure the input pipeline, attention or a step on this machine",
}
"""Module emo_jax.cli.VERB has add_parser(subparsers) and main(args); only the one asked for is imported."""
TERMINATED = 143
"""Exit status after a SIGTERM, which schedulers take for "to be started again"; a verb's main may return it itself."""
DIVERGED = 3
"""Exit status of a training run that diverged: from its newest checkpoint it would do so again."""
_NO_MEMORY = (
    "the device's memory is not enough ({}); take less at a time: smaller --clips or --size in emo generate, "
    "--identities in emo evaluate, --batch in emo prepare latents; smaller train.batch_size, larger train.accumulate "
    "or model.unet.remat=blocks in emo train"
)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(f"{message}; {self.prog} --help tells more")


class _Terminated(BaseException):
    """A SIGTERM, raised so that what a verb does on its way out is done: no partial file stays."""


def main(argv=None):
    """Runs `emo VERB ...`; returns the exit status: 0, 2 (bad input, one line on stderr), 1 or one of the above."""
    with _terminable():
        return _run(sys.argv[1:] if argv is None else argv)


def _run(argv):
    verb = argv[0] if argv and argv[0] in VERBS else None
    name = f"emo {verb}" if verb else "emo"
    try:
        args, rest = _parser(verb).parse_known_args(argv)
        _check_outputs(args)
        takes_config = getattr(args, "takes_config", False)
        if takes_config == "overrides":
            status = args.main(args, _overrides(rest))
        elif takes_config:
            from emo_jax import config

            status = args.main(args, config.parse(rest) if rest or takes_config != "optional" else None)
        elif rest:
            raise ValueError(f"unknown argument {rest[0]!r}; {name} --help lists those there are")
        else:
            status = args.main(args)
    except ValueError as error:
        return _fail(name, error, 2)
    except OSError as error:  # a full disk
        return _fail(name, error, 1)
    except FloatingPointError as error:
        return _fail(name, error, DIVERGED if verb == "train" else 1)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # JAX's word for it
            raise
        return _fail(name, _NO_MEMORY.format(" ".join(str(error).split())[:200]), 1)
    except KeyboardInterrupt:
        return _fail(name, "interrupted", 130)
    except _Terminated:
        return _fail(name, "terminated", TERMINATED)
    return status or 0


def _check_outputs(args):
    for name in ("output", "out"):
        path = getattr(args, name, None) or ""
        if "://" in path:
            raise ValueError(f"--{name} {path} is no path of this machine; only emo train writes to buckets, --workdir")


def _overrides(rest):
    odd = [text for text in rest if not (text.startswith("--config.") and "=" in text)]
    if odd:
        raise ValueError(f"unknown argument {odd[0]!r}; overrides are written --config.key=value")
    return rest


@contextlib.contextmanager
def _terminable():
    """Within it, a SIGTERM raises _Terminated."""
    if threading.current_thread() is not threading.main_thread():  # which alone receives signals
        yield
        return

    def terminate(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would interrupt the cleaning up
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _parser(verb):
    parser = _Parser("emo", description="A portrait and a voice make a talking video (EMO, in JAX).")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    if verb:
        importlib.import_module(f"emo_jax.cli.{verb}").add_parser(subparsers)
        return parser
    for other, text in VERBS.items():
        subparsers.add_parser(other, help=text)
    return parser


def _fail(name, error, status):
    print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
    return status
