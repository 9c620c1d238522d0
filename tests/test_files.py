"""Files that appear whole or not at all."""

import pathlib

import pytest
from etils import epath

from emo_jax.files import whole, write_text


@pytest.mark.parametrize("kind", [str, pathlib.Path, epath.Path])
def test_a_file_gets_its_name_when_it_is_written(tmp_path, kind):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole(kind(path)) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="full"), whole(path) as partial:
        partial.write_text("ne")
        raise RuntimeError("full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
