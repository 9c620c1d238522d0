"""The `emo` command: parses the command line, runs a verb, and returns the exit status."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

from emo_jax import __version__, tpu
from emo_jax.tables import format_table

GROUPS = {
    "Make videos": {
        "generate": "make a talking video of a portrait and a voice",
        "demo": "make a talking video of the bundled portrait and voice",
        "app": "open a web page that makes videos",
    },
    "Train": {
        "prepare": "write records to train on",
        "train": "train one stage",
        "sweep": "train and evaluate variants, and compare them",
        "plan": "compute memory and speed on a TPU slice, without the slice",
    },
    "Measure": {
        "evaluate": "measure a model on held-out people and voices",
        "bench": "measure the input pipeline, attention or a step on this machine",
    },
    "Weights": {
        "convert": "convert weights of Stable Diffusion, AnimateDiff and wav2vec 2.0 to a checkpoint, and back",
        "export": "write the averaged weights of a training run for use and sharing",
        "models": "list and download the models that find faces",
    },
}
"""The verbs, as `emo --help` groups them. Module emo_jax.cli.VERB has `add_parser(subparsers)`, which sets `main`."""
VERBS = {verb: text for group in GROUPS.values() for verb, text in group.items()}
"""All verbs and their help texts."""
TERMINATED = 143
"""Exit status after a SIGTERM; schedulers start such a command again. A verb's main may return it as well."""
DIVERGED = 3
"""Exit status of a training run that diverged, and would diverge again from its newest checkpoint."""
_NO_MEMORY = (
    "the device's memory is not enough ({}); compute less at a time: smaller --clips or --size in emo generate, "
    "--identities in emo evaluate, --batch in emo prepare latents; smaller train.batch_size, larger train.accumulate "
    "or model.unet.remat=blocks in emo train"
)


class _StoreOnce(argparse.Action):
    """Stores the value of an option that may be given once."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None):
        given = namespace.__dict__.setdefault("given_options", set())
        if option is not None and self.dest in given:
            parser.error(f"{option} is given twice")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """Raises ValueError instead of exiting, and for an option that is given twice."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.register("action", None, _StoreOnce)
        self.register("action", "store", _StoreOnce)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


class _Terminated(BaseException):
    """A SIGTERM, raised as an exception so that cleanup code runs and no partial file stays."""


def main(argv: list[str] | None = None) -> int:
    """Runs `emo VERB ...`.

    Args:
        argv: the arguments after `emo`; None: those of the process.

    Returns:
        The exit status: 0, 2 (bad input, one line on stderr), 1, TERMINATED, DIVERGED, or 130 after Ctrl-C.
    """
    tpu.describe_no_slice()
    with _sigterm_as_exception():
        return _run(sys.argv[1:] if argv is None else argv)


def make_parser(verb: str | None) -> argparse.ArgumentParser:
    """Returns the parser of the command line.

    Args:
        verb: the verb whose arguments to add, and whose module to import; None: add the names of all verbs.
    """
    groups = (f"{title}:\n{format_table(list(verbs.items()), indent='  ')}" for title, verbs in GROUPS.items())
    parser = _Parser(
        "emo",
        description="\n\n".join(["Makes talking videos of a portrait and a voice (EMO, in JAX).", *groups]),
        epilog="emo VERB --help lists a verb's options.\n\nExample:\n  emo demo -o out/demo.mp4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"emo_jax {__version__}")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB", help="one of the above")
    if verb:
        importlib.import_module(f"emo_jax.cli.{verb}").add_parser(subparsers)
        return parser
    for name in VERBS:
        subparsers.add_parser(name)
    return parser


def _run(argv: list[str]) -> int:
    verb = argv[0] if argv and argv[0] in VERBS else None
    name = f"emo {verb}" if verb else "emo"
    try:
        args, rest = make_parser(verb).parse_known_args(argv)
        _check_output(args)
        if getattr(args, "takes_config", False):
            from emo_jax import config

            default = getattr(args, "default_config", None)
            if rest and default and not any(text.split("=")[0] == "--config" for text in rest):
                rest = [f"--config={default}", *rest]
            status = args.main(args, config.parse(rest) if rest else None)
        elif getattr(args, "takes_more", False):
            status = args.main(args, rest)
        elif rest:
            raise ValueError(f"unknown argument {rest[0]!r}; see {name} --help")
        else:
            status = args.main(args)
    except ValueError as error:
        return _fail(name, error, 2)
    except OSError as error:  # for example a full disk
        return _fail(name, error, 1)
    except FloatingPointError as error:
        return _fail(name, error, DIVERGED if verb == "train" else 1)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # XLA's status code of a failed allocation
            raise
        return _fail(name, _NO_MEMORY.format(" ".join(str(error).split())[:200]), 1)
    except KeyboardInterrupt:
        return _fail(name, "interrupted", 130)
    except _Terminated:
        return _fail(name, "terminated", TERMINATED)
    return status or 0


def _check_output(args: argparse.Namespace) -> None:
    path = getattr(args, "output", None) or ""
    if "://" in path and not getattr(args, "live", False):
        raise ValueError(f"--output is {path}; expected a path of this machine (only emo train writes to buckets)")


@contextlib.contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    """Raises _Terminated in the block on a SIGTERM."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only.
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # A second one must not interrupt the cleanup.
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _fail(name: str, error: object, status: int) -> int:
    print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
    return status
