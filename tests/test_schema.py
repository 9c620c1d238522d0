"""Validation of JSON files."""

import json

import pytest

from emo_jax import schema

SCHEMA = schema.fields(
    dict(
        size=schema.array(schema.integer(1, 100), 2),
        rows=schema.columns(dict(fps=schema.number(0, 60), sound=schema.boolean())),
        name=schema.text(),
    ),
    dict(count=schema.integer_text(-1, 10), parts=schema.mapping(schema.integer(0, 1))),
)
VALID = dict(size=[1, 100], rows=dict(fps=[25, 29.97], sound=[True, False]), name="a")


def read(tmp_path, value):
    (tmp_path / "file.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return schema.read_json(tmp_path / "file.json", SCHEMA)


def test_valid_content_is_returned(tmp_path):
    for value in (VALID, VALID | dict(count="10"), VALID | dict(count="-1", parts=dict(a=1))):
        assert read(tmp_path, value) == value


@pytest.mark.parametrize("change, field", [
    (dict(size=[1]), "size"),
    (dict(size=3), "size"),
    (dict(size=[1, 0]), r"size\[1\] is 0"),
    (dict(size=[1, 10**30]), r"size\[1\]"),
    (dict(size=[1.0, 2]), r"size\[0\] is 1.0"),
    (dict(size=[True, 2]), r"size\[0\] is True"),
    (dict(rows=[]), "rows"),
    (dict(rows=dict(fps=[25], sound=[])), "rows.sound has 0"),
    (dict(rows=dict(fps=[])), "rows.sound is missing"),
    (dict(rows=dict(fps=[float("nan")], sound=[True])), r"rows.fps\[0\] is nan"),
    (dict(rows=dict(fps=["1"], sound=[True])), r"rows.fps\[0\]"),
    (dict(rows=dict(fps=[1], sound=[1])), r"rows.sound\[0\]"),
    (dict(name=""), "name"),
    (dict(name=None), "name"),
    (dict(count=1), "count"),
    (dict(count="11"), "count"),
    (dict(count="1" * 99), "count"),
    (dict(parts=dict(b=2)), "parts.b is 2"),
    (dict(other=1), "other is unknown"),
])  # fmt: skip
def test_error_names_the_field(tmp_path, change, field):
    with pytest.raises(ValueError, match=f"file.json: {field}") as caught:
        read(tmp_path, VALID | change)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("content", ["", "{", "[1, 2", "\udc80", "[" * 100_000])
def test_files_that_are_not_json_raise(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="file.json"):
        schema.read_json(tmp_path / "file.json", SCHEMA)


def test_first_difference():
    expected = dict(a=dict(b=[1], c=2))
    assert schema.first_difference(dict(a=dict(b=[1], c=2, d=0)), expected) is None
    assert schema.first_difference(dict(a=dict(b=[1])), expected) == "a.c is missing"
    assert "a.b is [2]; expected [1]" in schema.first_difference(dict(a=dict(b=[2], c=2)), expected)


def test_numbers_may_be_nan_where_the_schema_says_so():
    schema.number(0, 1, nan=True)(float("nan"), "x")
    for value in (float("inf"), 2, "nan"):
        with pytest.raises(ValueError, match="x is"):
            schema.number(0, 1, nan=True)(value, "x")


def test_lists_have_bounds_and_values_have_alternatives():
    check = schema.array(schema.either(schema.boolean(), schema.integer(0, 9)), (1, 2))
    for value in ([True], [3, False]):
        check(value, "x")
    for value, field in (([], "x is"), ([1, 2, 3], "x is"), ([10], r"x\[0\] is 10"), (["a"], r"x\[0\]"), (1, "x is 1")):
        with pytest.raises(ValueError, match=field):
            check(value, "x")
