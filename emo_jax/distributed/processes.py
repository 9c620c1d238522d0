"""Runs of several processes: joining, agreeing on values, and ending together."""

import atexit
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

HEARTBEAT = 30
"""Seconds without a heartbeat after which a process counts as dead, and the others end."""
_COMPILE_TIMEOUT = 3600
"""Seconds that processes wait for each other after compiling the step."""
_BARRIER_TIMEOUT = 86400
"""Seconds that processes wait for each other after work that each does independently."""
_VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process": "JAX_PROCESS_ID",
}


def start(
    coordinator: str | None = None, processes: int | str | None = None, process: int | str | None = None
) -> None:
    """Joins the processes of this run. Call it once, before any device is used.

    Each argument defaults to its environment variable. If none is given, JAX detects the cluster (TPU pods, SLURM, GKE,
    Open MPI); without a cluster, or in a program that has used JAX before, this process runs alone.

    Args:
        coordinator: HOST:PORT of process 0 (JAX_COORDINATOR_ADDRESS).
        processes: number of processes (JAX_NUM_PROCESSES).
        process: index of this process, from 0 (JAX_PROCESS_ID).

    Raises:
        ValueError: only some of the three are given, they do not fit together, or the others cannot be reached.
    """
    given = _given(coordinator, processes, process)
    if jax.distributed.is_initialized():
        return
    if given is None and os.environ.get("SLURM_NTASKS") == "1":
        return  # JAX would use only one of its GPUs
    options: dict[str, Any] = dict(heartbeat_timeout_seconds=HEARTBEAT)
    if given is not None:  # with cluster detection, JAX would give each process one GPU
        options |= given | dict(cluster_detection_method="deactivate")
    try:
        jax.distributed.initialize(**options)
    except ValueError as error:
        if given is not None or "coordinator_address" not in str(error):
            raise
    except RuntimeError as error:  # no answer, or a port in use
        if given is None and "must be called before" in str(error):
            return
        where = given["coordinator_address"] if given else "the cluster's coordinator"
        raise ValueError(
            f"cannot join the other processes at {where} ({' '.join(str(error).split())[:200]}); expected process 0 to "
            "run there, with its port free and reachable"
        ) from error


def _given(
    coordinator: str | None, processes: int | str | None, process: int | str | None
) -> dict[str, Any] | None:
    """Returns arguments of jax.distributed.initialize, or None if nothing is given."""
    values: dict[str, Any] = dict(coordinator=coordinator, processes=processes, process=process)
    for name, variable in _VARIABLES.items():
        if values[name] is None and os.environ.get(variable):
            values[name] = os.environ[variable]
    if all(value is None for value in values.values()):
        return None
    missing = [f"--{name} (or {_VARIABLES[name]})" for name, value in values.items() if value is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing; expected coordinator, processes and process, or none")
    count, index = (_integer(name, values[name]) for name in ("processes", "process"))
    if not 0 <= index < count:
        raise ValueError(f"--process is {index} of {count} processes; expected 0 to {count - 1}")
    host, _, port = values["coordinator"].rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--coordinator is {values['coordinator']!r}; expected HOST:PORT, of process 0")
    return dict(coordinator_address=values["coordinator"], num_processes=count, process_id=index)


def _integer(name: str, value: int | str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"--{name} (or {_VARIABLES[name]}) is {value!r}; expected an integer") from None


def check_devices() -> None:
    """Checks that JAX finds devices of the platform in JAX_PLATFORMS.

    Raises:
        ValueError: it finds none.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200] or "its plugin is missing"
        platforms = jax.config.values["jax_platforms"] or "not set"
        raise ValueError(
            f"JAX finds no devices (JAX_PLATFORMS is {platforms}; {reason}); expected an installed plugin for them: "
            "pip install -c constraints.txt -e '.[cuda]' or '.[tpu]'"
        ) from error


def is_main() -> bool:
    """Returns whether this is process 0, the only one that prints and writes what all processes have in common."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line on process 0 alone."""
    if is_main():
        print(text, flush=True)


def name() -> str:
    """Returns the name of this process in messages: 'process 1 of 4 on HOST'."""
    return f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"


def max_over_processes(number: int) -> int:
    """Returns the largest of all processes' numbers; all processes must call it at the same place of the program."""
    return number if jax.process_count() == 1 else int(np.max(multihost_utils.process_allgather(np.int32(number))))


def from_main(values: Any) -> list[Any]:
    """Returns process 0's nested list of numbers, as floats, on all processes; all must call it with equal shapes."""
    array = np.asarray(values, np.float64)
    return (array if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(array))).tolist()


def barrier(name: str) -> None:
    """Blocks until all processes have reached the barrier of this name, for up to a day."""
    if jax.process_count() > 1:
        multihost.sync_global_processes(name, timeout=_BARRIER_TIMEOUT)


def exit_at_end(status: int, wait_for_report: bool = False) -> None:
    """Makes this process exit with a status at its end, without JAX's shutdown, which waits minutes for the others.

    The others, blocked in a step, learn from the missing heartbeats that this process is dead.

    Args:
        status: exit status.
        wait_for_report: whether this process ends because another has died. It then stays alive until JAX has reported
            the dead process and ended this one with status 134; if both were gone, JAX would name both.
    """

    def exit_now() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        if wait_for_report:
            time.sleep(2 * HEARTBEAT)
        os._exit(status)

    if jax.process_count() > 1:
        atexit.register(exit_now)  # functions run in reverse order of registration, so before JAX's


def fetch(tree: Any) -> Any:
    """Returns a tree of arrays as NumPy arrays on process 0 and None elsewhere; all processes must take part.

    Leaves are gathered one at a time.
    """
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    gathered = []
    for leaf in leaves:
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
        gathered.append(leaf if is_main() else None)
    return jax.tree.unflatten(structure, gathered) if is_main() else None


def compile_together(jitted: Any) -> Callable:
    """Returns the jitted function, which all processes compile before any of them runs it.

    A process that is minutes ahead would stop waiting for the others, as gloo does on CPUs after 30 s.
    """
    if jax.process_count() == 1:
        return jitted
    compiled = None

    def call(*arguments: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = jitted.lower(*arguments).compile()
            multihost.sync_global_processes("compiled", timeout=_COMPILE_TIMEOUT)
        return compiled(*arguments)

    return call
