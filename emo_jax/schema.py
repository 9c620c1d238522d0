"""Validation of JSON files: errors name the file and the field, its value and what was expected."""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
import reprlib
from collections.abc import Callable
from typing import Any

Schema = Callable[[Any, str], None]
"""A function (value, name of the field) that raises ValueError if the value is not valid."""

_repr = reprlib.Repr()
_repr.maxother = _repr.maxstring = 40


def read_json(path: str | os.PathLike, schema: Schema) -> Any:
    """Reads a JSON file and checks its content.

    Args:
        path: path of the file.
        schema: schema of the content.

    Returns:
        The content.

    Raises:
        ValueError: if the file is not JSON, or does not conform to the schema.
    """
    try:
        value = json.loads(pathlib.Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file ({error}): copy or make it again") from error
    try:
        schema(value, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}; copy or make it again") from error
    return value


def integer(low: int, high: int) -> Schema:
    """Accepts integers in [low, high]."""
    return _matches(lambda v: type(v) is int and low <= v <= high, f"an integer from {low} to {high}")


def integer_text(low: int, high: int) -> Schema:
    """Accepts integers in [low, high] as decimal strings, which protocol buffers write."""

    def valid(value: Any) -> bool:
        return (
            isinstance(value, str)
            and value.removeprefix("-").isdecimal()
            and len(value) < 20
            and low <= int(value) <= high
        )

    return _matches(valid, f"an integer from {low} to {high} as a string")


def number(low: float, high: float, nan: bool = False) -> Schema:
    """Accepts finite numbers in [low, high], and NaN if `nan` says so."""

    def valid(value: Any) -> bool:
        if type(value) not in (int, float):
            return False
        return (low <= value <= high and math.isfinite(value)) or (nan and math.isnan(value))

    return _matches(valid, f"a number from {low:g} to {high:g}")


def boolean() -> Schema:
    """Accepts true and false."""
    return _matches(lambda v: isinstance(v, bool), "true or false")


def text(pattern: str = "(?s:.+)", expected: str = "a string that is not empty") -> Schema:
    """Accepts strings that match a regular expression, which `expected` describes."""
    return _matches(lambda v: isinstance(v, str) and re.fullmatch(pattern, v) is not None, expected)


def anything() -> Schema:
    """Accepts every value."""
    return lambda value, name: None


def either(first: Schema, second: Schema) -> Schema:
    """Accepts what one of two schemas accepts; the error is that of the second."""

    def check(value: Any, name: str) -> None:
        try:
            first(value, name)
        except ValueError:
            second(value, name)

    return check


def array(schema: Schema, length: int | tuple[int, int] | None = None) -> Schema:
    """Accepts lists and tuples of valid values. `length` is their number, or the lowest and highest number."""
    low, high = length if isinstance(length, tuple) else (length, length)
    size = "" if low is None else f" of {low} values" if low == high else f" of {low} to {high} values"

    def check(value: Any, name: str) -> None:
        fits = isinstance(value, (list, tuple)) and (low or 0) <= len(value) <= (len(value) if high is None else high)
        if not fits:
            raise _error(name, value, f"a list{size}")
        try:
            for item in value:
                schema(item, name)
        except ValueError:  # names are made for errors only, because an index can have millions of values
            for i, item in enumerate(value):
                schema(item, f"{name}[{i}]")

    return check


def mapping(schema: Schema) -> Schema:
    """Accepts objects with any keys and valid values."""

    def check(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise _error(name, value, "an object")
        for key, item in value.items():
            schema(item, _join(name, key))

    return check


def fields(required: dict[str, Schema], optional: dict[str, Schema] | None = None, extra: bool = False) -> Schema:
    """Accepts objects with the given fields.

    Args:
        required: {field: schema} of the fields that must be present.
        optional: {field: schema} of the fields that may be absent.
        extra: accepts other fields as well.
    """
    known = required | (optional or {})

    def check(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise _error(name, value, "an object")
        for key in required:
            if key not in value:
                raise ValueError(f"{_join(name, key)} is missing")
        for key, item in value.items():
            if key in known:
                known[key](item, _join(name, key))
            elif not extra:
                raise ValueError(f"{_join(name, key)} is unknown; expected one of {', '.join(known)}")

    return check


def columns(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """Accepts objects whose fields are lists of equal length; the schemas are those of the items."""
    check_fields = fields(
        {name: array(schema) for name, schema in required.items()},
        {name: array(schema) for name, schema in (optional or {}).items()},
    )

    def check(value: Any, name: str) -> None:
        check_fields(value, name)
        lengths = {key: len(items) for key, items in value.items()}
        first = next(iter(lengths.values()))
        for key, length in lengths.items():
            if length != first:
                raise ValueError(f"{_join(name, key)} has {length} values, expected {first}")

    return check


def first_difference(value: Any, expected: Any, name: str = "") -> str | None:
    """Returns the first field of a JSON value that differs from what is expected, with both values; None if equal."""
    if isinstance(value, dict) and isinstance(expected, dict):
        for key in expected:
            if key not in value:
                return f"{_join(name, key)} is missing"
            if difference := first_difference(value[key], expected[key], _join(name, key)):
                return difference
        return None
    return None if value == expected else str(_error(name, value, _repr.repr(expected)))


def _matches(valid: Callable[[Any], bool], expected: str) -> Schema:
    def check(value: Any, name: str) -> None:
        if not valid(value):
            raise _error(name, value, expected)

    return check


def _error(name: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{name or 'the content'} is {_repr.repr(value)}; expected {expected}")


def _join(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)
