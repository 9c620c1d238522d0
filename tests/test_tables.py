"""Plain-text tables."""

import pytest

from emo_jax.tables import format_table


def test_columns_are_aligned_and_lines_have_no_trailing_spaces():
    rows = [("backbone", "12", "image, video"), ("vae", "1234", "")]
    assert format_table(rows, ("part", "MB", "stages"), "<>") == (
        "part        MB  stages\nbackbone    12  image, video\nvae       1234"
    )


def test_table_without_header_is_indented():
    assert format_table([("a", "1"), ("bb", "22")], align=">>", indent="  ") == "   a   1\n  bb  22"


def test_empty_table_is_empty_text():
    assert format_table([]) == ""


def test_rows_of_different_lengths_raise():
    with pytest.raises(ValueError):
        format_table([("a", "b"), ("c",)])
