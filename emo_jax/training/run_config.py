"""WORKDIR/config.json: the config of a run, and the versions of the packages that it runs with."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from emo_jax.weights.runs import folder_of

FILE = "config.json"
_PACKAGES = ("emo_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "libtpu")
_SHOWN = 5
"""Number of changed fields that are printed."""


def write_run_config(workdir: str | os.PathLike, config: ConfigDict) -> list[str]:
    """Writes config.json to the folder of a run, over that of its last start.

    Args:
        workdir: the folder of the run.
        config: the full config.

    Returns:
        Lines that say how the config and the versions differ from those of the last start; none at the first.

    Raises:
        ValueError: the file cannot be written.
    """
    path = folder_of(workdir) / FILE
    fields = json.loads(config.to_json_best_effort()) | {"versions": versions()}
    try:
        before = json.loads(path.read_text()) if path.exists() else None
    except (ValueError, OSError):  # damaged: it only serves to show what has changed
        before = None
    try:
        path.write_text(json.dumps(fields, indent=1) + "\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); make room, or choose another folder") from error
    return _differences(before, fields) if isinstance(before, dict) else []


def versions() -> dict[str, str]:
    """Returns {package: version} of Python and of the packages that training depends on, as far as installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = dict(_leaves(before)), dict(_leaves(now))
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    lines = [f"since the last start: {name} is {new.get(name)}, was {old.get(name)}" for name in changed[:_SHOWN]]
    more = len(changed) - _SHOWN
    return [*lines, f"since the last start: {more} more fields differ"] if more > 0 else lines


def _leaves(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
