"""Configs from the command line (`--config NAME_OR_FILE[:ARG]`, `--config.key=value`) and from JSON."""

from __future__ import annotations

import ast
import difflib
import importlib.resources
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags


def parse(arguments: list[str], default: ConfigDict | None = None) -> ConfigDict:
    """Builds a config from command-line arguments.

    Args:
        arguments: for example `["--config=tiny:video", "--config.train.steps=10"]`. A config is named by the path of a
            Python file, or by the name of a config of `emo_jax.configs`; `get_config` receives what follows the colon.
        default: the config that overrides apply to if there is no `--config`; None if one is required.

    Returns:
        The config, locked: it accepts no new fields.

    Raises:
        ValueError: an unknown config, a config file that fails, an unknown field, or a value of another type.
    """
    arguments = _join_values(arguments)
    given = [text.removeprefix("--config=") for text in arguments if text.startswith("--config=")]
    if len(given) > 1:
        raise ValueError(f"--config is given {len(given)} times; expected one config")
    if not given and default is None:
        raise ValueError("no config given; add --config NAME_OR_FILE[:ARG], for example --config tiny:video")
    arguments = [f"--config={_resolve(text[9:])}" if text.startswith("--config=") else text for text in arguments]
    values, options = flags.FlagValues(), dict(lock_config=True, sys_argv=["emo", *arguments])
    try:
        if given:
            config_flags.DEFINE_config_file("config", flag_values=values, **options)
        elif default is not None:
            copy = default.copy_and_resolve_references()
            config_flags.DEFINE_config_dict("config", copy, flag_values=values, **options)
        rest = values(["emo", *arguments])[1:]
        values.config.lock()  # ml_collections reports a config file that it could not open on the first access
    except Exception as error:  # A config file is a program, which may raise anything.
        files = [text for text in arguments if text.startswith("--config=")]
        if files != arguments:
            _check_names([text for text in arguments if text not in files], parse(files, default))
        origin = f"{given[-1]}: " if given else ""
        raise ValueError(f"{origin}{_message(error)}") from error
    if rest:
        raise ValueError(f"unknown argument {rest[0]!r}; overrides are written --config.key=value")
    return values.config


def names(folder: str = "") -> list[str]:
    """Returns the names of the installed configs, or of the files in a folder of them, such as "sweeps"."""
    files = importlib.resources.files("emo_jax.configs").joinpath(folder).iterdir()
    return sorted(file.name.removesuffix(".py") for file in files if file.name.endswith(".py") and file.name[0] != "_")


def locate(name: str, folder: str = "") -> pathlib.Path:
    """Returns the file of a config. A path that exists takes precedence over an installed config's name.

    Args:
        name: a path, or one of `names(folder)`.
        folder: a folder of `emo_jax.configs`, such as "sweeps".

    Raises:
        ValueError: neither a file nor such a name.
    """
    path = pathlib.Path(name)
    if path.is_file():
        return path
    if name in names(folder):
        return pathlib.Path(str(importlib.resources.files("emo_jax.configs").joinpath(folder, f"{name}.py")))
    raise ValueError(f"config {name!r} is neither a file nor one of the installed: {', '.join(names(folder))}")


def parse_fields(arguments: list[str], prefix: str) -> dict[str, Any]:
    """Parses arguments such as "--sampling.steps=8" into {"steps": 8}.

    Values are Python literals; other text stays a string.

    Args:
        arguments: the command-line arguments.
        prefix: the name of the config that the fields belong to, for example "sampling".

    Raises:
        ValueError: an argument that is not of the form `--prefix.field=value`, or a field that is given twice.
    """
    fields = {}
    for text in arguments:
        name, separator, value = text.partition("=")
        if not (name.startswith(f"--{prefix}.") and separator and value):
            raise ValueError(f"unknown argument {text!r}; fields of {prefix!r} are set by --{prefix}.field=value")
        field = name.removeprefix(f"--{prefix}.")
        if field in fields:
            raise ValueError(f"{name} is given twice")
        try:
            fields[field] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            fields[field] = value
    return fields


def set_fields(config: ConfigDict, fields: dict[str, Any], name: str) -> None:
    """Sets fields of a config in place.

    Args:
        config: the config to change.
        fields: the new values by field name.
        name: the config's name in messages, for example "sampling".

    Raises:
        ValueError: an unknown field, or a value of another type.
    """
    unknown = sorted(set(fields) - set(config))
    if unknown:
        raise ValueError(f"{name} has no field {unknown[0]!r}; expected one of {', '.join(config)}")
    for field, value in fields.items():
        try:
            config[field] = value
        except TypeError as error:
            expected = type(config[field]).__name__
            raise ValueError(f"{name}.{field} is {value!r}; expected a value of type {expected}") from error


def to_json(config: ConfigDict) -> str:
    """Returns a config as JSON text."""
    return json.dumps(json.loads(config.to_json_best_effort()), indent=1)


def _join_values(arguments: list[str]) -> list[str]:
    """Rewrites ["--config", "tiny"] as ["--config=tiny"]."""
    joined, rest = [], iter(arguments)
    for text in rest:
        joined.append(f"--config={next(rest, '')}" if text == "--config" else text)
    return joined


def _resolve(text: str) -> str:
    """Replaces the name in NAME_OR_FILE[:ARG] by the path of its file."""
    name, separator, argument = (text, "", "") if pathlib.Path(text).is_file() else text.partition(":")
    return f"{locate(name)}{separator}{argument}"


def _check_names(overrides: list[str], config: ConfigDict) -> None:
    """Raises ValueError for the first override of a field that the config does not have, and names the nearest one."""
    fields = list(_fields(config))
    for text in overrides:
        name = text.partition("=")[0].removeprefix("--config.")
        if not any(field == name or field.startswith(f"{name}.") for field in fields):
            nearest = max(fields, key=lambda field, name=name: _similarity(name, field))
            raise ValueError(f"the config has no field {name!r}; the nearest one is {nearest!r}")


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of all fields."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _similarity(name: str, field: str) -> float:
    """Returns how similar a dotted name is to that of a field: mainly their last parts, or the field's initials."""
    last, other = name.rpartition(".")[2], field.rpartition(".")[2]
    ratio = difflib.SequenceMatcher(None, last, other).ratio()
    if last == "".join(word[:1] for word in other.split("_")):  # lr for learning_rate
        ratio = max(ratio, 0.9)
    return ratio + 0.5 * difflib.SequenceMatcher(None, name, field).ratio()


_WRAPPERS = ("Traceback (most recent call last)", "Configuration is not available")


def _message(error: BaseException) -> str:
    """Returns an error's message in one line, without the traceback that ml_collections puts around it."""
    while (inner := error.__cause__ or error.__context__) and any(text in str(error) for text in _WRAPPERS):
        error = inner
    known = isinstance(error, (flags.Error, ValueError, AttributeError, KeyError, TypeError))
    return ("" if known else f"{type(error).__name__}: ") + " ".join(str(error).split())
