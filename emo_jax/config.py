"""Configs on the command line: `--config FILE[:arg]` and `--config.key=value`, by ml_collections."""

import json
import pathlib

from absl import flags
from ml_collections import ConfigDict, config_flags


def parse(arguments):
    """The ConfigDict of command line arguments such as ['--config=configs/tiny.py:video', '--config.train.steps=10'].

    Raises:
        ValueError: no such file, one that raises an error, an unknown key, or a value of another type.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True, sys_argv=["emo", *arguments])
    files = [a.split("=", 1)[1] for a in arguments if a.startswith("--config=")]
    files += [b for a, b in zip(arguments, arguments[1:], strict=False) if a == "--config"]
    if not files:
        raise ValueError("no config given; add --config FILE[:arg], for example --config configs/tiny.py:video")
    path = files[-1].rsplit(":", 1)[0] if not pathlib.Path(files[-1]).exists() else files[-1]
    if not pathlib.Path(path).is_file():
        raise ValueError(f"config file {path!r} does not exist; configs/ holds those of this project")
    try:
        rest = values(["emo", *arguments])[1:]
        values.config.lock()  # as it is; what stands for a config that could not open a file tells it only now
    except Exception as error:  # a config file is a program
        raise ValueError(f"{files[-1]}: {_told(error)}") from error
    if rest:
        raise ValueError(f"unknown argument {rest[0]!r}; overrides are written --config.key=value")
    return values.config


def _told(error):
    """What went wrong in one line. Around an error of the config file itself, ml_collections puts its traceback."""
    while (inner := error.__cause__ or error.__context__) and any(text in str(error) for text in _AROUND):
        error = inner
    plain = isinstance(error, (flags.Error, ValueError, AttributeError, KeyError, TypeError))
    return ("" if plain else f"{type(error).__name__}: ") + " ".join(str(error).split())


_AROUND = ("Traceback (most recent call last)", "Configuration is not available")


def to_json(config):
    """A config as JSON text."""
    return json.dumps(json.loads(config.to_json_best_effort()), indent=1)


def from_json(text):
    """The config of JSON text, locked: unknown keys are errors."""
    return ConfigDict(json.loads(text)).lock()
