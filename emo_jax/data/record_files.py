"""Checks of the files of a directory of records; errors name the file and the field."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource

from emo_jax import schema

INDEX_SCHEMA = schema.columns(
    dict(frames=schema.integer(1, 1 << 31), fps=schema.number(1e-3, 1000), sound=schema.boolean()),
    dict(reliable_speed=schema.boolean(), aspect=schema.number(1e-4, 1e4)),
)
"""The rows of records in `index.json` and `latents.json`."""
_INFO_FILE = "dataset_info.json"
_SPLIT_SCHEMA = schema.fields(
    dict(name=schema.text(), shardLengths=schema.array(schema.integer_text(0, 10**9))),
    dict(numBytes=schema.integer_text(0, 10**18), filepathTemplate=schema.text()),
    extra=True,
)
_INFO_SCHEMA = schema.fields(
    dict(
        name=schema.text(),
        version=schema.text(r"\d+\.\d+\.\d+", "a version such as 1.0.0"),
        splits=schema.array(_SPLIT_SCHEMA),
    ),
    dict(description=schema.text("(?s:.*)"), fileFormat=schema.text(), moduleName=schema.text()),
    extra=True,
)


class MissingSplit(ValueError):
    """A directory of records or latents that does not have the split."""


def check_info(directory: pathlib.Path) -> None:
    """Validates `dataset_info.json`, if it exists."""
    if (directory / _INFO_FILE).is_file():
        schema.read_json(directory / _INFO_FILE, _INFO_SCHEMA)


def feature_error(directory: pathlib.Path, features: Any) -> str | None:
    """Returns an error message that names the first field of a damaged `features.json`, if there is one.

    Args:
        directory: directory of the records.
        features: the expected TFDS features.
    """
    from google.protobuf import json_format

    file = directory / "features.json"
    if not file.is_file():
        return None
    try:
        stored = schema.read_json(file, schema.anything())
    except ValueError as error:
        return str(error)
    field = schema.first_difference(stored, json_format.MessageToDict(features.to_proto()))
    return field and f"{file}: {field}; copy it again, or prepare the records again"


def check_files(directory: str, splits: Any, names: Iterable[str]) -> None:
    """Compares the number of records in the files with that in `dataset_info.json`.

    Args:
        directory: directory of the records.
        splits: the splits of the TFDS dataset.
        names: names of the splits to check.

    Raises:
        ValueError: if a file is missing or damaged, or the numbers differ.
    """
    for name in names:
        files = [os.fspath(file) for file in splits[name].filepaths]
        missing = [file for file in files if not os.path.exists(file)]
        if missing:
            raise ValueError(f"{missing[0]} is missing: copy it again, or prepare the records again")
        count, expected = sum(map(count_records, files)), splits[name].num_examples
        if count != expected:
            raise ValueError(
                f"{directory}, split {name}: the files contain {count} records, but {_INFO_FILE} says {expected}; "
                "copy or make them again"
            )


def count_records(file: str) -> int:
    """Returns the number of records in an ArrayRecord file.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        return len(ArrayRecordDataSource([file]))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} is damaged ({reason}); copy it again, or prepare it again") from error
