"""Files that are written completely or not at all."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest
from etils import epath

from emo_jax.files import atomic_write, process_tag, remove_leftovers, write_text


@pytest.mark.parametrize("kind", [str, pathlib.Path, epath.Path])
def test_file_gets_its_name_after_the_block(tmp_path, kind):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(kind(path)) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_error_keeps_the_earlier_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="full"), atomic_write(path) as partial:
        partial.write_text("ne")
        raise RuntimeError("full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, sys
from emo_jax import files
with files.atomic_write(sys.argv[1]) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_file_of_a_killed_process_is_removed_by_the_next_write(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.txt")])
    (leftover,) = tmp_path.iterdir()
    assert done.returncode == -9 and leftover.name.startswith(".a.txt.") and leftover.name.endswith(".tmp")
    write_text(tmp_path / "b.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]


def test_only_files_of_processes_that_are_gone_are_removed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    gone = f"{socket.gethostname()}-{process.pid}"
    kept = [
        f".a.{process_tag()}-1.tmp",
        f".a.{process_tag()}.part.mp4",
        f".a.elsewhere-{process.pid}.tmp",
        ".mine.tmp",
        "a.mp4",
    ]
    removed = [f".a.b.{gone}-12.tmp", f".video.{gone}.part.mp4", f".video.{gone}.complete.mp4"]
    for name in kept + removed:
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    remove_leftovers(tmp_path / "missing")
