"""libtpu on machines without TPUs."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from emo_jax import tpu
from tests.runs import python_path

VARIABLES = ("TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES")
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra tpu")


@pytest.mark.parametrize(
    "vendor, kind, found",
    [
        ("0x1ae0", "0x120000", True),  # an accelerator
        ("0x1ae0", "0xffff00", True),
        ("0x1ae0", "0x020000", False),  # Google's network card
        ("0x1ae0", "0x010802", False),  # Google's disk
        ("0x10de", "0x030200", False),
    ],
)
def test_chips_are_found_by_their_pci_device(tmp_path, vendor, kind, found):
    for number, (name, text) in enumerate([("0x8086", "0x060000"), (vendor, kind)]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "vendor").write_text(f"{name}\n")
        (tmp_path / str(number) / "class").write_text(f"{text}\n")
    assert tpu._has_tpu(tmp_path) is found


@pytest.mark.parametrize(
    "given, chips, described",
    [
        ({}, False, True),
        ({"JAX_PLATFORMS": "cpu"}, False, True),
        ({"JAX_PLATFORMS": "tpu,cpu"}, False, False),
        ({"TPU_WORKER_HOSTNAMES": "one,two"}, False, False),
        ({}, True, False),
    ],
)
def test_a_slice_is_described_only_without_tpus(monkeypatch, given, chips, described):
    monkeypatch.setattr(tpu, "_has_tpu", lambda: chips)
    for name in ("JAX_PLATFORMS", *VARIABLES):
        monkeypatch.setenv(name, "")  # so that it is restored at the end
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    tpu.describe_no_slice()
    expected = dict(tpu._NO_SLICE) if described else {}
    assert {name: os.environ[name] for name in VARIABLES if name in os.environ and name not in given} == expected
    assert all(os.environ[name] == value for name, value in given.items())


def run(*arguments, **given):
    unset = ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", *VARIABLES)
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= dict(PYTHONPATH=python_path(), **given)
    command = [sys.executable, "-m", "emo_jax.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@needs_libtpu
def test_libtpu_prints_nothing_where_there_is_no_tpu():
    done = run("plan", "--config=small:image", "--topology=cpu:1", "--no-compile")  # starts JAX's devices
    assert done.returncode == 0 and "1 x cpu" in done.stdout
    # On a busy machine XLA and the command itself may report what takes long.
    assert not [line for line in done.stderr.splitlines() if re.search("TPU|tpu|InitGoogle|tfrc|Source Location", line)]


@needs_libtpu
def test_errors_of_libtpu_are_reported_where_a_tpu_is_asked_for():
    done = run("bench", "attention", "--rounds=1", JAX_PLATFORMS="tpu")
    assert done.returncode == 2 and "JAX_PLATFORMS is tpu" in done.stderr.splitlines()[-1]
